import io
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import soundfile
import torch

from asr_lightning.asr import main
from asr_lightning.audio import reading
from asr_lightning.audio.resampling import resample
from asr_lightning.batch import Batch, Utterance
from asr_lightning.errors import InputError
from asr_lightning.models.checkpoints import build_recognizer, load_recognizer
from asr_lightning.models.recognizer import Recognized, Recognizer
from asr_lightning.nn.int8 import Int8Linear, use_int8
from asr_lightning.tools import transcription
from asr_lightning.tools.transcript_files import FORMATS, Transcript
from asr_lightning.tools.transcription import batch_pieces, cut_at_pauses, read_pieces

Recordings = dict[str, Path]


def sweep(seconds: float, rate: int, seed: int, channels: int = 1) -> np.ndarray:
    """Tones that come and go: (S,), or (S, channels)."""
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate))[:, None] / rate
    pitches = random.uniform(100, 1500, size=channels)
    audio = 0.3 * np.sin(2 * np.pi * (pitches * time + 200 * time**2)) + 0.02 * random.standard_normal(time.shape)
    return audio[:, 0] if channels == 1 else audio


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Recordings:
    folder = tmp_path_factory.mktemp("recordings")
    audio_files = {
        "telephone.wav": (sweep(1.4, 8_000, 1), 8_000),
        "stereo.wav": (sweep(0.5, 44_100, 2, channels=2), 44_100),
        "song.mp3": (sweep(1.1, 44_100, 3, channels=2), 44_100),
        "talk.ogg": (sweep(2.0, 48_000, 4), 48_000),
        "read.flac": (sweep(0.8, 16_000, 5), 16_000),
        "click.wav": (sweep(0.004, 16_000, 6), 16_000),  # less than one window
        "old.aiff": (sweep(0.6, 22_254, 7), 22_254),  # a Macintosh of 1984
    }
    for name, (audio, rate) in audio_files.items():
        soundfile.write(folder / name, audio, rate)
    return {name: folder / name for name in audio_files}


@pytest.fixture(scope="module")
def recognizer(checkpoint: Path) -> Recognizer:
    return load_recognizer(checkpoint)


@pytest.fixture(scope="module")
def expected_texts(recognizer: Recognizer, recordings: Recordings) -> dict[str, str]:
    """The transcript of each file alone, resampled here."""
    texts = {}
    for name, path in recordings.items():
        audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
        resampled = torch.from_numpy(resample(audio.mean(axis=1), rate, 16_000))
        texts[name] = recognizer.transcribe(Batch.collate([Utterance(name, resampled, 16_000)]))[0]
    assert len(set(texts.values())) == len(texts), "the test needs a recognizer that tells the files apart"
    return texts


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


def test_audio_is_mixed_and_resampled(recordings: Recordings, tmp_path: Path) -> None:
    audio, _ = soundfile.read(recordings["stereo.wav"], dtype="float32")
    expected = torch.from_numpy(resample(audio.mean(axis=1), 44_100, 16_000))
    torch.testing.assert_close(next(read_pieces(str(recordings["stereo.wav"]), 16_000)).audio, expected)
    tone = np.sin(2 * np.pi * 440 * np.arange(22_254) / 22_254)
    soundfile.write(tmp_path / "tone.wav", tone, 22_254, subtype="FLOAT")
    [resampled] = read_pieces(str(tmp_path / "tone.wav"), 16_000)
    assert abs(len(resampled.audio) - 16_000) <= 1
    expected_tone = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(resampled.audio.numpy()[500:15_500], expected_tone[500:15_500], atol=5e-3)


def test_long_files_are_read_in_blocks_without_a_seam(recordings: Recordings, monkeypatch: pytest.MonkeyPatch) -> None:
    [whole] = read_pieces(str(recordings["song.mp3"]), 16_000)
    monkeypatch.setattr(reading, "BLOCK_SAMPLES", 1_000)
    [in_blocks] = read_pieces(str(recordings["song.mp3"]), 16_000)
    torch.testing.assert_close(in_blocks.audio, whole.audio)


def spoken(seconds: list[float], pause: float = 0.5) -> np.ndarray:
    """Noise (S,) of so many seconds each, with pauses of a little noise between."""
    random = np.random.default_rng(3)
    parts = [part for length in seconds for part in ((length, 0.3), (pause, 1e-3))]
    return np.concatenate([level * random.standard_normal(round(16_000 * length)) for length, level in parts])


def test_a_long_file_is_cut_at_its_pauses(tmp_path: Path) -> None:
    lengths = [15.0, 14.0, 12.0, 16.0, 15.0, 5.0]
    audio = spoken(lengths).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", audio, 16_000, subtype="FLOAT")
    pieces = list(read_pieces(str(tmp_path / "long.wav"), 16_000))
    borders = [piece.border for piece in pieces[:-1]]
    assert len(pieces) == 3 and pieces[-1].border == float("inf")
    assert [piece.start for piece in pieces] == [0.0, *(border - 2.0 for border in borders)]
    for piece, border in zip(pieces, [*borders, len(audio) / 16_000 - 2.0], strict=True):
        first, last = round(16_000 * piece.start), round(16_000 * (border + 2.0))
        np.testing.assert_array_equal(piece.audio.numpy(), audio[first:last])  # 2 s to each side of a cut
        assert piece.seconds == len(piece.audio) / 16_000
    pauses = np.cumsum([length + 0.5 for length in lengths]) - 0.25
    for border in borders:
        assert np.abs(pauses - border).min() < 0.16  # within the pause
    soundfile.write(tmp_path / "short.wav", audio[: 42 * 16_000], 16_000, subtype="FLOAT")
    assert len(list(read_pieces(str(tmp_path / "short.wav"), 16_000))) == 1


def test_every_sample_is_in_a_piece_however_blocks_and_overlaps_fall(monkeypatch: pytest.MonkeyPatch) -> None:
    audio = spoken([0.3, 0.7, 0.2, 0.5, 1.1, 0.4, 0.6], pause=0.05)
    for overlap in (0.0, 0.2, 0.7):
        monkeypatch.setattr(transcription, "OVERLAP_SECONDS", overlap)
        for size in (700, 9_000, 10**6):
            blocks = [audio[begin : begin + size] for begin in range(0, len(audio), size)]
            previous = 0
            for piece, start, border in cut_at_pauses(blocks, 16_000, 1.0):
                np.testing.assert_array_equal(piece, audio[start : start + len(piece)])
                assert start == max(0, previous - round(16_000 * overlap))
                end = len(audio) if border is None else border
                assert 0.5 <= (end - previous) / 16_000 <= 1.0 or border is None
                previous = end
            assert previous == len(audio)


def test_the_transcript_of_a_long_file_is_that_of_its_pieces_in_order(
    recognizer: Recognizer,
    recordings: Recordings,
    expected_texts: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transcription, "OVERLAP_SECONDS", 0.0)
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


def test_long_silence_is_read_in_little_memory(tmp_path: Path) -> None:
    with soundfile.SoundFile(tmp_path / "silence.flac", "w", 8_000, 1) as file:
        for _ in range(20):
            file.write(np.zeros(8_000 * 60, np.int16))  # hours take as much memory, and longer
    tracemalloc.start()
    pieces = list(read_pieces(str(tmp_path / "silence.flac"), 16_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(len(piece.audio) > 0 for piece in pieces) == 1
    assert pieces[-1].start + pieces[-1].seconds == 1200.0
    assert peak < 14e6  # all of it would be 38 MB, and 77 MB at 16 kHz


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


def test_a_rate_that_is_none_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "slow.wav", np.zeros(100), 20)
    with pytest.raises(InputError, match="samples per second, its header says 20"):
        list(read_pieces(str(tmp_path / "slow.wav"), 16_000))


def test_the_beam_is_replaced_where_there_is_one(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert transcription.prepare_recognizer(checkpoint, "cpu", None).search.beam == 1
    assert transcription.prepare_recognizer(checkpoint, "cpu", 3).search.beam == 3
    with pytest.raises(SystemExit, match="2"):
        run(checkpoint, "--beam", "0", "a.wav")
    assert "argument --beam: invalid whole number from 1 value: '0'" in capsys.readouterr().err


def test_what_the_recognizer_cannot_do_is_an_error(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load_without_beam(path: Path, experiment: dict[str, Any] | None) -> Recognizer:
        recognizer = load_recognizer(path, experiment)
        del recognizer.search
        return recognizer

    monkeypatch.setattr(transcription, "load_recognizer", load_without_beam)
    assert run(checkpoint, "--beam", "2", "a.wav") == 2
    assert "--beam: a RNNTransducer has no beam" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="--device cuda: torch finds no GPU"):
        transcription.prepare_recognizer(checkpoint, "cuda", None)


def test_weights_of_8_bits_are_an_option(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="RNNTransducer has no linear layers of 16,384 weights"):  # it is tiny
        transcription.prepare_recognizer(checkpoint, "auto", None, int8=True)
    monkeypatch.setattr(transcription, "use_int8", partial(use_int8, least_weights=0))
    recognizer = transcription.prepare_recognizer(checkpoint, "auto", None, int8=True)
    assert any(isinstance(module, Int8Linear) for module in recognizer.modules())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert transcription.prepare_recognizer(checkpoint, "auto", None, int8=True).device.type == "cpu"
    with pytest.raises(InputError, match="--int8: expected --device cpu"):
        transcription.prepare_recognizer(checkpoint, "cuda", None, int8=True)
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 8_000), 16_000)
    assert run(checkpoint, "--int8", "--device", "cpu", str(tmp_path / "a.wav")) == 0


def remove_class(content: dict[str, Any]) -> None:
    del content["hyper_parameters"]["_class_path"]


def remove_weights(content: dict[str, Any]) -> None:
    del content["state_dict"]


def change_shape(content: dict[str, Any]) -> None:
    content["hyper_parameters"]["joint_dimension"] = 9


def misfit_encoder(content: dict[str, Any]) -> None:
    content["hyper_parameters"]["features"] = {
        "class_path": "asr_lightning.audio.features.LogMel",
        "init_args": {"mels": 10},
    }


@pytest.mark.parametrize("spoil", [remove_class, remove_weights, change_shape, misfit_encoder])
def test_a_checkpoint_of_something_else_is_an_error(
    checkpoint: Path, tmp_path: Path, spoil: Callable[[dict[str, Any]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    spoil(content)
    torch.save(content, tmp_path / "bad.ckpt")
    assert run(tmp_path / "bad.ckpt", "a.wav") == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert not printed.out


@pytest.mark.parametrize("kind", ["missing", "text", "half"])
def test_a_file_that_is_no_checkpoint_is_an_error(
    checkpoint: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.ckpt"
    if kind != "missing":
        content = checkpoint.read_bytes()
        path.write_bytes(b"no weights" if kind == "text" else content[: len(content) // 2])
    assert run(path, "a.wav") == 2
    assert str(path) in capsys.readouterr().err


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
    transcription.keep_hypotheses(beam, 3)
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


def test_a_missing_language_model_is_named(
    config: dict[str, Any], recordings: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {"class_path": "asr_lightning.decoding.ngram.NGramLanguageModel", "init_args": {"arpa": "missing.arpa"}}
    search = {"beam": 2, "language_model": model, "language_model_weight": 0.3}
    decoder = {
        "class_path": "asr_lightning.models.listen_attend_spell.Speller",
        "init_args": {
            "attention": {"class_path": "asr_lightning.nn.mechanisms.DotAttention", "init_args": {"dimension": 4}},
            "hidden": 4,
        },
    }
    shared = {name: config["init_args"][name] for name in ("tokenizer", "features", "encoder")}
    recognizer = build_recognizer(
        {
            "class_path": "asr_lightning.models.encoder_decoder.EncoderDecoder",
            "init_args": {
                **shared,
                "decoder": decoder,
                "search": {"class_path": "asr_lightning.decoding.attention.AttentionSearch", "init_args": search},
            },
        }
    )
    trainer = lightning.Trainer(default_root_dir=tmp_path, logger=False, accelerator="cpu", enable_checkpointing=False)
    trainer.strategy.connect(recognizer)
    trainer.save_checkpoint(tmp_path / "las.ckpt")
    assert run(tmp_path / "las.ckpt", str(recordings["read.flac"])) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: cannot read the language model missing.arpa")
