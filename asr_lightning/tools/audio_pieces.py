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
SILENCE_SECONDS = 0.3  # a longer pause is left out: networks that were trained on utterances know no such pauses
SILENCE_DECIBELS = 15.0  # above the quietest twentieth of the audio: what is below is silent
LOUDNESS_DECIBELS = 20.0  # from the quietest to the loudest twentieth: with less, nothing tells pauses from speech
MARGIN_SECONDS = 0.1  # of a pause that stays with the speech beside it


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

    A file of at most `piece_seconds` + 2 s is one piece. Of a longer one, each stretch between pauses of 0.3 s
    or more is a piece, and the pauses are left out. Where there are none in `piece_seconds`, it is cut at its quietest
    place into pieces of half of that or more, which go on for 2 s to each side of a cut. What is in memory does not
    depend on the file's length, and silence costs little.

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
        Audio (S,) of a piece, its first sample, and the sample at which it was cut; None for the last piece. Zeros
        stand for a pause at the end.
    """
    shortest, longest = (round(seconds * sample_rate) for seconds in (piece_seconds / 2, piece_seconds))
    overlap = round(OVERLAP_SECONDS * sample_rate)
    held: list[np.ndarray] = []
    samples, start, lead = 0, 0, 0  # samples held; before these; of these, also in the previous piece
    silence = -math.inf  # dB below which audio is silent
    for block in blocks:
        held.append(block)
        samples += len(block)
        while samples > lead + longest + overlap:
            audio = np.concatenate(held)
            levels = frame_levels(audio, sample_rate)
            silence = silence_level(levels, silence)
            stretches = between_pauses(levels, len(audio), sample_rate, silence)
            if stretches == [(0, len(audio))]:
                cut = lead + shortest + quietest(audio[lead + shortest : lead + longest], sample_rate)
                yield audio[: cut + overlap], start, start + cut
                begin = max(0, cut - overlap)
                lead = cut - begin
            else:
                begin = len(audio) - round(MARGIN_SECONDS * sample_rate)
                if stretches and stretches[-1][1] == len(audio):  # goes on in the next block
                    begin = stretches.pop()[0]
                yield from ((audio[first:end], start + first, start + end) for first, end in stretches if end > lead)
                lead = max(0, lead - begin)
            held, samples, start = [audio[begin:]], samples - begin, start + begin
    if not samples:
        return
    audio = np.concatenate(held)
    stretches = [(0, samples)]
    if start:
        levels = frame_levels(audio, sample_rate)
        stretches = between_pauses(levels, samples, sample_rate, silence_level(levels, silence))
    end = 0
    for first, end in stretches:
        if end > lead:
            yield audio[first:end], start + first, None if end == samples else start + end
    if end < samples:
        yield np.zeros_like(audio[end:]), start + end, None


def silence_level(levels: np.ndarray, otherwise: float) -> float:
    """Return the level below which audio of levels (T,) in dB is silent; `otherwise` where it is as loud everywhere."""
    if not len(levels):
        return otherwise
    quiet, loud = np.percentile(levels, (5, 95))
    return float(quiet) + SILENCE_DECIBELS if loud - quiet >= LOUDNESS_DECIBELS else otherwise


def between_pauses(levels: np.ndarray, samples: int, sample_rate: int, silence: float) -> list[tuple[int, int]]:
    """Return first sample and end of each stretch of audio between its pauses.

    Args:
        levels: (T,) in dB, of `frame_levels`.
        samples: S of the audio.
        sample_rate: Samples per second.
        silence: dB below which it is silent; a pause is so for `SILENCE_SECONDS`.
    """
    silent = np.concatenate([[False], levels < silence, [False]])
    pauses = np.flatnonzero(silent[1:] != silent[:-1]).reshape(-1, 2)  # in hundredths of a second
    hop, margin = sample_rate // 100, round(MARGIN_SECONDS * sample_rate)
    stretches, first = [], 0
    for begin, end in (pauses[pauses[:, 1] - pauses[:, 0] >= 100 * SILENCE_SECONDS] * hop).tolist():
        if begin:
            stretches.append((first, min(samples, begin + margin)))
        first = end - margin
    if first + margin + hop <= samples:
        stretches.append((first, samples))
    return stretches


def frame_levels(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return the level (T,) of each hundredth of a second of audio (S,) in dB, over 50 ms around it."""
    hop = sample_rate // 100
    powers = np.square(audio[: len(audio) // hop * hop].reshape(-1, hop), dtype=np.float64).mean(axis=1)
    if len(powers) < 5:
        return np.zeros(0)
    return np.asarray(10 * np.log10(np.convolve(powers, np.full(5, 0.2), "same") + 1e-10))


def quietest(audio: np.ndarray, sample_rate: int) -> int:
    """Return the middle of the stretch of 0.2 s with the least power in audio (S,); the first of several."""
    hop, frames = sample_rate // 100, round(100 * PAUSE_SECONDS)
    powers = np.square(audio[: len(audio) // hop * hop].reshape(-1, hop), dtype=np.float64).sum(axis=1)  # (T,)
    sums = np.concatenate([[0.0], np.cumsum(powers)])
    return (int(np.argmin(sums[frames:] - sums[:-frames])) + frames // 2) * hop
