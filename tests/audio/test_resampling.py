"""Resampling against tones, whose level after it is known, and 16-bit rounding."""

import io
import math

import numpy as np
import pytest
import soundfile
from scipy import signal

from asr_lightning.audio.resampling import (
    BETA,
    ROLLOFF,
    ZERO_CROSSINGS,
    StreamingResampler,
    resample,
    resampled_length,
    sixteen_bits,
)


def level(frequency: float, rate: int, target: int) -> float:
    """The level in dB of what is left of a tone, away from the ends."""
    tone = np.sin(2 * math.pi * frequency * np.arange(2 * rate) / rate)
    output = resample(tone.astype(np.float32), rate, target)[target // 4 : -target // 4].astype(np.float64)
    return 10 * math.log10(2 * np.square(output).mean() + 1e-20)


@pytest.mark.parametrize(
    ("rate", "passed", "stopped"),
    [(8_000, (300, 3_500), ()), (22_050, (300, 7_000), (8_500, 10_000)),
     (44_100, (300, 7_000), (8_500, 15_000)), (48_000, (300, 7_000), (8_500, 20_000))],
)  # fmt: skip
def test_tones_below_the_lower_nyquist_frequency_pass_and_others_do_not(
    rate: int, passed: tuple[int, ...], stopped: tuple[int, ...]
) -> None:
    for frequency in passed:
        assert abs(level(frequency, rate, 16_000)) < 0.1
    for frequency in stopped:
        assert level(frequency, rate, 16_000) < -90


def test_a_tone_stays_where_it_is_in_time() -> None:
    audio, expected = (np.sin(2 * math.pi * 440 * np.arange(rate) / rate) for rate in (44_100, 16_000))
    np.testing.assert_allclose(resample(audio, 44_100, 16_000)[500:-500], expected[500:-500], atol=1e-5)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 32_000])
@pytest.mark.parametrize("samples", [1, 100, 5_001])
def test_the_sum_is_that_of_scipy(rate: int, samples: int) -> None:
    audio = np.random.default_rng(samples).standard_normal(samples)
    divisor = math.gcd(rate, 16_000)
    up, down = 16_000 // divisor, rate // divisor
    half = math.ceil(ZERO_CROSSINGS * max(up, down) / ROLLOFF)
    lowpass = signal.firwin(2 * half + 1, ROLLOFF / max(up, down), window=("kaiser", BETA))
    expected = signal.resample_poly(audio, up, down, window=lowpass)
    np.testing.assert_allclose(resample(audio, rate, 16_000), expected, atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 22_254, 44_100, 48_000, 16_000])
def test_the_length_is_known_before(rate: int) -> None:
    for samples in (1, 2, 399, 44_100, 44_101):
        assert len(resample(np.zeros(samples), rate, 16_000)) == resampled_length(samples, rate, 16_000)


def test_what_is_16_bits_stays_so_and_all_else_becomes_it() -> None:
    exact = np.array([-32_768, -32_767, -1, 0, 1, 32_767], np.float32) / 32_768
    np.testing.assert_array_equal(sixteen_bits(exact), exact)
    audio = np.random.default_rng(0).uniform(-0.9, 0.9, 1_000).astype(np.float32)
    rounded = sixteen_bits(audio)
    assert np.abs(rounded - audio).max() <= 0.5 / 32_768
    file = io.BytesIO()
    soundfile.write(file, (rounded * 32_768).astype(np.int16), 16_000, format="FLAC", subtype="PCM_16")
    file.seek(0)
    np.testing.assert_array_equal(soundfile.read(file, dtype="float32")[0], rounded)


def test_audio_beyond_full_scale_keeps_its_shape() -> None:
    audio = np.sin(np.arange(1_000) / 10).astype(np.float32)
    for loud in (1.7 * audio, -3.0 * audio):
        rounded = sixteen_bits(loud)
        assert rounded.min() >= -1 and rounded.max() <= 32_767 / 32_768
        assert np.corrcoef(rounded, loud)[0, 1] > 0.999999


@pytest.mark.parametrize(
    "rates", [(16_000, 16_000), (48_000, 16_000), (8_000, 16_000), (44_100, 16_000), (22_254, 16_000)]
)
@pytest.mark.parametrize("samples", [0, 1, 100, 5_000])
def test_audio_that_comes_in_pieces_is_resampled_as_the_whole(rates: tuple[int, int], samples: int) -> None:
    audio = np.random.default_rng(samples).standard_normal(samples).astype(np.float32)
    expected = resample(audio, *rates)
    for size in (1, 7, 640, 6_000):
        resampler = StreamingResampler(*rates)
        pieces = [resampler(audio[start : start + size]) for start in range(0, samples, size)]
        got = np.concatenate([*pieces, resampler(audio[:0], last=True)])
        assert len(got) == len(expected) == resampled_length(samples, *rates)
        np.testing.assert_allclose(got, expected, atol=1e-6)
    if samples == 5_000:
        resampler = StreamingResampler(*rates)
        assert len(resampler(audio)) > 0.5 * len(expected), "most is known before the end"
