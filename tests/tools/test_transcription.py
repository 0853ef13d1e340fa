import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from asr_lightning.batch import Batch, Utterance
from asr_lightning.models.recognizer import Recognized, Recognizer
from asr_lightning.tools import audio_pieces, transcription
from asr_lightning.tools.audio_pieces import read_pieces
from asr_lightning.tools.transcript_files import Transcript
from asr_lightning.tools.transcription import batch_pieces
from tests.support.recordings import Recordings, sweep


def test_batches_of_any_size_say_the_same_in_the_same_order(
    recognizer: Recognizer, recordings: Recordings, expected_texts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    recognize = recognizer.recognize_words
    monkeypatch.setattr(
        recognizer, "recognize_words", lambda batch, pooling: sizes.append(len(batch)) or recognize(batch, pooling)
    )
    names = [*recordings, *reversed(recordings)]
    for seconds, largest in ((0.001, 1), (3.0, 3), (100.0, 14)):
        sizes.clear()
        results = list(transcription.transcribe(recognizer, (str(recordings[name]) for name in names), seconds))
        assert [(result.path, result.text) for result in results] == [
            (str(recordings[name]), expected_texts[name]) for name in names
        ]
        assert all(" ".join(word.text for word in result.words) == result.text for result in results)
        assert sum(sizes) == len(names)
        assert (max(sizes) >= largest) if seconds > 1 else (max(sizes) == 1)


def test_files_are_read_only_a_few_batches_ahead(recognizer: Recognizer, recordings: Recordings) -> None:
    asked: list[int] = []

    def many() -> Iterator[str]:
        for number in range(20):
            asked.append(number)
            yield str(recordings["read.flac"])  # 0.8 s

    texts = transcription.transcribe(recognizer, many(), batch_seconds=1.5)
    next(texts)
    assert len(asked) == 8  # the first to reach 4 batches of 1.5 s
    next(texts)
    assert len(asked) == 8
    assert len(list(texts)) == 18


def test_batches_hold_similar_lengths_within_the_limit() -> None:
    seconds = [5.0, 1.0, 30.0, 1.2, 4.5, 1.1, 5.0]
    batches = batch_pieces(seconds, 10.0)
    assert sorted(number for batch in batches for number in batch) == list(range(7))
    assert all(len(batch) == 1 or len(batch) * max(seconds[n] for n in batch) <= 10.0 for batch in batches)
    assert [sorted(batch) for batch in batches] == [[0, 4], [1, 3, 5], [2], [6]]
    assert batch_pieces([], 10.0) == []


def test_the_transcript_of_a_long_file_is_that_of_its_pieces_in_order(
    recognizer: Recognizer,
    recordings: Recordings,
    expected_texts: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (audio_pieces, transcription):
        monkeypatch.setattr(module, "OVERLAP_SECONDS", 0.0)
    long = tmp_path / "long.wav"
    soundfile.write(long, np.concatenate([sweep(0.7, 16_000, seed) for seed in range(6)]), 16_000)
    pieces = list(read_pieces(str(long), 16_000, 2.0))
    hypotheses = [
        recognizer.recognize_words(Batch.collate([Utterance("", piece.audio, 16_000)]))[0][0] for piece in pieces
    ]
    texts = [hypothesis.text for hypothesis in hypotheses]
    assert len(texts) > 1 and len(set(texts)) == len(texts)
    paths = [str(recordings["read.flac"]), str(long), str(recordings["talk.ogg"]), str(long)]
    results = list(transcription.transcribe(recognizer, paths, 2.0, piece_seconds=2.0))
    assert [result.path for result in results] == paths and not any(result.problem for result in results)
    assert [result.text for result in results][::2] == [expected_texts["read.flac"], expected_texts["talk.ogg"]]
    timed = [[(word.text, word.start, word.end) for word in result.words] for result in results[1::2]]
    assert timed[0] == timed[1] and results[1].text == results[3].text
    assert results[1].seconds == pytest.approx(4.2)
    assert [part.start for part in results[1].parts] == [piece.start for piece in pieces]
    middles = [(word.start + word.end) / 2 for word in results[1].words]
    assert middles == sorted(middles) and middles[-1] > pieces[-1].start
    shift = pieces[-1].start
    assert {(w.text, round(w.start + shift, 6)) for w in hypotheses[-1].words if w.start > 0.3} <= {
        (word.text, round(word.start, 6)) for word in results[1].words
    }


@pytest.mark.parametrize("name", ["song.mp3", "talk.ogg", "read.flac", "telephone.wav"])
def test_a_file_that_is_cut_off_is_named_and_has_no_transcript(
    recognizer: Recognizer, recordings: Recordings, expected_texts: dict[str, str], tmp_path: Path, name: str
) -> None:
    cut = tmp_path / name
    cut.write_bytes(recordings[name].read_bytes()[: recordings[name].stat().st_size * 8 // 10])
    good = str(recordings["read.flac"])
    results = list(transcription.transcribe(recognizer, [good, str(cut), good], 100.0))
    bad, *others = sorted(results, key=lambda result: not result.problem)

    assert [result.text for result in others] == [expected_texts["read.flac"]] * 2
    assert bad.path == str(cut) and "cut off" in bad.problem and not bad.text


def test_a_long_file_that_breaks_in_its_middle_does_not_end_the_others(
    recognizer: Recognizer,
    recordings: Recordings,
    expected_texts: dict[str, str],
    tmp_path: Path,
) -> None:
    audio = sweep(5.0, 16_000, 1).astype(np.float32)
    audio[4 * 16_000] = 1e19
    soundfile.write(tmp_path / "loud.wav", audio, 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "cut.flac", audio.clip(-1, 1), 16_000)
    content = (tmp_path / "cut.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(content[: len(content) * 9 // 10])
    good = str(recordings["read.flac"])
    paths = [good, str(tmp_path / "loud.wav"), good, str(tmp_path / "cut.flac"), good]
    results = list(transcription.transcribe(recognizer, paths, 0.5, piece_seconds=1.0))
    assert [result.text for result in results if not result.problem] == [expected_texts["read.flac"]] * 3
    problems = {Path(result.path).name: result.problem for result in results if result.problem}
    assert "samples of up to 1e+19" in problems["loud.wav"] and "cut off" in problems["cut.flac"]


def test_a_batch_that_does_not_fit_into_memory_is_halved(
    recognizer: Recognizer, recordings: Recordings, expected_texts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recognize = recognizer.recognize_words
    long = soundfile.info(recordings["talk.ogg"]).duration

    def with_little_memory(batch: Batch, pooling: Any) -> Recognized:
        if len(batch) > 2 or batch.seconds > long - 0.1:
            raise torch.OutOfMemoryError("no memory")
        return recognize(batch, pooling)

    monkeypatch.setattr(recognizer, "recognize_words", with_little_memory)
    results = {
        Path(result.path).name: result
        for result in transcription.transcribe(recognizer, map(str, recordings.values()), 99)
    }
    assert "2 s are too long for the memory" in results.pop("talk.ogg").problem
    assert {name: result.text for name, result in results.items()} == {
        name: text for name, text in expected_texts.items() if name != "talk.ogg"
    }


def test_other_failures_of_the_recognizer_are_not_hidden(
    recognizer: Recognizer, recordings: Recordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(batch: Batch, pooling: Any) -> Recognized:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(recognizer, "recognize_words", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        list(transcription.transcribe(recognizer, [str(recordings["read.flac"])], 99))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_a_terminal_only(
    recognizer: Recognizer,
    recordings: Recordings,
    expected_texts: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
) -> None:
    errors = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    written: list[Transcript] = []
    paths = [str(recordings["read.flac"])]
    assert transcription.write_transcripts(
        lambda count: transcription.transcribe(recognizer, paths, 100.0, report_seconds=count), 1, written.append
    )
    assert [transcript.text for transcript in written] == [expected_texts["read.flac"]]
    assert ("1/1" in errors.getvalue()) == ("0.0 min of audio read" in errors.getvalue()) == terminal
