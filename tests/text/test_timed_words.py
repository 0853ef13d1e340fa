"""Exact outputs of the formats of timed words."""

import pytest
from praatio import textgrid

from asr_lightning.text.timed_words import Word, as_ctm, as_srt, as_textgrid, as_vtt, captions

WORDS = [Word("A", 0.0, 0.25, 0.5), Word('SO-"CALLED"', 0.25, 1.0, 1.0), Word("R&B", 3661.5, 3661.9996)]


def test_ctm() -> None:
    assert as_ctm("my talk", WORDS) == (
        "my_talk 1 0.000 0.250 A 0.5000\n"
        'my_talk 1 0.250 0.750 SO-"CALLED" 1.0000\n'
        "my_talk 1 3661.500 0.500 R&B\n"
    )  # fmt: skip
    assert as_ctm("x", []) == ""


def test_srt() -> None:
    assert as_srt(WORDS) == (
        '1\n00:00:00,000 --> 00:00:01,000\nA SO-"CALLED"\n'
        "\n"
        "2\n01:01:01,500 --> 01:01:02,000\nR&B\n"
    )  # fmt: skip
    assert as_srt([]) == ""


def test_vtt() -> None:
    assert as_vtt([*WORDS[:1], Word("<b>&", 0.5, 0.75)]) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:00.750\nA &lt;b&gt;&amp;\n"
    )
    assert as_vtt([]) == "WEBVTT\n"


def test_textgrid() -> None:
    assert as_textgrid([Word("A", 0.5, 1.0), Word('"', 0.9, 1.25)], 2.0) == (
        'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0\nxmax = 2.000000\ntiers? <exists>\nsize = 1\n'
        'item []:\n    item [1]:\n        class = "IntervalTier"\n        name = "words"\n        xmin = 0\n'
        "        xmax = 2.000000\n        intervals: size = 4\n"
        '        intervals [1]:\n            xmin = 0.000000\n            xmax = 0.500000\n            text = ""\n'
        '        intervals [2]:\n            xmin = 0.500000\n            xmax = 1.000000\n            text = "A"\n'
        '        intervals [3]:\n            xmin = 1.000000\n            xmax = 1.250000\n            text = """"\n'
        '        intervals [4]:\n            xmin = 1.250000\n            xmax = 2.000000\n            text = ""\n'
    )


def test_praat_reads_the_textgrid(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("grid") / "x.TextGrid"
    path.write_text(as_textgrid([Word("A", 0.5, 1.0), Word("silent", 1.0, 1.0), Word("B", 1.5, 9.0)], 2.0))
    [tier] = textgrid.openTextgrid(str(path), includeEmptyIntervals=False).tiers
    assert [(entry.start, entry.end, entry.label) for entry in tier.entries] == [(0.5, 1.0, "A"), (1.5, 2.0, "B")]


def test_captions_end_at_pauses_and_before_they_are_too_long() -> None:
    words = [Word("WORD", 0.5 * number, 0.5 * number + 0.4) for number in range(30)]
    lengths = [len(caption) for caption in captions(words)]
    assert lengths == [12, 12, 6]  # the twelfth ends 5.9 s after the first begins
    late_words = [*words[:3], Word("LATE", 3.0, 3.4)]
    assert [[word.text for word in caption] for caption in captions(late_words)] == [["WORD"] * 3, ["LATE"]]
    long_words = [Word("W" * 30, 0.1 * number, 0.1 * number + 0.1) for number in range(5)]
    assert [len(caption) for caption in captions(long_words)] == [2, 2, 1]


def test_json_has_milliseconds() -> None:
    assert Word("A", 0.12345, 1.0, 0.33333).as_json() == {"word": "A", "start": 0.123, "end": 1.0, "confidence": 0.3333}
    assert Word("A", 0.0, 1.0).as_json()["confidence"] is None
