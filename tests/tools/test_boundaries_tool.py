"""The command that measures alignments."""

import csv
from pathlib import Path

import pytest

from asr_lightning.asr import main


def write(path: Path, *starts: float) -> Path:
    ends = [*starts[1:], 2.0]
    rows = [f"u1 1 {start} {end - start} {label}\n" for start, end, label in zip(starts, ends, "SAB", strict=True)]
    path.write_text("".join(rows))
    return path


def test_table_and_picture_say_what_was_planted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = write(tmp_path / "truth.ctm", 0.0, 0.5, 1.0)
    near, far = write(tmp_path / "near.ctm", 0.0, 0.51, 1.0), write(tmp_path / "far.ctm", 0.0, 0.54, 1.1)
    assert main(["boundaries", "--truth", str(truth), str(near), str(far), "--output", str(tmp_path / "out")]) == 0
    with (tmp_path / "out" / "boundaries.csv").open() as file:
        rows = {row["alignment"]: row for row in csv.DictReader(file)}
    assert rows["near"]["≤ 20 ms %"] == "100.0" and rows["near"]["median ms"] == "5.0"
    assert rows["far"]["≤ 20 ms %"] == "0.0" and rows["far"]["≤ 50 ms %"] == "50.0"
    assert (tmp_path / "out" / "boundaries.png").read_bytes().startswith(b"\x89PNG")
    assert "near" in capsys.readouterr().out


def test_words_are_compared_with_words_put_together_from_exact_phones(tmp_path: Path) -> None:
    (tmp_path / "lexicon.txt").write_text("GO g ou\nON o n\n")
    phones = [("SIL", 0.0), ("g", 0.2), ("ou", 0.3), ("o", 0.5), ("n", 0.7), ("SIL", 0.9)]
    truth, alignment = tmp_path / "truth.ctm", tmp_path / "found.ctm"
    truth.write_text("".join(f"u1 1 {start} 0.1 {phone}\n" for phone, start in phones))
    alignment.write_text("u1 1 0.23 0.1 GO\nu1 1 0.51 0.2 ON\n")
    command = ["--truth", str(truth), str(alignment), "--output", str(tmp_path / "out"), "--lexicon"]
    assert main(["boundaries", *command, str(tmp_path / "lexicon.txt")]) == 0
    with (tmp_path / "out" / "boundaries.csv").open() as file:
        [row] = csv.DictReader(file)
    assert row["borders"] == "3"  # of two words and a pause; the first segment of an utterance begins with it
    assert (row["median ms"], row["≤ 20 ms %"]) == ("10.0", "100.0")  # only ON has something before it


def test_utterances_whose_phones_do_not_say_the_words_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lexicon.txt").write_text("GO g ou\n")
    truth, alignment = tmp_path / "truth.ctm", tmp_path / "found.ctm"
    truth.write_text("u1 1 0.0 0.1 SIL\nu1 1 0.1 0.1 n\n")
    alignment.write_text("u1 1 0.1 0.1 GO\n")
    options = ["--lexicon", str(tmp_path / "lexicon.txt"), "--output", str(tmp_path)]
    assert main(["boundaries", "--truth", str(truth), str(alignment), *options]) == 2
    assert "u1 (expected phones of 'GO', got 'n')" in capsys.readouterr().err
    with truth.open("a") as file:
        file.write("u2 1 0.0 0.1 SIL\nu2 1 0.1 0.1 g\nu2 1 0.2 0.1 ou\n")
    with alignment.open("a") as file:
        file.write("u2 1 0.0 0.1 SIL\nu2 1 0.1 0.2 GO\n")
    assert main(["boundaries", "--truth", str(truth), str(alignment), *options]) == 0
    printed = capsys.readouterr()
    assert printed.err == "left out: u1: expected phones of 'GO', got 'n'\n" and " 1 " in printed.out


def test_what_cannot_be_compared_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = write(tmp_path / "truth.ctm", 0.0, 0.5, 1.0)
    other = tmp_path / "other.ctm"
    other.write_text("u9 1 0 1 A\n")
    assert main(["boundaries", "--truth", str(truth), str(other), "--output", str(tmp_path)]) == 2
    assert "u9" in capsys.readouterr().err
    other.write_text("u1 1 0 1 x\nu1 1 1 1 y\n")
    assert main(["boundaries", "--truth", str(truth), str(other), "--output", str(tmp_path)]) == 2
    assert "expected two segments in a row with the labels of" in (errors := capsys.readouterr().err)
    assert (
        "A, B, S; found no such pair" in errors
        and "labels x, y" in errors
        and not (tmp_path / "boundaries.png").exists()
    )
    assert main(["boundaries", "--truth", str(tmp_path / "none.ctm"), str(truth), "--output", str(tmp_path)]) == 2
    assert "none.ctm" in capsys.readouterr().err
    assert main(["boundaries", "--truth", str(truth), str(truth), str(truth), "--output", str(tmp_path)]) == 2
    assert "a different name" in capsys.readouterr().err


def test_hand_made_times_of_timit_are_a_truth(tmp_path: Path) -> None:
    speaker = tmp_path / "truth" / "FAKS0"
    speaker.mkdir(parents=True)
    (speaker / "SA1.PHN").write_text("0 1600 h#\n1600 3200 tcl\n3200 4000 t\n4000 8000 ux\n8000 9600 h#\n")
    (speaker / "SA1.WRD").write_text("1600 8000 too\n8000 9600 few\n")
    (tmp_path / "phones.ctm").write_text("SA1 1 0 0.11 SIL\nSA1 1 0.11 0.1 T\nSA1 1 0.26 0.2 UW1\nSA1 1 0.51 0.1 SIL\n")
    (tmp_path / "words.ctm").write_text("SA1 1 0.1 0.41 TOO\nSA1 1 0.51 0.1 FEW\n")
    for tier, borders in (("phones", "3"), ("words", "1")):
        command = ["--truth", str(tmp_path / "truth"), str(tmp_path / f"{tier}.ctm"), "--tier", tier]
        assert main(["boundaries", *command, "--output", str(tmp_path / tier)]) == 0
        with (tmp_path / tier / "boundaries.csv").open() as file:
            [row] = csv.DictReader(file)
        assert (row["borders"], row["median ms"], row["matched %"]) == (borders, "10.0", "100.0")
