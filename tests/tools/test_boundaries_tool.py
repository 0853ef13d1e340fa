"""The command that measures alignments."""

import csv
from pathlib import Path

import pytest

from asr_lightning.tools.boundaries import main


def write(path: Path, *starts: float) -> Path:
    ends = [*starts[1:], 2.0]
    rows = [f"u1 1 {one} {two - one} {label}\n" for one, two, label in zip(starts, ends, "SAB", strict=True)]
    path.write_text("".join(rows))
    return path


def test_table_and_picture_say_what_was_planted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = write(tmp_path / "truth.ctm", 0.0, 0.5, 1.0)
    near, far = write(tmp_path / "near.ctm", 0.0, 0.51, 1.0), write(tmp_path / "far.ctm", 0.0, 0.54, 1.1)
    assert main(["--truth", str(truth), str(near), str(far), "--output", str(tmp_path / "out")]) == 0
    with (tmp_path / "out" / "boundaries.csv").open() as file:
        rows = {row["alignment"]: row for row in csv.DictReader(file)}
    assert rows["near"]["≤ 20 ms %"] == "100.0" and rows["near"]["median ms"] == "5.0"
    assert rows["far"]["≤ 20 ms %"] == "0.0" and rows["far"]["≤ 50 ms %"] == "50.0"
    assert (tmp_path / "out" / "boundaries.png").read_bytes().startswith(b"\x89PNG")
    assert "near" in capsys.readouterr().out


def test_what_cannot_be_compared_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = write(tmp_path / "truth.ctm", 0.0, 0.5, 1.0)
    other = tmp_path / "other.ctm"
    other.write_text("u9 1 0 1 A\n")
    assert main(["--truth", str(truth), str(other), "--output", str(tmp_path)]) == 2
    assert "u9" in capsys.readouterr().err
    assert main(["--truth", str(tmp_path / "none.ctm"), str(truth), "--output", str(tmp_path)]) == 2
    assert "none.ctm" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--truth", str(truth), str(truth), str(truth), "--output", str(tmp_path)])
    assert "a different name" in capsys.readouterr().err
