import math

import numpy as np
import pytest

from asr_lightning.analysis.probes import (
    linear_probe,
    measure_layer,
    order_correlation,
    phone_purity,
    silence_spread,
    speaker_interval,
)

PHONES = np.array(["SIL", "AA", "B", "S"])


def frames(kind: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Values, phones, utterances and times of a layer that knows only phones, only time, or nothing."""
    random = np.random.default_rng(seed)
    groups = np.repeat(np.arange(8), 40)
    phones = PHONES[np.repeat(random.integers(0, 4, 8 * 10), 4)]
    times = np.tile(np.arange(40) * 0.04, 8)
    noise = 0.1 * random.normal(size=(320, 10))
    if kind == "phone":
        centers = random.normal(size=(4, 10))
        noise += centers[[PHONES.tolist().index(phone) for phone in phones]]
    elif kind == "time":
        noise *= 0.01
        noise[:, 0] += times
    return noise, phones, groups, times


def test_a_layer_of_phones_is_known_as_one() -> None:
    figures = measure_layer(*frames("phone"))
    assert figures.purity > 0.99
    assert figures.probe > 0.99
    assert figures.order < 0.2
    assert figures.silence < 0.3


def test_a_layer_of_time_is_known_as_one() -> None:
    figures = measure_layer(*frames("time"))
    assert figures.order > 0.99
    assert figures.purity < figures.chance + 0.15
    assert figures.probe < 0.5


def test_noise_is_at_chance() -> None:
    values, phones, groups, times = frames("noise")
    figures = measure_layer(values, phones, groups, times)
    assert figures.chance == pytest.approx(sum((phones == phone).mean() ** 2 for phone in PHONES))
    assert abs(figures.purity - figures.chance) < 0.05
    assert abs(figures.order) < 0.05
    assert 0.9 < figures.silence < 1.1


def test_purity_is_that_of_other_utterances() -> None:
    values = np.array([[0.0], [0.1], [5.0], [5.1]])
    phones = np.array(["AA", "AA", "AA", "B"])
    assert phone_purity(values, phones, np.array([0, 0, 1, 1]), k=1) == pytest.approx(0.75)
    assert math.isnan(phone_purity(values, phones, np.zeros(4, int)))


def test_order_is_counted_within_utterances_only() -> None:
    times = np.array([0.0, 1.0, 2.0] * 2)
    values = np.array([[0.0], [1.0], [2.0], [100.0], [99.0], [98.0]])
    assert order_correlation(values, times, np.array([0, 0, 0, 1, 1, 1])) == pytest.approx(1.0)
    assert math.isnan(order_correlation(values, times, np.arange(6)))
    assert math.isnan(order_correlation(np.zeros((6, 1)), times, np.zeros(6, int)))


def test_equal_distances_in_time_share_a_rank() -> None:
    random = np.random.default_rng(7)
    values, steps = random.normal(size=(12, 3)), np.arange(12)
    expected = order_correlation(values, steps, np.zeros(12, int))  # whole numbers are exact, 0.01 s is not
    assert order_correlation(values, steps * 0.01, np.zeros(12, int)) == pytest.approx(expected)


def test_silence_spread_is_a_ratio_of_deviations() -> None:
    values = np.array([[-1.0], [1.0], [-3.0], [3.0]])
    phones = np.array(["SIL", "SIL", "AA", "AA"])
    assert silence_spread(values, phones) == pytest.approx(1.0 / math.sqrt(5.0))
    assert math.isnan(silence_spread(values, np.array(["AA"] * 4)))


def test_a_constant_layer_has_no_spread() -> None:
    for value in (1.0, 0.1):  # the mean of six 0.1 is rounded
        assert math.isnan(silence_spread(np.full((6, 2), value), np.array(["SIL", "SIL", *["AA"] * 4])))


def test_a_probe_never_sees_the_utterance_that_it_is_tested_on() -> None:
    random = np.random.default_rng(4)
    groups = np.repeat(np.arange(10), 6)
    values = np.eye(10)[groups]  # depend on the utterance and nothing else
    phones = random.choice(PHONES, 10)[groups]  # which every utterance has only one of
    assert linear_probe(values, phones, groups) < 0.6
    assert math.isnan(linear_probe(values, phones, np.zeros(60, int)))


def test_the_interval_of_a_mean_covers_it() -> None:
    random = np.random.default_rng(5)
    covered = 0
    for seed in range(200):
        low, high = speaker_interval(random.normal(3.0, 1.0, size=30), seed, draws=300)
        covered += low <= 3.0 <= high
    assert 0.86 < covered / 200 < 0.99
    assert all(map(math.isnan, speaker_interval(np.array([1.0, np.nan]))))
