"""Fonts for Hangul: an installed one is used, a missing one is named with its package, once."""

import warnings
from collections.abc import Iterator

import matplotlib
import pytest

from asr_lightning.report import fonts


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    cached = (fonts.east_asian_family, fonts._warn)
    for function in cached:
        function.cache_clear()
    with matplotlib.rc_context():
        yield
    for function in cached:
        function.cache_clear()


def test_english_needs_no_font(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "east_asian_family", lambda: pytest.fail("a font was looked for"))
    fonts.choose_font("THE CAT", "tʃ ␣ −")


def test_a_missing_font_is_named_once_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "FAMILIES", {"No such family": "NoSuchFile"})
    with pytest.warns(UserWarning, match="apt install fonts-nanum"):
        fonts.choose_font("가나")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fonts.choose_font("가나")


def test_a_font_that_matplotlib_does_not_know_yet_is_found_by_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of DejaVu Sans plays the part of a font that was installed after matplotlib's list was made."""
    file = matplotlib.font_manager.findfont("DejaVu Sans")
    monkeypatch.setattr(fonts, "FAMILIES", {"Unknown to matplotlib": "DejaVuSans"})
    monkeypatch.setattr(fonts.font_manager, "findSystemFonts", lambda: [file])
    fonts.choose_font("가나")
    assert matplotlib.rcParams["font.family"] == ["DejaVu Sans", "DejaVu Sans"]
