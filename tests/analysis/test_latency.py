"""Delays of words that were planted."""

import math

import pytest

from asr_lightning.analysis.latency import EmittedWords, Latency
from asr_lightning.text.phones import Segment


def spoken(*words: tuple[str, float, float]) -> list[Segment]:
    return [Segment(start, end, word) for word, start, end in words]


def test_only_correct_words_have_a_delay_and_each_is_behind_its_own_end() -> None:
    latency = Latency()
    times = spoken(("THE", 0.1, 0.3), ("CAT", 0.4, 0.8), ("SAT", 0.8, 1.2), ("DOWN", 1.3, 1.9))
    # an insertion before, a substitution, a deletion
    hypothesis = EmittedWords(("OH", "THE", "HAT", "DOWN"), (0.3, 0.5, 1.0, 2.0), 0.25, 2.0, 0.4, 100)
    latency.add(["THE", "CAT", "SAT", "DOWN"], hypothesis, times)
    assert latency.delays == pytest.approx([0.2, 0.1])
    assert latency.first_delays == pytest.approx([0.15])
    assert (latency.errors, latency.words, latency.at_end) == (3, 4, 1)
    latency.add(["THE"], EmittedWords(("THE",), (0.9,), 0.8, 2.0, 0.2, 300), spoken(("THE", 0.0, 0.2)))
    assert latency.delay(50) == pytest.approx(0.2) and latency.delay(90) == pytest.approx(0.2 + 0.8 * 0.5)
    assert latency.first_delay(50) == pytest.approx((0.15 + 0.8) / 2)
    assert latency.wer == 3 / 5 and latency.state == 300
    assert latency.real_time_factor == pytest.approx(0.15)


def test_utterances_without_times_count_for_errors_and_costs() -> None:
    latency = Latency()
    latency.add(["A", "B"], EmittedWords(("A",), (1.0,), 1.0, 1.0, 0.5), None)
    latency.add(["A"], EmittedWords((), (), None, 1.0, 0.5), spoken(("A", 0.0, 1.0)))
    assert (latency.errors, latency.words, latency.utterances, latency.untimed) == (2, 3, 2, 1)
    assert not latency.delays and math.isnan(latency.delay(50)) and math.isnan(latency.first_delay(90))


def test_times_of_other_words_are_refused() -> None:
    latency = Latency()
    with pytest.raises(ValueError, match="expected times of 2 spoken and 1 written words, got 1 and 1"):
        latency.add(["A", "B"], EmittedWords(("A",), (1.0,), 1.0, 1.0, 0.5), spoken(("A", 0.0, 1.0)))
    with pytest.raises(ValueError, match="got none and 0"):
        latency.add(["A"], EmittedWords(("A",), (), 1.0, 1.0, 0.5), None)
    assert latency == Latency()
