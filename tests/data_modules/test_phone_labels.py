from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from praatio import textgrid

from asr_lightning.errors import InputError
from asr_lightning.text.phones import Segment
from data_modules.phone_labels import CTMLabels, TextGridLabels, TIMITLabels
from data_modules.spoken import synthesize


def test_lines_of_a_ctm_wherever_they_are(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.ctm").write_text(";; a comment\nu1 1 0.00 0.25 SIL\nu1 1 0.25 0.10 AH\nu2 1 0 1 B 0.9\n")
    (tmp_path / "two.ctm").write_text("u3 A 0.5 0.5 S\n\nu1 1 0.35 0.25 T\n")
    labels = CTMLabels(str(tmp_path))
    assert labels.segments("u1") == [Segment(0.0, 0.25, "SIL"), Segment(0.25, 0.35, "AH"), Segment(0.35, 0.6, "T")]
    assert labels.segments("u2") == [Segment(0.0, 1.0, "B")]
    assert labels.segments("u3") == [Segment(0.5, 1.0, "S")]
    assert labels.segments("nobody") == []
    assert CTMLabels(str(tmp_path / "two.ctm")).segments("u2") == []


def test_phones_are_taken_where_they_stand_beside_words(tmp_path: Path) -> None:
    """As `asr align` writes them."""
    (tmp_path / "test-clean.phones.ctm").write_text("u 1 0 0.1 B\nu 1 0.1 0.1 IY\n")
    (tmp_path / "test-clean.words.ctm").write_text("u 1 0 0.2 BE\n")
    labels = CTMLabels(str(tmp_path))
    labels.require()
    assert labels.segments("u") == [Segment(0.0, 0.1, "B"), Segment(0.1, 0.2, "IY")]


@pytest.mark.parametrize("labels", [CTMLabels, TextGridLabels])
def test_the_command_that_makes_missing_labels_is_named(
    tmp_path: Path, labels: type[CTMLabels | TextGridLabels]
) -> None:
    with pytest.raises(InputError, match=f"{tmp_path}.*make them with `asr align`"):
        labels(str(tmp_path)).require()
    with pytest.raises(InputError, match="make them with `make labels`"):
        labels(str(tmp_path), made_by="make labels").require()


@pytest.mark.parametrize("line", ["u 1 0.5 0.1", "u 1 half 0.1 A", "u 1 0.5 -0.1 A", "u 1 nan 0.1 A", "u 1 0 1_0 A"])
def test_a_line_that_is_none_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "odd.ctm").write_text(line + "\n")
    with pytest.raises(InputError, match=r"odd.ctm: expected `UTTERANCE CHANNEL START DURATION PHONE`"):
        CTMLabels(str(tmp_path)).segments("u")


def test_the_embedded_corpus_tells_its_phones(tmp_path: Path) -> None:
    synthesize(tmp_path / "spoken", minutes=0.2, evaluation_minutes=0.05, progress=False)
    labels = CTMLabels(str(tmp_path / "spoken"))
    names = [path.stem for path in (tmp_path / "spoken").rglob("*.flac")]
    for name in names:
        segments = labels.segments(name)
        assert segments[0].start == 0.0 and {segments[0].label, segments[-1].label} == {"SIL"}
        assert all(left.end == pytest.approx(right.start, abs=1e-6) for left, right in pairwise(segments))


def test_text_grids_in_both_of_praats_formats(tmp_path: Path) -> None:
    for name, kind in (("u1", "long_textgrid"), ("u2", "short_textgrid")):
        grid = textgrid.Textgrid()
        grid.addTier(textgrid.IntervalTier("words", [(0.1, 0.9, 'hé "so"')], 0, 1.0))
        grid.addTier(textgrid.IntervalTier("phones", [(0.1, 0.4, "HH"), (0.4, 0.9, "EY1")], 0, 1.0))
        (tmp_path / name).mkdir()
        grid.save(str(tmp_path / name / f"{name}.TextGrid"), kind, includeBlankSpaces=True)
        expected = [
            Segment(0.0, 0.1, "SIL"),
            Segment(0.1, 0.4, "HH"),
            Segment(0.4, 0.9, "EY1"),
            Segment(0.9, 1.0, "SIL"),
        ]
        assert TextGridLabels(str(tmp_path)).segments(name) == expected
    assert TextGridLabels(str(tmp_path)).segments("u3") == []
    with pytest.raises(InputError, match=r"expected a tier 'sounds', found words, phones"):
        TextGridLabels(str(tmp_path), tier="sounds").segments("u1")


def test_an_utterance_in_two_files_is_not_taken_from_one_of_them(tmp_path: Path) -> None:
    for speaker, end in (("s1", 0.4), ("s2", 0.7)):
        (tmp_path / speaker).mkdir()
        grid = textgrid.Textgrid()
        grid.addTier(textgrid.IntervalTier("phones", [(0.0, end, "A")], 0, end))
        grid.save(str(tmp_path / speaker / "0001.TextGrid"), "long_textgrid", includeBlankSpaces=True)
        (tmp_path / speaker / "x.ctm").write_text(f"0001 1 0.0 {end} A\n")
    with pytest.raises(InputError, match=r"one file of 0001, found .*s1/0001.TextGrid and .*s2/0001.TextGrid"):
        TextGridLabels(str(tmp_path)).segments("0001")
    assert TextGridLabels(str(tmp_path)).segments("s2-0001") == [Segment(0.0, 0.7, "A")]
    assert TextGridLabels(str(tmp_path)).segments("s3-0001") == []
    with pytest.raises(InputError, match=r"0001 is in .*s1/x.ctm and in .*s2/x.ctm with different times"):
        CTMLabels(str(tmp_path)).segments("0001")


def test_no_files_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no phone labels at"):
        CTMLabels(str(tmp_path)).segments("u")
    with pytest.raises(InputError, match=r"no \*.TextGrid in"):
        TextGridLabels(str(tmp_path)).segments("u")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200), kept=st.floats(0, 1))
def test_broken_files_end_in_a_message(tmp_path: Path, content: bytes, kept: float) -> None:
    grid = textgrid.Textgrid()
    grid.addTier(textgrid.IntervalTier("phones", [(0.1, 0.4, "HH"), (0.4, 0.9, "EY1")], 0, 1.0))
    path = tmp_path / "u.TextGrid"
    grid.save(str(path), "long_textgrid", includeBlankSpaces=True)
    complete = path.read_bytes()
    cut = int(kept * len(complete))
    for broken in (content, complete[:cut], complete[:cut] + content + complete[cut:]):
        path.write_bytes(broken)
        try:
            assert isinstance(TextGridLabels(str(tmp_path)).segments("u"), list)
        except InputError as error:
            assert "u.TextGrid" in str(error)
    (tmp_path / "u.ctm").write_bytes(b"u " + content)
    try:
        assert isinstance(CTMLabels(str(tmp_path)).segments("u"), list)
    except InputError as error:
        assert "u.ctm" in str(error)


def two_speakers(folder: Path, second: list[tuple[float, float, str]]) -> TextGridLabels:
    grid = textgrid.Textgrid()
    grid.addTier(textgrid.IntervalTier("anna - phones", [(0.1, 0.3, "HH"), (0.3, 0.4, "AY1"), (0.4, 0.5, "sil")], 0, 1))
    grid.addTier(textgrid.IntervalTier("ben - phones", second, 0, 1))
    grid.save(str(folder / "u.TextGrid"), "long_textgrid", includeBlankSpaces=True)
    return TextGridLabels(str(folder))


def test_phones_of_all_speakers_are_kept(tmp_path: Path) -> None:
    assert two_speakers(tmp_path, [(0.4, 0.6, "B"), (0.8, 1.0, "AY1")]).segments("u") == [
        Segment(0.0, 0.1, "SIL"), Segment(0.1, 0.3, "HH"), Segment(0.3, 0.4, "AY1"), Segment(0.4, 0.6, "B"),
        Segment(0.6, 0.8, "SIL"), Segment(0.8, 1.0, "AY1"),
    ]  # fmt: skip
    only = TextGridLabels(str(tmp_path), "ben - phones").segments("u")
    assert [segment.label for segment in only] == ["SIL", "B", "SIL", "AY1"]


def test_speakers_at_once_are_asked_about(tmp_path: Path) -> None:
    labels = two_speakers(tmp_path, [(0.2, 0.6, "B")])
    with pytest.raises(InputError, match=r"found HH and B at 0.2 s in the tiers anna - phones, ben - phones: give one"):
        labels.segments("u")


def test_labels_of_timit_are_folded(tmp_path: Path) -> None:
    folder = tmp_path / "TEST" / "DR1" / "FAKS0"
    folder.mkdir(parents=True)
    (folder / "SA1.PHN").write_text(
        "0 1600 h#\n1600 3200 epi\n3200 4800 tcl\n4800 5600 t\n5600 8000 ax-h\n8000 9600 dcl\n9600 11200 jh\n"
        "11200 12800 kcl\n12800 14400 dx\n14400 16000 pau\n"
    )
    (folder / "SA1.WRD").write_text("3200 8000 to\n")
    phones = TIMITLabels(str(tmp_path)).segments("SA1")
    assert phones == [
        Segment(0.0, 0.2, "SIL"),
        Segment(0.2, 0.35, "T"),
        Segment(0.35, 0.5, "AH"),
        Segment(0.5, 0.7, "JH"),
        Segment(0.7, 0.8, "K"),
        Segment(0.8, 0.9, "DX"),
        Segment(0.9, 1.0, "SIL"),
    ]
    words = TIMITLabels(str(tmp_path), "words")
    assert words.segments("FAKS0-SA1") == [Segment(0.2, 0.5, "TO")] and words.segments("FAKS0-SA2") == []
    (folder / "SA1.PHN").write_text("0 1600 h#\n100 50 t\n")
    with pytest.raises(InputError, match="SA1.PHN: expected segments in the order of time, got '100 50 t'"):
        TIMITLabels(str(tmp_path)).segments("SA1")
    with pytest.raises(InputError, match="expected one of phones, words"):
        TIMITLabels(str(tmp_path), "sounds")
