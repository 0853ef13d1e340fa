"""The highest frequency with energy: telephone speech at 16 kHz has nothing above 4 kHz."""

import numpy as np

NARROW_DB = -50.0  # of the upper band below the lower one; genuine speech has -49 to -2 dB
WINDOW = 512  # samples of a spectrum
LOWER, UPPER = (0.025, 0.45), (0.625, 1.0)  # bands as shares of the highest frequency; filters fall between them


def is_narrow_band(audio: np.ndarray) -> bool | None:
    """Whether audio (S,) has nothing in the upper half of its band, as after upsampling by two.

    Returns:
        None where it cannot be decided: the audio is silent, or shorter than a window.
    """
    if len(audio) < WINDOW:
        return None
    frames = np.lib.stride_tricks.sliding_window_view(audio, WINDOW)[:: WINDOW // 2] * np.hanning(WINDOW)  # (T, S)
    power = np.square(np.abs(np.fft.rfft(frames, axis=1))).mean(axis=0)
    low, high = (
        power[round(begin * (len(power) - 1)) : round(end * (len(power) - 1)) + 1].mean()
        for begin, end in (LOWER, UPPER)
    )
    return None if low == 0 else bool(high < low * 10 ** (NARROW_DB / 10))
