"""Costs: the numbers against a direct computation, and the page in a real browser."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from playwright.sync_api import Browser, Page

from asr_lightning.asr import main
from asr_lightning.report.costs import Costs, find_measured_runs

SPEED = "train/audio_seconds_per_second_epoch"
HOSTILE = "<img src=x onerror=\"document.title='broken'\">"


def write_run(folder: Path, speeds: list[float], logged: dict[str, float], **trainer: Any) -> Path:
    logs = folder / "logs" / "version_0"
    logs.mkdir(parents=True)
    data = {"init_args": {"batch_seconds": 400}}
    config = {"model": {"class_path": "M"}, "data": data, "trainer": {"precision": "bf16-mixed", **trainer}}
    (logs / "config.yaml").write_text(yaml.safe_dump(config))
    with (logs / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [SPEED, "train/processes", "train/gpus", "train/loss"])
        writer.writeheader()
        writer.writerows([{"train/loss": 1.0}, *({SPEED: speed, **logged} for speed in speeds)])
    return folder


@pytest.fixture
def on_gpu(tmp_path: Path) -> Path:
    return write_run(tmp_path / f"teacher {HOSTILE}", [900.0, 1000.0, 1100.0], {"train/processes": 1, "train/gpus": 1})


def test_hours_are_those_of_audio_over_speed(on_gpu: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--costs", str(on_gpu), "--price", "2.5"]) == 0
    printed = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in printed.splitlines() if line.strip()[:1].isdigit()}
    wall = 960 * 50 / 1000
    assert rows["1"] == ["1", "measured", "1,000.0", f"{wall:.1f}", "2.0", f"{wall:.1f}", f"{wall * 2.5:.2f}"]
    assert rows["8"][3:] == [f"{wall / 8 / 0.9:.1f}", "0.3", f"{wall / 0.9:.1f}", f"{wall / 0.9 * 2.5:.2f}"]
    assert "0.900, not measured" in printed and "median of 3 epochs (900.0 to 1,100.0)" in printed


def test_efficiency_is_measured_where_runs_differ_in_devices(on_gpu: Path, tmp_path: Path) -> None:
    eight = write_run(tmp_path / "eight", [6_000.0], {"train/processes": 8, "train/gpus": 8})
    costs = Costs.from_runs(find_measured_runs([on_gpu, eight]))
    assert costs.measured and costs.efficiency == pytest.approx(6_000 / 8_000)
    assert [costs.speed(devices) for devices in (1, 4, 8, 64)] == pytest.approx([1000, 3000, 6000, 48_000])
    assert not Costs.from_runs(find_measured_runs([on_gpu, eight]), 0.5).measured
    assert Costs.from_runs(find_measured_runs([eight])).speed(1) == pytest.approx(
        750
    )  # no more than was seen of a device


@pytest.mark.parametrize(
    ("logged", "trainer", "kind"),
    [
        ({"train/processes": 2, "train/gpus": 0}, {}, "2 × CPU"),
        ({}, {"accelerator": "cpu", "devices": 2}, "2 × CPU"),
        ({}, {"accelerator": "gpu", "devices": 2, "num_nodes": 2}, "4 × GPU"),
        ({}, {"accelerator": "auto", "devices": "auto"}, "1 × unknown device"),
    ],
)
def test_the_device_is_said_and_never_guessed(
    tmp_path: Path, logged: Any, trainer: Any, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--costs", str(write_run(tmp_path / "run", [10.0], logged, **trainer))]) == 0
    printed = capsys.readouterr().out
    assert kind in printed and ("nothing about GPUs" in printed) == ("GPU" not in kind)


def test_what_cannot_be_used_is_said_in_one_line(
    tmp_path: Path, on_gpu: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = write_run(tmp_path / "silent", [], {})
    slow = write_run(tmp_path / "slow", [10.0], {"train/processes": 1, "train/gpus": 0})
    broken = write_run(tmp_path / "broken", [10.0], {})
    (broken / "logs" / "version_0" / "config.yaml").write_text("a: [")
    for runs, expected in (
        ([tmp_path / "nowhere"], "expected logs/version_<n>/metrics.csv"),
        ([silent], "callback Throughput"),
        ([on_gpu, slow], "give one kind at a time"),
        ([broken], "cannot read"),
    ):
        assert main(["compare", "--costs", *map(str, runs)]) == 2
        message = capsys.readouterr().err
        assert expected in message and "Traceback" not in message
    (tmp_path / "file").touch()
    assert main(["compare", "--costs", str(on_gpu), "--output", str(tmp_path / "file" / "costs")]) == 2


def test_the_page_alone_is_written_to_a_path_that_ends_in_html(on_gpu: Path, tmp_path: Path) -> None:
    assert main(["costs", str(on_gpu), "--output", str(tmp_path / "page.html")]) == 0
    assert "<title>" in (tmp_path / "page.html").read_text()


@pytest.fixture
def page(browser: Browser, on_gpu: Path, tmp_path: Path) -> Iterator[Page]:
    assert main(["compare", "--costs", str(on_gpu), "--output", str(tmp_path)]) == 0
    context = browser.new_context(viewport={"width": 400, "height": 800}, color_scheme="dark")
    opened = context.new_page()
    failures: list[str] = []
    opened.on("pageerror", lambda error: failures.append(str(error)))
    opened.on("request", lambda request: failures.append(request.url) if request.url.startswith("http") else None)
    opened.goto((tmp_path / "costs.html").as_uri())
    yield opened
    assert failures == []
    context.close()


def cells(page: Page, table: str) -> list[list[str]]:
    return [row.locator("th, td").all_inner_texts() for row in page.locator(f"#{table} tr").all()]


def test_the_page_computes_as_the_terminal_does_and_again_when_inputs_change(page: Page) -> None:
    assert cells(page, "costs")[1:] == [
        ["1", "measured", "1,000.0", "48.0", "2.0", "48.0"],
        ["8", "estimate", "7,200.0", "6.7", "0.3", "53.3"],
        ["64", "estimate", "57,600.0", "0.8", "0.0", "53.3"],
    ]
    page.locator("#devices").fill("2")
    page.locator("#efficiency").fill("0.5")
    page.locator("#hours").fill("100")
    page.locator("#epochs").fill("10")
    page.locator("#price").fill("3")
    assert cells(page, "costs")[1:] == [["2", "estimate", "1,000.0", "1.0", "0.0", "2.0", "6.00"]]
    page.locator("#hours").fill("-1")  # nothing is computed from what is no number of hours
    assert cells(page, "costs")[1][3] == "1.0"


def test_the_page_fits_a_phone_in_the_dark_and_runs_nothing_that_is_text(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.title() == "What training costs" and page.locator("img").count() == 0
    measured = cells(page, "runs")[1]
    assert HOSTILE in measured[0] and measured[1:8] == [
        "GPU", "1", "400", "bf16-mixed", "3", "1,000.0", "900.0 to 1,100.0",
    ]  # fmt: skip
    page.locator("#theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
