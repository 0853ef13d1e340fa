import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from asr_lightning.asr import main
from asr_lightning.models.checkpoints import load_recognizer
from asr_lightning.tools import transcription
from asr_lightning.tools.prepared_recognizer import keep_hypotheses
from asr_lightning.tools.transcript_files import FORMATS
from tests.support.recordings import Recordings, sweep


@pytest.fixture
def bad_files(tmp_path: Path) -> dict[str, Path]:
    """Files that cannot be used, by the reason in the error."""
    names = ("nothing.wav", "zero.wav", "silent.wav", "text.wav", "x.raw", "nan.wav", "cut.flac")
    missing, zero, silent, text, raw, nan, cut = (tmp_path / name for name in names)
    zero.touch()
    soundfile.write(silent, np.zeros(0), 16_000)
    text.write_text("This is no audio.\n" * 50)
    raw.write_bytes(bytes(3200))
    soundfile.write(nan, np.array([0.0, np.nan, 0.1] * 1000, np.float32), 16_000, subtype="FLOAT")
    soundfile.write(cut, sweep(1, 16_000, 1), 16_000)
    cut.write_bytes(cut.read_bytes()[:20])
    return {
        "No such file": missing,
        "the file is empty": zero,
        "there is no audio in the file": silent,
        "expected a sound file that libsndfile reads, as WAV": text,
        "expected a sound file": raw,
        "infinite or not a number": nan,
        "expected a sound file that": cut,
    }


def run(checkpoint: Path, *arguments: Any) -> int:
    return main(["transcribe", "--checkpoint", str(checkpoint), "--device", "cpu", *map(str, arguments)])


def test_the_command_transcribes_every_format_in_order_and_names_what_is_bad(
    checkpoint: Path, recordings: Recordings, expected_texts: dict[str, str], tmp_path: Path
) -> None:
    korean = os.fsdecode("한국어".encode("cp949") + b".wav")  # a name that is no UTF-8
    soundfile_content = recordings["read.flac"].read_bytes()
    (tmp_path / korean).write_bytes(soundfile_content)
    paths = [str(path) for path in recordings.values()]
    paths[2:2] = [str(tmp_path / "nothing.wav")]
    paths += [str(tmp_path / korean)]
    command = [sys.executable, "-m", "asr_lightning.tools.transcribe", "--checkpoint", str(checkpoint), *paths]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}
    result = subprocess.run(command, capture_output=True, timeout=120, env=environment)
    assert result.returncode == 1, result.stderr
    expected = [f"{path}\t{expected_texts[name]}" for name, path in recordings.items()]
    expected.append(f"{tmp_path / korean}\t{expected_texts['read.flac']}")
    assert os.fsdecode(result.stdout).splitlines() == expected
    assert os.fsdecode(result.stderr).splitlines() == [f"{tmp_path / 'nothing.wav'}: No such file or directory"]


def test_bad_files_are_named_with_the_reason_and_the_rest_goes_on(
    checkpoint: Path,
    recordings: Recordings,
    expected_texts: dict[str, str],
    bad_files: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = recordings["read.flac"]
    assert run(checkpoint, good, *bad_files.values(), good) == 1
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [f"{good}\t{expected_texts['read.flac']}"] * 2
    assert len(printed.err.splitlines()) == len(bad_files)
    for line, (reason, path) in zip(printed.err.splitlines(), bad_files.items(), strict=True):
        assert line.startswith(f"{path}: ")
        assert reason in line
    assert run(checkpoint, good) == 0


def test_folders_and_lists_are_written_into_a_folder_once(
    checkpoint: Path,
    recordings: Recordings,
    expected_texts: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "talks" / "day 1").mkdir(parents=True)
    (tmp_path / "talks" / "notes.txt").write_text("no audio")
    for name, target in (("read.flac", "day 1/a.flac"), ("talk.ogg", "b.OGG")):
        (tmp_path / "talks" / target).write_bytes(recordings[name].read_bytes())
    (tmp_path / "list.txt").write_text(f"{recordings['song.mp3']}\n\n")
    out = tmp_path / "out"
    arguments = [tmp_path / "talks", "--list", tmp_path / "list.txt", "--output", out, "--formats", *FORMATS]
    assert run(checkpoint, *arguments, "--n-best", "3") == 0
    names = {"day 1/a": "read.flac", "b": "talk.ogg", "song": "song.mp3"}
    assert {str(path.relative_to(out)) for path in out.rglob("*.*")} == {
        f"{name}.{ending}" for name in names for ending in FORMATS
    }
    beam = load_recognizer(checkpoint)
    keep_hypotheses(beam, 3)
    for name, recording in names.items():
        content = json.loads((out / f"{name}.json").read_text())
        [expected] = transcription.transcribe(beam, [str(recordings[recording])], 9.0)
        assert content["text"] == expected.text == (out / f"{name}.txt").read_text().rstrip("\n")
        assert content["words"] == [word.as_json() for word in expected.words]
        assert [hypothesis["text"] for hypothesis in content["pieces"][0]["n_best"]] == [
            hypothesis.text for hypothesis in expected.parts[0].hypotheses
        ]
        assert len(content["pieces"][0]["n_best"]) == 3
        assert len((out / f"{name}.ctm").read_text().splitlines()) == len(expected.words)
        assert (out / f"{name}.TextGrid").read_text().count('text = "') >= len({w.text for w in expected.words})

    capsys.readouterr()
    (out / "b.srt").unlink()
    (out / "song.txt").write_text("kept")
    asked: list[str] = []
    original = transcription.read_pieces
    monkeypatch.setattr(transcription, "read_pieces", lambda path, *rest: asked.append(path) or original(path, *rest))
    assert run(checkpoint, *arguments) == 0
    assert asked == [str(tmp_path / "talks" / "b.OGG")] and (out / "b.srt").exists()
    assert (out / "song.txt").read_text() == "kept"
    assert "2 of 3 files have their transcripts" in capsys.readouterr().err
    assert run(checkpoint, *arguments, "--overwrite") == 0
    assert len(asked) == 4 and (out / "song.txt").read_text() != "kept"


def test_streams_of_other_formats(
    checkpoint: Path, recordings: Recordings, expected_texts: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [recordings["read.flac"], recordings["talk.ogg"]]
    assert run(checkpoint, *paths, "--formats", "json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["path"], line["text"]) for line in lines] == [
        (str(path), expected_texts[path.name]) for path in paths
    ]
    assert [line["seconds"] for line in lines] == [0.8, 2.0]
    assert run(checkpoint, *paths, "--formats", "ctm") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[4] for row in rows] == [word["word"] for line in lines for word in line["words"]]
    assert {row[0] for row in rows} == {"read", "talk"}


def test_confidences_are_calibrated(
    checkpoint: Path, recordings: Recordings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.json").write_text('{"temperature": 2.0}')
    words = []
    for options in ([], ["--calibration", tmp_path / "c.json"]):
        assert run(checkpoint, recordings["talk.ogg"], "--formats", "json", "--confidence", "mean", *options) == 0
        words.append(json.loads(capsys.readouterr().out)["words"])
    for plain, calibrated in zip(*words, strict=True):
        odds = plain["confidence"] / (1 - plain["confidence"])
        assert calibrated["confidence"] == pytest.approx(odds**0.5 / (1 + odds**0.5), abs=2e-3)
        assert {**plain, "confidence": 0} == {**calibrated, "confidence": 0}
    assert run(checkpoint, recordings["talk.ogg"], "--calibration", tmp_path / "none.json") == 2
    assert "cannot read the calibration" in capsys.readouterr().err


def test_options_that_do_not_fit_together_are_refused(
    checkpoint: Path, recordings: Recordings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = recordings["read.flac"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "copy").mkdir()
    copy = tmp_path / "copy" / "read.wav"
    copy.write_bytes(good.read_bytes())
    for arguments, message in (
        ([], "expected audio files, folders or a --list"),
        ([good, "--formats", "srt"], "expected an --output folder"),
        ([good, "--formats", "txt", "json"], "expected an --output folder"),
        ([good, "--n-best", "2"], "only --formats json"),
        ([tmp_path / "empty"], "expected a folder with sound files"),
        ([good, tmp_path / "empty"], "expected a folder with sound files"),
        ([good, copy, "--output", tmp_path / "out"], "would both be written to"),
        (["--list", tmp_path / "none.txt"], "cannot read"),
    ):
        assert run(checkpoint, *arguments) == 2, arguments
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
