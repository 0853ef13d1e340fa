"""Audio files of any length, format and sample rate, in pieces that are cut at pauses."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from asr_lightning.audio import reading
from asr_lightning.audio.resampling import SAMPLE_RATES, resample
from asr_lightning.errors import InputError

PIECE_SECONDS = 40.0  # a longer file is cut where it is quietest between half of this and this
OVERLAP_SECONDS = 2.0  # that a piece goes on to each side of a cut: context for the encoder, and words to join by
PAUSE_SECONDS = 0.2  # of the stretch whose power is compared to find that place


@dataclass(frozen=True)
class Piece:
    """A stretch of a file.

    Attributes:
        audio: (S,) float32 in [-1, 1]; none where there is no sound in it.
        seconds: Its length.
        start: Seconds from the beginning of the file.
        border: Seconds; where the next piece takes over, though this one goes on for an overlap. Infinite for the last.
    """

    audio: Tensor
    seconds: float
    start: float
    border: float = math.inf


def read_pieces(path: str, sample_rate: int, piece_seconds: float = PIECE_SECONDS) -> Iterator[Piece]:
    """Read a file of any format, sample rate and number of channels that libsndfile knows.

    A file of at most `piece_seconds` + 2 s is one piece. A longer one is cut at its pauses into pieces of half of
    `piece_seconds` or more, which go on for 2 s to each side of a cut, and the samples of pieces without any sound are
    left out, so that what is in memory does not depend on its length, and silence costs little.

    Args:
        path: Of the file.
        sample_rate: Samples per second of the result.
        piece_seconds: Most seconds between two cuts.

    Returns:
        Pieces; their audio is the mean of the channels. The first one has its samples also without sound.

    Raises:
        InputError: It is missing, unreadable, empty, cut off, or holds impossible samples; perhaps after some pieces.
    """
    with reading.open_sound(path) as sound:
        rate = sound.samplerate
        if not SAMPLE_RATES[0] <= rate <= SAMPLE_RATES[1]:
            raise InputError(
                f"expected {SAMPLE_RATES[0]:,} to {SAMPLE_RATES[1]:,} samples per second, its header says {rate:,}"
            )
        empty = True
        for audio, start, border in cut_at_pauses(reading.read_blocks(sound), rate, piece_seconds):
            reading.check_samples(audio)
            samples = audio if audio.any() or empty else audio[:0]
            yield Piece(
                torch.from_numpy(resample(samples, rate, sample_rate)) if len(samples) else torch.zeros(0),
                len(audio) / rate,
                start / rate,
                math.inf if border is None else border / rate,
            )
            empty = False
    if empty:
        raise InputError("there is no audio in the file")


def cut_at_pauses(
    blocks: Iterable[np.ndarray], sample_rate: int, piece_seconds: float = PIECE_SECONDS
) -> Iterator[tuple[np.ndarray, int, int | None]]:
    """Put blocks of audio (S,) together to pieces that are cut at pauses and overlap there.

    Args:
        blocks: One behind the other.
        sample_rate: Samples per second.
        piece_seconds: Most seconds between two cuts; there are at least half as many.

    Returns:
        Audio (S,) of a piece, its first sample, and the sample at which it was cut; None for the last piece, which is
        the only one where the audio is short.
    """
    shortest, longest = (round(seconds * sample_rate) for seconds in (piece_seconds / 2, piece_seconds))
    overlap = round(OVERLAP_SECONDS * sample_rate)
    held: list[np.ndarray] = []
    samples, start, lead = 0, 0, 0  # samples held; before these; of these, also in the previous piece
    for block in blocks:
        held.append(block)
        samples += len(block)
        while samples > lead + longest + overlap:
            audio = np.concatenate(held)
            cut = lead + shortest + quietest(audio[lead + shortest : lead + longest], sample_rate)
            yield audio[: cut + overlap], start, start + cut
            begin = max(0, cut - overlap)
            held, samples, start, lead = [audio[begin:]], samples - begin, start + begin, cut - begin
    if samples:
        yield np.concatenate(held), start, None


def quietest(audio: np.ndarray, sample_rate: int) -> int:
    """Return the middle of the stretch of 0.2 s with the least power in audio (S,); the first of several."""
    hop, frames = sample_rate // 100, round(100 * PAUSE_SECONDS)
    powers = np.square(audio[: len(audio) // hop * hop].reshape(-1, hop), dtype=np.float64).sum(axis=1)  # (T,)
    sums = np.concatenate([[0.0], np.cumsum(powers)])
    return (int(np.argmin(sums[frames:] - sums[:-frames])) + frames // 2) * hop
