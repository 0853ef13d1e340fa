"""Fonts of figures: an installed font with Hangul, for characters that matplotlib's own font lacks."""

import warnings
from functools import cache
from pathlib import Path

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

# Families with Hangul and the prefixes of their files; the first that is installed is used.
FAMILIES = {
    "Noto Sans CJK KR": "NotoSansCJK",
    "Noto Sans KR": "NotoSansKR",
    "NanumGothic": "NanumGothic",
    "Apple SD Gothic Neo": "AppleSDGothicNeo",
    "AppleGothic": "AppleGothic",
    "Malgun Gothic": "malgun",
    "Source Han Sans KR": "SourceHanSans",
    "UnDotum": "UnDotum",
}
PACKAGES = "`apt install fonts-nanum` on Debian and Ubuntu, `dnf install google-noto-sans-cjk-fonts` on Fedora"
OWN = "DejaVu Sans"  # matplotlib's font, with IPA


def has_east_asian(text: str) -> bool:
    """Whether a text has Hangul, Han characters or Kana."""
    return any("\u1100" <= letter <= "\u11ff" or "\u2e80" <= letter <= "\ud7ff" for letter in text)


@cache
def east_asian_family() -> str | None:
    """Return the family of an installed font with Hangul, known to matplotlib from now on; None without one.

    Files are looked up as well: matplotlib's list of fonts is as old as its first import on the machine.
    """
    installed_families = {font.name for font in font_manager.fontManager.ttflist}
    if installed := next((family for family in FAMILIES if family in installed_families), None):
        return installed
    files = sorted(font_manager.findSystemFonts())
    for prefix in FAMILIES.values():
        for file in files:
            if Path(file).name.startswith(prefix):
                font_manager.fontManager.addfont(file)
                return font_manager.FontProperties(fname=file).get_name()
    return None


@cache
def _warn() -> None:
    warnings.warn(
        f"figures show boxes for Korean, Chinese or Japanese characters: install a font, {PACKAGES}", stacklevel=3
    )


def set_fonts(figure: Figure) -> None:
    """Set the font of the texts of a figure that have characters of East Asia; warn once if they cannot be drawn.

    Fonts of other texts stay as matplotlib's settings have them, and so do these settings: figures that are drawn later
    in the same process are not changed.
    """
    for text in figure.findobj(Text):
        if has_east_asian(text.get_text()):
            if (family := east_asian_family()) is None:
                _warn()
                return
            text.set_fontfamily([OWN, family])
