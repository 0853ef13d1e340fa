"""Looks of phones: symbols, classes, and shapes that tell all phones of a class apart."""

import pytest

from asr_lightning.report.phone_style import COLORS, ESPEAK, MATPLOTLIB, ipa_symbols, phone_class, phone_styles
from asr_lightning.text.korean_pronunciation import PHONES

ARPABET = "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH"


def luminance(color: str) -> float:
    parts = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("page", ["#ffffff", "#16181b"])
def test_marks_stand_out_from_both_pages(page: str) -> None:
    for name, color in COLORS.items():
        light, dark = sorted([luminance(color), luminance(page)], reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3, name


def test_the_alphabet_is_the_one_that_has_all_phones() -> None:
    assert ipa_symbols(["AH0", "CH", "SIL"]) == {"AH0": "ʌ", "CH": "tʃ", "SIL": "SIL"}
    assert ipa_symbols(["iy", "dcl", "ch"]) == {"iy": "i", "dcl": "dcl", "ch": "tʃ"}
    assert ipa_symbols(["eo", "ch", "SIL"]) == {"eo": "ʌ", "ch": "tɕʰ", "SIL": "SIL"}
    assert ipa_symbols(["@2", "A@", "t#", "SIL"]) == {"@2": "ə", "A@": "ɑːɹ", "t#": "ɾ", "SIL": "SIL"}
    assert ipa_symbols(["ə", "tʃ"]) == {"ə": "ə", "tʃ": "tʃ"}
    assert "".join(ipa_symbols(PHONES).values()).isascii() is False


def test_classes() -> None:
    for symbol, expected in {
        "aɪ": "vowel", "ja": "vowel", "ɰi": "vowel", "tʃ": "affricate", "t͈ɕ": "affricate", "pʰ": "plosive",
        "h": "fricative", "ŋ": "nasal", "ɹ": "liquid or glide", "j": "liquid or glide", "SIL": "silence",
        "bcl": "silence", "3": "other",
    }.items():  # fmt: skip
        assert phone_class(symbol) == expected, symbol


@pytest.mark.parametrize("phones", [ARPABET.split(), list(PHONES), list(ESPEAK)], ids=["English", "Korean", "espeak"])
def test_color_is_the_class_and_no_class_is_unknown(phones: list[str]) -> None:
    styles = phone_styles([*phones, "SIL"])
    assert list(styles.values())[-1].phone_class == "silence" and set(styles) == {*phones, "SIL"}
    assert "other" not in {style.phone_class for style in styles.values()}
    assert all(style.color == COLORS[style.phone_class] and style.shape in MATPLOTLIB for style in styles.values())
    consonants = [style for style in styles.values() if style.phone_class != "vowel"]
    assert len({(style.color, style.shape) for style in consonants}) >= len(consonants) - 6
