"""The page of networks of full size: its bytes are bounded, and it opens."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from asr_lightning.asr import main
from asr_lightning.report.page_data import NEIGHBOURHOODS
from asr_lightning.report.page_layers import FRAMES, POINTS, choose
from asr_lightning.report.run_folders import COLUMNS
from asr_lightning.report.tables import as_csv
from tests.support.planted_run import write_run


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of three networks of full size."""
    folder = tmp_path_factory.mktemp("large")
    write_run(folder / "e2e_a")
    for name in ("e2e_b", "hybrid"):
        shutil.copytree(folder / "e2e_a", folder / name, copy_function=os.link)
    for name in ("e2e_a", "e2e_b", "hybrid"):
        rates = [name, "1", 50, "test-clean", *[0.1] * 5]
        (folder / name / "test_error_rates.csv").write_text(as_csv([COLUMNS, rates]))
    assert main(["report", str(folder), "--output", str(folder / "page.html")]) == 0
    return folder / "page.html"


def data_of(page: Path) -> dict[str, Any]:
    text = page.read_text("utf-8").split('id="parts">')[1].split("</script>")[0]
    content: dict[str, Any] = json.loads(text)
    return content


def test_three_networks_of_full_size_fit_into_a_page(large: Path) -> None:
    assert large.stat().st_size < 20_000_000
    data = data_of(large)
    assert [len(data[part]) for part in ("layers", "neighbours", "alignments")] == [3, 3, 3]
    for run in data["layers"]:
        points = sum(len(layer["x"]) for speaker in run["speakers"].values() for layer in speaker["layers"].values())
        assert 0.8 * POINTS / 3 < points <= POINTS / 3
        assert (
            run["order"] == list(run["speakers"]) == ["105", "100", "101", "102"]
        )  # the speaker of the drawn sentences first
        speaker = run["speakers"]["105"]
        assert [utterance["id"] for utterance in speaker["utterances"][:2]] == ["u005", "u003"]
        assert speaker["utterances"][0]["text"] == "A SENTENCE (the longest)"
        frames = {layer: part["utterance"].count(0) for layer, part in speaker["layers"].items()}
        assert frames == {"layer1": FRAMES, "layer2": 370, **{f"layer{number}": 185 for number in range(3, 9)}}
        starts = [
            start
            for start, utterance in zip(
                speaker["layers"]["layer1"]["start"], speaker["layers"]["layer1"]["utterance"], strict=True
            )
            if utterance == 0
        ]
        assert starts[0] == 0.0 and starts[-1] == pytest.approx(7.39) and starts == sorted(starts)
        assert "4 of 6 speakers" in run["note"] and "(seed 1)" in run["note"] and f"{points:,}" in run["note"]
    for run in data["neighbours"]:
        asked = run["begins"][run["asked"]]
        assert 0 < asked <= NEIGHBOURHOODS / 3 / 6 and len(run["layers"][5]["places"]) == asked
        assert len(run["characters"]) == 11_000 and all(len(indices) == 5 for indices in run["layers"][0]["places"])
        assert f"{run['asked']} of 100 sentences" in run["note"]
        assert run["table"]["notes"][0] == "The paper has 79 sentences."
    for run in data["alignments"]:
        assert 0 < len(run["utterances"]) < 8 and "of 8 utterances" in run["note"]


def test_the_page_of_full_size_opens(browser: Browser, large: Path) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(180_000)  # a machine may be busy
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.goto(large.as_uri())
    section = page.locator("#layers")
    assert section.get_by_label("speaker", exact=True).evaluate("(node) => node.value") == "105"
    section.get_by_label("phone", exact=True).check()
    assert 0.9 * FRAMES < section.locator(".strip span").count() <= FRAMES  # equal phones in a row are one
    section.locator(".plot").first.scroll_into_view_if_needed()
    section.locator(".plot").first.locator(".point").nth(FRAMES - 1).wait_for()
    assert "This page holds" in section.locator("p.note").nth(1).inner_text()
    assert page.locator("#neighbours ol.neighbours li").count() == 5
    assert failures == []
    context.close()


def test_choosing_is_of_the_first_and_others_by_lot() -> None:
    sizes = {f"u{number}": 10 for number in range(20)}
    chosen = choose(sizes, ["u7", "u3"], 60)
    assert chosen[:2] == ["u7", "u3"] and chosen[2:] == sorted(chosen[2:]) and len(chosen) == 6
    assert chosen == choose(sizes, ["u7", "u3"], 60) != ["u7", "u3", "u0", "u1", "u10", "u11"]
    assert len(choose(sizes, [], 5)) == 1  # never nothing
    assert set(choose(sizes, [], 1000)) == set(sizes)
