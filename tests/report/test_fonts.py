"""Fonts for Hangul: an installed one is used, a missing one is named with its package, once."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import pytest
from matplotlib.figure import Figure

from asr_lightning.report import fonts
from asr_lightning.report.figures import ErrorRate, plot_error_rates, save_figure


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    cached = (fonts.east_asian_family, fonts._warn)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def titled(title: str) -> Figure:
    """A figure with a title, the label of a tick and the label of an axis."""
    figure = Figure()
    panel = figure.subplots()
    panel.set_title(title)
    panel.set_xticks([0], [title])
    panel.set_xlabel("epoch")
    return figure


def test_english_needs_no_font(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "east_asian_family", lambda: pytest.fail("a font was looked for"))
    fonts.set_fonts(titled("THE CAT tʃ ␣ −"))


def test_a_missing_font_is_named_once_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "FAMILIES", {"No such family": "NoSuchFile"})
    with pytest.warns(UserWarning, match="apt install fonts-nanum"):
        fonts.set_fonts(titled("가나"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fonts.set_fonts(titled("가나"))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of DejaVu Sans Mono, in the place of a font that was installed after matplotlib's list was made."""
    file = matplotlib.font_manager.findfont("DejaVu Sans Mono")
    monkeypatch.setattr(fonts, "FAMILIES", {"Unknown to matplotlib": "DejaVuSansMono"})
    monkeypatch.setattr(fonts.font_manager, "findSystemFonts", lambda: [file])


@pytest.mark.usefixtures("installed")
@pytest.mark.filterwarnings("ignore:Glyph")
def test_a_font_that_matplotlib_does_not_know_yet_is_found_by_its_file(tmp_path: Path) -> None:
    settings, figure = dict(matplotlib.rcParams), titled("가나")
    save_figure(figure, tmp_path / "korean.png")
    [panel] = figure.axes
    for text in (panel.title, panel.get_xticklabels()[0]):
        assert text.get_fontfamily() == ["DejaVu Sans", "DejaVu Sans Mono"]
    assert panel.xaxis.label.get_fontfamily() == settings["font.family"]
    assert dict(matplotlib.rcParams) == settings


@pytest.mark.usefixtures("installed")
@pytest.mark.filterwarnings("ignore:Glyph")
def test_a_legend_is_measured_in_the_font_that_it_is_drawn_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[list[str]] = []

    def note_fonts(figure: Figure) -> None:
        measured.extend(text.get_fontfamily() for legend in figure.legends for text in legend.get_texts())

    monkeypatch.setattr(Figure, "draw_without_rendering", note_fonts)
    monkeypatch.setattr("matplotlib.legend.Legend.get_window_extent", lambda *_: matplotlib.transforms.Bbox.unit())
    plot_error_rates([ErrorRate("가나", "1", 1, "clean", 0.5, 0.2, 0.9, 0.5, 0.2)], tmp_path / "rates.png")
    assert measured == [["DejaVu Sans", "DejaVu Sans Mono"]]
