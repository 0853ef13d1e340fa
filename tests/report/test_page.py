"""The page in a real browser."""

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Locator, Page

from asr_lightning.asr import main
from asr_lightning.errors import InputError
from asr_lightning.report.page_data import gather_neighbours
from asr_lightning.report.run_folders import COLUMNS
from asr_lightning.report.tables import as_csv
from tests.support.looked_inside import HOSTILE, inside


def write_transcripts(path: Path, right: bool) -> None:
    """Twelve sentences of six speakers, each with a substitution, a deletion and an insertion, or mostly right."""
    path.parent.mkdir(exist_ok=True)
    rows = [
        {"id": f"u{number:02}", "speaker": f"s{number % 6}", "reference": "I SAW A BIG CAT TODAY",
         "hypothesis": "I SAW A BIG CAT TODAY" if right and number % 4 else "I SEE A CAT TODAY THERE"}
        for number in range(12)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for run, first in (("one", 0.9), ("two <b>", 0.7)):
        for seed in (1, 2):
            seed_folder = folder / run.replace(" <b>", "") / f"seed{seed}"
            seed_folder.mkdir(parents=True)
            rates = [
                [run, str(seed), epoch, subset, *[first / epoch + 0.01 * seed] * 5]
                for epoch in (1, 2, 3)
                for subset in ("test-clean", "test-other")
            ]
            (seed_folder / "error_rates.csv").write_text(as_csv([COLUMNS, *rates]))
            for subset in ("test-clean", "test-other"):
                write_transcripts(seed_folder / "transcripts" / f"validation-epoch3-{subset}.jsonl", right=run != "one")
    inside(folder / "one" / "seed1")
    inside(folder / "two" / "seed1")
    return folder


@pytest.fixture(scope="module")
def page_file(runs: Path) -> Path:
    assert main(["report", str(runs), "--output", str(runs / "page.html"), "--title", f"A group & {HOSTILE}"]) == 0
    return runs / "page.html"


def test_the_title_is_that_of_the_experiments_not_of_their_folders(runs: Path, tmp_path: Path) -> None:
    seeds = [str(runs / name / "seed1") for name in ("one", "two")]
    assert main(["report", *seeds, "--output", str(tmp_path / "page.html")]) == 0
    assert "<title>one, two &lt;b&gt;</title>" in (tmp_path / "page.html").read_text("utf-8")


def test_layers_without_phones_are_left_out_with_the_command_that_makes_them(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run whose activations were kept without labels: a picture of it would be blank."""
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
    context.set_default_timeout(180_000)  # on a loaded machine
    opened = context.new_page()
    failures: list[str] = []
    opened.on("pageerror", lambda error: failures.append(str(error)))
    opened.on("console", lambda message: failures.append(message.text) if message.type == "error" else None)
    opened.on("request", lambda request: failures.append(request.url) if request.url.startswith("http") else None)
    opened.goto(page_file.as_uri())
    yield opened
    assert failures == []
    context.close()


def scroll_to(plot: Locator) -> None:
    """Scroll to a plot, and wait until it is drawn."""
    plot.scroll_into_view_if_needed()
    plot.locator(".main-svg").first.wait_for()


def test_plots_are_drawn_when_they_are_near_and_before_printing(page: Page) -> None:
    far = page.locator(".plot").last
    page.locator("#curves .main-svg").first.wait_for()
    assert far.locator(".main-svg").count() == 0
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert all(plot.locator(".main-svg").count() for plot in page.locator(".plot").all())


def test_everything_is_there_and_nothing_is_run_that_only_was_text(page: Page) -> None:
    assert page.title() == f"A group & {HOSTILE}"
    assert page.locator("h1").inner_text() == f"A group & {HOSTILE}"
    titles = page.locator("h2").all_text_contents()
    assert titles[:3] == ["Result", "Curves", "Runs and commands"]
    assert {"Layers (t-SNE)", "Measurements of layers", "Decoder neighbours", "Alignments"} <= set(titles)
    assert page.locator("#contents a").count() >= 4
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    axes = page.locator("#figures .plot").evaluate_all("(all) => all.map((node) => node.layout.yaxis)")
    assert all(axis["rangemode"] == "tozero" and axis["title"]["text"] for axis in axes) and axes
    assert page.locator("img[src='x']").count() == 0
    assert "two <b> (2 seeds)" in page.locator("#curves .legend span").all_text_contents()


def test_layers_stand_side_by_side_or_are_gone_through_and_recolored(page: Page) -> None:
    section = page.locator("#layers")
    assert section.locator("figcaption").all_inner_texts() == ["low", "top"]
    slider = section.get_by_label("layer", exact=True)
    assert not slider.is_visible()
    section.get_by_label("one layer").check()
    assert section.locator("figcaption").all_inner_texts() == ["low"]
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert section.locator("output").inner_text() == "top" == section.locator("figcaption").inner_text()
    assert slider.get_attribute("aria-valuetext") == "top"
    section.get_by_label("phone", exact=True).check()
    assert section.locator(".legend .phone").all_text_contents() == ["●ɑ (AA)", "●b (B)", "✕SIL"]
    assert section.locator(".legend b").all_inner_texts() == ["vowel", "plosive", "silence"]
    assert "ɑ" in section.locator(".strip span").all_inner_texts()
    scroll_to(section.locator(".plot"))
    points = section.locator(".trace.scatter .point")
    count = points.count()
    section.get_by_label("all sentences behind").check()
    assert points.count() == 6 * count
    section.get_by_label("network").select_option("1")
    assert section.locator(".plot").get_attribute("aria-label") == "t-SNE of top of two, seed 1, colored by phone"
    box = points.last.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    shown = section.locator(".hovertext")
    shown.wait_for()
    assert "phone" in shown.text_content() and "character" in shown.text_content()


def test_frames_fill_a_square_without_grid_and_letters_stand_out_from_their_color(page: Page) -> None:
    section = page.locator("#layers")
    for plot in section.locator(".plot").all():
        scroll_to(plot)
        box = plot.bounding_box()
        assert box is not None and abs(box["width"] - box["height"]) < 2
        spans = plot.locator(".trace.scatter").last.evaluate(
            "(node) => { const box = node.getBoundingClientRect(); return [box.width, box.height]; }"
        )
        assert max(spans) > 0.85 * box["width"]
        assert plot.locator(".gridlayer path").count() == 0
    contrasts = section.locator(".strip span").evaluate_all(
        """(all) => all.map((node) => {
            const light = (rgb) => rgb.match(/[0-9.]+/g).slice(0, 3).map((part) => part / 255)
                .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
                .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
            const [a, b] = ["color", "backgroundColor"].map((name) => light(getComputedStyle(node)[name]) + 0.05);
            return Math.max(a, b) / Math.min(a, b);
        })"""
    )
    assert len(contrasts) > 5 and min(contrasts) >= 4.5


def test_neighbours_of_layers_that_are_of_different_tests_are_refused(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("layer\nlow\nhigh\n")
    head = "utterance,index,character,neighbour_1,utterance_1,index_1,matching_1,distance_1\n"
    (tmp_path / "low.csv").write_text(f"{head}a,0,A,B,b,0,0,0.5\nb,0,B,A,a,0,0,0.5\n")
    (tmp_path / "high.csv").write_text(f"{head}a,0,A,C,c,0,0,0.5\nc,0,C,A,a,0,0,0.5\n")
    with pytest.raises(InputError, match=r"high.csv: expected the characters of .*low.csv, found others"):
        gather_neighbours("run", tmp_path)


def test_neighbours_are_browsed_by_mouse_and_keyboard(page: Page, runs: Path) -> None:
    section = page.locator("#neighbours")
    with (runs / "one" / "seed1" / "neighbours" / "test" / "state.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["utterance"] == "u1"]
    section.get_by_label("sentence", exact=True).select_option("1")
    letters = section.locator(".sentence button")
    assert letters.count() == len(rows)
    letters.nth(3).click()
    assert letters.nth(3).get_attribute("aria-pressed") == "true"
    assert section.locator("ol.neighbours li").count() == 5
    first = section.locator("ol.neighbours li").first.inner_text()
    assert f"{rows[3]['utterance_1']};" in first and f"{rows[3]['matching_1']} matching before" in first
    page.keyboard.press("ArrowRight")
    assert letters.nth(4).get_attribute("aria-pressed") == "true"
    assert page.evaluate("document.activeElement.textContent") == letters.nth(4).inner_text()
    assert f"{rows[4]['utterance_1']};" in section.locator("ol.neighbours li").first.inner_text()
    page.keyboard.press("End")
    assert letters.last.get_attribute("aria-pressed") == "true"
    assert section.locator("table tbody tr").count() == 1


def test_alignments_can_be_heard_and_seen(page: Page) -> None:
    section = page.locator("#alignments")
    player = section.locator("audio")
    player.evaluate(
        "(node) => new Promise((done) => node.readyState >= 1 ? done() : node.addEventListener('loadedmetadata', done))"
    )
    assert abs(player.evaluate("(node) => node.duration") - 0.8) < 0.05
    scroll_to(section.locator(".plot"))
    assert section.locator(".heatmaplayer image").count() == 1
    section.get_by_label("map").select_option("1")
    assert section.locator(".scatterlayer .trace").count() == 8 == section.locator(".legend span").count()
    player.evaluate("(node) => { node.currentTime = 0.4; }")
    section.locator(".shapelayer path").first.wait_for(state="attached")
    section.get_by_label("utterance").select_option("1")
    assert section.get_by_label("map").evaluate("(node) => node.value") == "1"


def test_the_curves_of_all_panels_have_the_same_axes(page: Page) -> None:
    section = page.locator("#curves")
    scroll_to(section.locator(".plot").last)
    for scale in ("logarithmic", "linear"):
        section.get_by_label(scale).check()
        ranges = section.locator(".plot").evaluate_all(
            "(all) => all.map((node) => JSON.stringify([node.layout.xaxis.range, node.layout.yaxis.range]))"
        )
        assert len(ranges) == 2 and len(set(ranges)) == 1
    assert "band" in section.locator("p.note").inner_text()
    assert section.locator(".plot").first.get_attribute("aria-label").startswith("WER (%), test-clean, over epochs")


def test_the_first_screen_has_the_rates_and_the_facts(page: Page) -> None:
    [clean, other] = page.locator("#summary li").all_inner_texts()
    assert clean.startswith(
        "two <b> makes fewer word errors than one on test\u2011clean.\n24.83 % against 31.50 % WER after 3"
    )
    assert "95 % interval" in clean and "test\u2011other" in other
    note = page.locator("#summary .note").inner_text()
    assert "seeds: 1, 2" in note and "epochs: 3" in note and "parameters" not in note, "unknown facts are left out"
    box = page.locator("#curves .plot").first.bounding_box()
    assert box is not None and box["y"] + box["height"] < 900, "the curves are on the first screen"
    assert page.locator("#runs tbody tr").first.locator("td").all_inner_texts()[:3] == ["one", "1, 2", "3"]


def test_sentences_show_their_edits_and_are_filtered(page: Page) -> None:
    section = page.locator("#sentences")
    assert section.locator("p[role=status]").inner_text() == "8 of 12 sentences"
    first = section.locator(".edits").first
    assert first.inner_text().startswith("3 → 0 errors in 6 words; u01, speaker s1")
    assert first.locator("mark").all_inner_texts() == ["SEE"]
    assert first.locator("del").all_inner_texts() == ["BIG"]
    assert first.locator("ins").all_inner_texts() == ["THERE"]
    section.get_by_role("button", name="show more").click()
    assert section.locator(".edits").count() == 12
    section.get_by_label("errors of the run").select_option("added")
    assert section.locator("p[role=status]").inner_text() == "3 of 3 sentences"
    section.get_by_label("speaker").select_option("s4")  # of u04 and u10, of which the latter is right
    assert section.locator("p[role=status]").inner_text() == "1 of 1 sentences"
    section.get_by_label("words in the reference").fill("dog")
    assert section.locator("p[role=status]").inner_text() == "0 of 0 sentences"


def test_text_is_on_the_left_and_numbers_on_the_right(page: Page) -> None:
    cells = page.locator("#table1 tbody tr").first.locator("td")
    sides = cells.evaluate_all("(all) => all.map((node) => getComputedStyle(node).textAlign)")
    assert sides[:4] == ["left", "left", "right", "right"]
    assert page.locator("main").inner_text().count("`") == 0


def test_light_and_dark(page: Page) -> None:
    def brightness(selector: str) -> float:
        rgb = page.locator(selector).first.evaluate(
            "(node) => getComputedStyle(node).backgroundColor || getComputedStyle(node).fill"
        )
        return sum(int(part) for part in rgb.split("(")[1].split(")")[0].split(",")[:3]) / 3

    assert brightness("body") > 200
    page.get_by_role("button", name="use dark colors").click()
    assert brightness("body") < 60
    fill = page.locator("#curves .main-svg").first.evaluate("(node) => node.style.background")
    assert "22, 24, 27" in fill
    page.get_by_role("button", name="use light colors").click()
    assert brightness("body") > 200


TOO_WIDE = """[...document.querySelectorAll('main *')]
    .filter((node) => !node.closest('.scroll, .strip, .plot') && node.getBoundingClientRect().right > innerWidth + 1)
    .map((node) => node.outerHTML.slice(0, 80))"""
TOO_SMALL = """[...document.querySelectorAll('main *')]
    .filter((node) => !node.children.length && node.textContent.trim() && !node.closest('.plot'))
    .filter((node) => parseFloat(getComputedStyle(node).fontSize) < 12).map((node) => node.textContent)"""


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
    + "main input[type=checkbox], main input[type=radio]:checked, .sentence button[tabindex='0']")]
    .filter((node) => node.checkVisibility())"""  # a choice of one speaker only is hidden


def test_the_keyboard_reaches_every_control(page: Page) -> None:
    page.evaluate(f"window.controls = new Set({CONTROLS})")
    assert page.evaluate("controls.size") > 10
    for _ in range(200):
        page.keyboard.press("Tab")
        page.evaluate("controls.delete(document.activeElement)")
    assert page.evaluate("[...controls].map((node) => node.outerHTML.slice(0, 80))") == []


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
