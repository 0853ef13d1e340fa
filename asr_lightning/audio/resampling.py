"""Audio at another sample rate, and as the 16-bit samples that files and shards hold alike."""

import functools
import math
from fractions import Fraction

import numpy as np
from scipy import signal

LARGEST_RATIO = 1_000  # of two rates; the filters grow with it
SAMPLE_RATES = (1_000, 1_000_000)  # lowest and highest number of samples per second that may be speech
# A sinc of 64 zero crossings to each side in a Kaiser window, cut off at 94.8 % of the lower Nyquist frequency: from
# 44.1 to 16 kHz flat to 7 kHz, and more than 90 dB down from 8.5 kHz on. A short filter, as torchaudio's default of 6
# crossings, lets 8.4 kHz through at -10 dB, which comes back as 7.6 kHz.
ZERO_CROSSINGS, ROLLOFF, BETA = 64, 0.9476, 14.77
LEAST_BLOCK = 128  # samples that are computed by one product of matrices: fewer are slow


def resample(audio: np.ndarray, before: int, after: int) -> np.ndarray:
    """Resample audio with a windowed sinc [Smith and Gossett 1984]; ratios of odd rates are met to within a millionth.

    Computed with 64 bits, so that rounded to 16 bits the result does not depend on processors and threads.

    Args:
        audio: (S,).
        before: Samples per second of it.
        after: Samples per second of the result.

    Returns:
        (S',) float32, S' = `resampled_length(S, before, after)`.
    """
    if before == after:
        return audio
    weights, left, hop = _blocks(*_ratio(before, after))
    block, window = weights.shape
    length = resampled_length(len(audio), before, after)
    frames = -(-length // block)
    padded = np.zeros((frames - 1) * hop + window if frames else 0)
    excerpt = audio[: len(padded) - left]
    padded[left : left + len(excerpt)] = excerpt
    framed = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop] if frames else np.zeros((0, window))
    return (framed @ weights.T).reshape(-1)[:length].astype(np.float32)


class StreamingResampler:
    """Resamples audio that comes in pieces; put together, the results are what `resample` makes of all of it.

    Args:
        before: Samples per second that come in.
        after: Samples per second that go out.
    """

    def __init__(self, before: int, after: int) -> None:
        self.before, self.after = before, after
        self.received = self.returned = 0
        self.weights: np.ndarray | None = None
        if before != after:
            self.weights, left, self.hop = _blocks(*_ratio(before, after))
            self.waiting = np.zeros(left)  # samples from the start of the next block's window on

    def __call__(self, audio: np.ndarray, last: bool = False) -> np.ndarray:
        """Return the samples (S',) float32 that can be computed by now.

        Args:
            audio: The next samples (S,).
            last: Whether none follow; then the rest is returned.
        """
        if self.weights is None:
            return audio
        self.received += len(audio)
        block, window = self.weights.shape
        padded = np.concatenate([self.waiting, audio])
        length = resampled_length(self.received, self.before, self.after) - self.returned
        frames = -(-length // block) if last else max(0, (len(padded) - window) // self.hop + 1)
        missing = (frames - 1) * self.hop + window - len(padded) if frames else 0
        if missing > 0:
            padded = np.concatenate([padded, np.zeros(missing)])
        self.waiting = padded[frames * self.hop :].copy()
        if not frames:
            return np.zeros(0, np.float32)
        framed = np.lib.stride_tricks.sliding_window_view(padded, window)[:: self.hop][:frames]
        resampled = (framed @ self.weights.T).reshape(-1)[:length].astype(np.float32)
        self.returned += len(resampled)
        return resampled


def resampled_length(samples: int, before: int, after: int) -> int:
    """Return the number of samples that `resample` makes of so many."""
    if before == after:
        return samples
    down, up = _ratio(before, after)
    return math.ceil(samples * up / down)


def sixteen_bits(audio: np.ndarray) -> np.ndarray:
    """Round audio (S,) to the samples that 16 bits hold, n / 32,768; audio beyond full scale is scaled to fit.

    So a decoder of MP3, a resampler and a file of 24 bits give what a FLAC file of 16 bits keeps exactly.
    """
    highest, lowest = float(audio.max(initial=0.0)), float(audio.min(initial=0.0))
    scale = min(1.0, 32_767 / (32_768 * highest) if highest else 1.0, -1.0 / lowest if lowest else 1.0)
    scaled = audio if scale == 1.0 else audio * np.float32(scale)
    return (np.clip(np.round(scaled * np.float32(32_768)), -32_768, 32_767) / np.float32(32_768)).astype(np.float32)


@functools.cache
def _ratio(before: int, after: int) -> tuple[int, int]:
    # The filters of 16,000 / 22,254 would fill gigabytes, those of 663 / 922 do not.
    ratio = Fraction(before, after).limit_denominator(LARGEST_RATIO)
    return max(1, ratio.numerator), ratio.denominator


@functools.cache
def _blocks(down: int, up: int) -> tuple[np.ndarray, int, int]:
    """Cut the filter so that a block of the result is a matrix times a window of the audio.

    Returns:
        The matrix (samples of a block, samples of a window); samples of a window that lie before its block; the
        distance of windows.
    """
    largest = max(up, down)
    half = math.ceil(ZERO_CROSSINGS * largest / ROLLOFF)  # at `up` times the rate before
    lowpass = up * signal.firwin(2 * half + 1, ROLLOFF / largest, window=("kaiser", BETA))
    blocks = math.ceil(LEAST_BLOCK / up)
    left = half // up
    last = (blocks * up - 1) * down // up  # the sample of the audio at the last one of a block
    window = left + last + 1 + left + 1
    taps = half + np.arange(blocks * up)[:, None] * down - (np.arange(window) - left) * up
    inside = (taps >= 0) & (taps <= 2 * half)
    return np.where(inside, lowpass[taps.clip(0, 2 * half)], 0.0), left, blocks * down
