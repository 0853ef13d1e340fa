import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from asr_lightning.audio import reading
from asr_lightning.audio.resampling import resample
from asr_lightning.errors import InputError
from asr_lightning.tools import audio_pieces
from asr_lightning.tools.audio_pieces import cut_at_pauses, read_pieces
from tests.support.recordings import Recordings


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


def test_a_long_file_is_cut_where_it_is_quietest(tmp_path: Path) -> None:
    lengths = [15.0, 14.0, 12.0, 16.0, 15.0, 5.0]
    audio = spoken(lengths, pause=0.25).astype(np.float32)  # too short to be left out
    soundfile.write(tmp_path / "long.wav", audio, 16_000, subtype="FLOAT")
    pieces = list(read_pieces(str(tmp_path / "long.wav"), 16_000))
    borders = [piece.border for piece in pieces[:-1]]
    assert len(pieces) == 3 and pieces[-1].border == float("inf")
    assert [piece.start for piece in pieces] == [0.0, *(border - 2.0 for border in borders)]
    for piece, border in zip(pieces, [*borders, len(audio) / 16_000 - 2.0], strict=True):
        first, last = round(16_000 * piece.start), round(16_000 * (border + 2.0))
        np.testing.assert_array_equal(piece.audio.numpy(), audio[first:last])  # 2 s to each side of a cut
        assert piece.seconds == len(piece.audio) / 16_000
    pauses = np.cumsum([length + 0.25 for length in lengths]) - 0.125
    for border in borders:
        assert np.abs(pauses - border).min() < 0.16  # within the pause
    soundfile.write(tmp_path / "short.wav", audio[: 42 * 16_000], 16_000, subtype="FLOAT")
    assert len(list(read_pieces(str(tmp_path / "short.wav"), 16_000))) == 1


def test_each_stretch_between_long_pauses_is_a_piece(tmp_path: Path) -> None:
    lengths, pause, margin = [3.0, 20.0, 7.0, 45.0, 2.0, 30.0], 12.0, 0.1
    audio = np.concatenate([spoken(lengths, pause), np.zeros(8_000)]).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", audio, 16_000, subtype="FLOAT")
    pieces = list(read_pieces(str(tmp_path / "long.wav"), 16_000))
    starts = np.cumsum([0.0, *(length + pause for length in lengths[:-1])])
    begins = [max(0.0, start - margin) for start in starts]
    heard = [piece for piece in pieces if len(piece.audio)]
    whole = [heard[n] for n in (0, 1, 2, 5, 6)]  # the fourth has no pause in 40 s, so it is two pieces
    assert len(heard) == 7
    for piece, begin, start, length in zip(
        whole, np.delete(begins, 3), np.delete(starts, 3), np.delete(lengths, 3), strict=True
    ):
        assert abs(piece.start - begin) < 0.05 and abs(piece.border - (start + length + margin)) < 0.05
        first = round(16_000 * piece.start)
        np.testing.assert_array_equal(piece.audio.numpy(), audio[first : first + len(piece.audio)])
    assert abs(heard[3].start - begins[3]) < 0.05 and heard[4].start == heard[3].border - 2.0
    assert pieces[-1].start + pieces[-1].seconds == len(audio) / 16_000, "the pause at the end is a part of the file"
    assert not len(pieces[-1].audio)


def test_speech_that_is_as_loud_everywhere_has_no_pauses(tmp_path: Path) -> None:
    audio = np.random.default_rng(1).standard_normal(16_000 * 100).astype(np.float32) / 10
    audio[16_000 * 50 : 16_000 * 52] /= 5  # 14 dB
    soundfile.write(tmp_path / "long.wav", audio, 16_000, subtype="FLOAT")
    pieces = list(read_pieces(str(tmp_path / "long.wav"), 16_000))
    assert all(after.start == piece.border - 2.0 for piece, after in zip(pieces, pieces[1:], strict=False))


def test_every_sample_is_in_a_piece_however_blocks_and_overlaps_fall(monkeypatch: pytest.MonkeyPatch) -> None:
    audio = spoken([0.3, 0.7, 0.2, 0.5, 1.1, 0.4, 0.6], pause=0.05)
    for overlap in (0.0, 0.2, 0.7):
        monkeypatch.setattr(audio_pieces, "OVERLAP_SECONDS", overlap)
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


def test_a_rate_that_is_none_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "slow.wav", np.zeros(100), 20)
    with pytest.raises(InputError, match="samples per second, its header says 20"):
        list(read_pieces(str(tmp_path / "slow.wav"), 16_000))
