"""The page in a real browser."""

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import soundfile
from playwright.sync_api import Browser, Page

from asr_lightning.analysis.activations import Part, Rows, Spoken, merge
from asr_lightning.analysis.histories import find_histories, table
from asr_lightning.analysis.layers import measure, project_layers, read_layers, table_of
from asr_lightning.asr import main
from asr_lightning.callbacks.neighbours import header, lines
from asr_lightning.callbacks.tsne import places_as_csv
from asr_lightning.report.run_folders import COLUMNS
from asr_lightning.report.tables import as_csv

HOSTILE = "</script><img src=x onerror=\"document.title='broken'\">"


def inside(folder: Path) -> None:
    """What the callbacks leave, of a network that nobody trained."""
    random = np.random.default_rng(0)
    part = Part(folder / "activations" / ".part")
    for number in range(6):
        text = list("_I_SAW_A_CAT") if number else list("_가_나무_") + [HOSTILE]
        starts = (np.arange(20) * 0.04).tolist()
        frames = [starts, [one + 0.04 for one in starts], [text[at % len(text)] for at in range(20)],
                  [("SIL", "AA", "B")[at % 3] for at in range(20)]]  # fmt: skip
        modules = {
            "low": Rows(random.normal(size=(20, 6)), "frame", *frames),
            "top": Rows(random.normal(size=(20, 6)), "frame", *frames),
            "state": Rows(random.normal(size=(len(text) + 1, 6)), "token", characters=[*text, "<eos>"]),
        }
        spoken = "".join(text)
        part.append(Spoken(f"u{number}", "test", "me", 0.8, spoken, spoken, modules))
    merge([part.folder], folder / "activations" / "test", {})
    projected = project_layers(read_layers(folder / "activations" / "test"), "me", iterations=50, perplexity=5)
    (folder / "tsne" / "test" / "me").mkdir(parents=True)
    for one in projected:
        (folder / "tsne" / "test" / "me" / f"{one.layer.name}.csv").write_text(places_as_csv(one))
    (folder / "tsne" / "test" / "figures.csv").write_text(as_csv(table_of(measure(projected))))
    [found] = find_histories(folder / "activations" / "test", ["state"])
    (folder / "neighbours" / "test").mkdir(parents=True)
    (folder / "neighbours" / "test" / "state.csv").write_text(as_csv([header(5), *lines(found)]))
    (folder / "neighbours" / "test" / "table.csv").write_text(as_csv(table([found])))
    (folder / "alignments" / "test").mkdir(parents=True)
    weights = np.eye(5, 20)
    posteriors = random.dirichlet(np.ones(8), 20)
    for name in ("u1", "u2"):
        np.savez_compressed(
            folder / "alignments" / "test" / f"{name}.npz", tokens=list("_CAT"), seconds=0.8, onsets=[], blank_id=0,
            vocabulary=list("-ABCDEFG"), posteriors=posteriors, **{"attention/decoder.attention": weights},
        )  # fmt: skip
        soundfile.write(folder / "alignments" / "test" / f"{name}.flac", 0.1 * random.normal(size=12_800), 16_000)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for run, first in (("one", 0.9), ("two <b>", 0.7)):
        for seed in (1, 2):
            place = folder / run.replace(" <b>", "") / f"seed{seed}"
            place.mkdir(parents=True)
            rates = [
                [run, str(seed), epoch, subset, *[first / epoch + 0.01 * seed] * 5]
                for epoch in (1, 2, 3)
                for subset in ("test-clean", "test-other")
            ]
            (place / "error_rates.csv").write_text(as_csv([COLUMNS, *rates]))
    inside(folder / "one" / "seed1")
    inside(folder / "two" / "seed1")
    return folder


@pytest.fixture(scope="module")
def page_file(runs: Path) -> Path:
    assert main(["report", str(runs), "--output", str(runs / "page.html"), "--title", f"A group & {HOSTILE}"]) == 0
    return runs / "page.html"


def test_layers_without_phones_are_left_out_with_the_command_that_makes_them(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a run that was looked into without labels: a picture of it would be blank."""
    copy = tmp_path / "runs"
    shutil.copytree(runs / "one", copy / "one")
    for path in (copy / "one" / "seed1" / "tsne" / "test" / "me").glob("*.csv"):
        with path.open() as file:
            rows = [{**row, "phone": ""} for row in csv.DictReader(file)]
        path.write_text(as_csv([list(rows[0]), *(list(row.values()) for row in rows)]))
    assert main(["report", str(copy), "--output", str(tmp_path / "page.html")]) == 0
    printed = capsys.readouterr()
    assert "expected frames with phones, found none" in printed.err and "asr align" in printed.err
    assert '"layers":[]' in (tmp_path / "page.html").read_text("utf-8")


@pytest.fixture
def page(browser: Browser, page_file: Path) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    context.set_default_timeout(20_000)
    opened = context.new_page()
    failures: list[str] = []
    opened.on("pageerror", lambda error: failures.append(str(error)))
    opened.on("console", lambda one: failures.append(one.text) if one.type == "error" else None)
    opened.on("request", lambda one: failures.append(one.url) if one.url.startswith("http") else None)
    opened.goto(page_file.as_uri())
    yield opened
    assert failures == []
    context.close()


def test_everything_is_there_and_nothing_is_run_that_only_was_text(page: Page) -> None:
    assert page.title() == f"A group & {HOSTILE}"
    assert page.locator("h1").inner_text() == f"A group & {HOSTILE}"
    titles = page.locator("h2").all_inner_texts()
    assert titles[0] == "Error rates per epoch"
    assert {"Layers", "Numbers along the layers", "Decoder neighbours", "Alignments"} <= set(titles)
    assert page.locator("#contents a").count() >= 4
    assert page.locator("img[src='x']").count() == 0
    assert "two <b>" in page.locator("#curves .legendtext").all_text_contents()


def test_layers_are_gone_through_and_recoloured(page: Page) -> None:
    section = page.locator("#layers")
    slider = section.get_by_label("layer", exact=True)
    assert section.locator("output").inner_text() == "low"
    before = section.locator(".gtitle").first.text_content()
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert section.locator("output").inner_text() == "top"
    assert slider.get_attribute("aria-valuetext") == "top"
    assert before == "one, seed 1, low" != section.locator(".gtitle").first.text_content()
    section.get_by_label("phone").check()
    assert {"SIL", "AA", "B"} <= set(section.locator(".plot").first.locator(".legendtext").all_text_contents())
    assert section.locator(".strip span").count() == 20
    section.get_by_label("all sentences behind").check()
    assert "other sentences" in section.locator(".plot").first.locator(".legendtext").all_text_contents()
    section.get_by_label("network").select_option("1")
    assert section.locator(".gtitle").first.text_content() == "two, seed 1, top"
    section.locator(".plot").first.scroll_into_view_if_needed()
    point = section.locator(".plot").first.locator(".trace.scatter .point").last
    box = point.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    shown = section.locator(".hovertext")
    shown.wait_for()
    assert "phone" in shown.text_content() and "character" in shown.text_content()


def test_neighbours_are_browsed_by_mouse_and_keyboard(page: Page, runs: Path) -> None:
    section = page.locator("#neighbours")
    with (runs / "one" / "seed1" / "neighbours" / "test" / "state.csv").open() as file:
        known = [row for row in csv.DictReader(file) if row["utterance"] == "u1"]
    section.get_by_label("sentence", exact=True).select_option("1")
    letters = section.locator(".sentence button")
    assert letters.count() == len(known)
    letters.nth(3).click()
    assert letters.nth(3).get_attribute("aria-pressed") == "true"
    assert section.locator("ol.neighbours li").count() == 5
    first = section.locator("ol.neighbours li").first.inner_text()
    assert f"{known[3]['utterance_1']};" in first and f"{known[3]['matching_1']} matching before" in first
    page.keyboard.press("ArrowRight")
    assert letters.nth(4).get_attribute("aria-pressed") == "true"
    assert page.evaluate("document.activeElement.textContent") == letters.nth(4).inner_text()
    assert f"{known[4]['utterance_1']};" in section.locator("ol.neighbours li").first.inner_text()
    page.keyboard.press("End")
    assert letters.last.get_attribute("aria-pressed") == "true"
    assert section.locator("table tbody tr").count() == 1


def test_alignments_can_be_heard_and_seen(page: Page) -> None:
    section = page.locator("#alignments")
    player = section.locator("audio")
    player.evaluate(
        "(one) => new Promise((done) => one.readyState >= 1 ? done() : one.addEventListener('loadedmetadata', done))"
    )
    assert abs(player.evaluate("(one) => one.duration") - 0.8) < 0.05
    assert section.locator(".heatmaplayer image").count() == 1
    section.get_by_label("map").select_option("1")
    assert section.locator(".scatterlayer .trace").count() == 8
    player.evaluate("(one) => { one.currentTime = 0.4; }")
    section.locator(".shapelayer path").first.wait_for(state="attached")
    section.get_by_label("utterance").select_option("1")
    assert section.get_by_label("map").evaluate("(one) => one.value") == "1"


def test_light_and_dark(page: Page) -> None:
    def brightness(place: str) -> float:
        rgb = page.locator(place).first.evaluate(
            "(one) => getComputedStyle(one).backgroundColor || getComputedStyle(one).fill"
        )
        return sum(int(part) for part in rgb.split("(")[1].split(")")[0].split(",")[:3]) / 3

    assert brightness("body") > 200
    page.get_by_role("button", name="use dark colours").click()
    assert brightness("body") < 60
    fill = page.locator("#curves .main-svg").first.evaluate("(one) => one.style.background")
    assert "22, 24, 27" in fill
    page.get_by_role("button", name="use light colours").click()
    assert brightness("body") > 200


TOO_WIDE = """[...document.querySelectorAll('main *')]
    .filter((one) => !one.closest('.scroll, .strip, .plot') && one.getBoundingClientRect().right > innerWidth + 1)
    .map((one) => one.outerHTML.slice(0, 80))"""
TOO_SMALL = """[...document.querySelectorAll('main *')]
    .filter((one) => !one.children.length && one.textContent.trim() && !one.closest('.plot'))
    .filter((one) => parseFloat(getComputedStyle(one).fontSize) < 12).map((one) => one.textContent)"""


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_narrow_and_wide_windows(
    browser: Browser, page_file: Path, tmp_path: Path, width: int, scheme: Literal["light", "dark"]
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.goto(page_file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(TOO_WIDE) == []
    assert page.evaluate(TOO_SMALL) == []
    assert len(page.screenshot(path=tmp_path / "page.png", full_page=True)) > 50_000
    context.close()


CONTROLS = """[...document.querySelectorAll("#theme, main select, main audio, main input[type=range],"
    + "main input[type=checkbox], main input[type=radio]:checked, .sentence button[tabindex='0']")]"""


def test_the_keyboard_reaches_every_control(page: Page) -> None:
    page.evaluate(f"window.controls = new Set({CONTROLS})")
    assert page.evaluate("controls.size") > 10
    for _ in range(150):
        page.keyboard.press("Tab")
        page.evaluate("controls.delete(document.activeElement)")
    assert page.evaluate("[...controls].map((one) => one.outerHTML.slice(0, 80))") == []


def test_what_cannot_be_read_is_left_out_and_named(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "runs"
    shutil.copytree(runs / "one", copy / "one")
    (copy / "one" / "seed1" / "tsne" / "test" / "me" / "top.csv").write_text("x,y\n")
    (copy / "one" / "seed1" / "alignments" / "test" / "u1.npz").write_bytes(b"cut")
    assert main(["report", str(copy), "--output", str(tmp_path / "page.html")]) == 0
    printed = capsys.readouterr()
    assert (
        "top.csv: expected the columns" in printed.err
        and "u1.npz: expected what the callback Alignments writes" in printed.err
    )
    assert "neighbours of 1 runs" in printed.out and "layers" not in printed.out.split(".html")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "expected test_error_rates.csv or error_rates.csv in"),
        (["one", "--baseline", "three"], "expected one of the runs found, one; got 'three'"),
    ],
)
def test_wrong_arguments(
    runs: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    assert main(["report", *arguments, "--output", "never.html"]) == 2
    assert message in capsys.readouterr().err
    assert not (runs / "never.html").exists()
