"""Borders that are off by known times, and labels that are not the same."""

import numpy as np
import pytest

from asr_lightning.analysis.boundaries import boundary_errors, corpus_boundary_errors
from asr_lightning.text.phones import Segment


def segments(*rows: tuple[str, float]) -> list[Segment]:
    ends = [start for _, start in rows[1:]] + [9.0]
    return [Segment(start, end, label) for (label, start), end in zip(rows, ends, strict=True)]


TRUTH = segments(("SIL", 0.0), ("a", 0.2), ("b", 0.5), ("a", 0.7), ("SIL", 1.0))


def test_errors_are_those_that_were_planted() -> None:
    moved = segments(("SIL", 0.0), ("a", 0.21), ("b", 0.48), ("a", 0.7), ("SIL", 1.1))
    assert boundary_errors(TRUTH, moved) == pytest.approx([0.01, 0.02, 0.0, 0.1])
    assert (boundary_errors(TRUTH, TRUTH) == 0).all()


def test_only_segments_that_both_have_are_compared() -> None:
    other = segments(("SIL", 0.0), ("a", 0.2), ("x", 0.5), ("a", 0.75), ("b", 0.9), ("SIL", 1.0))
    assert boundary_errors(TRUTH, other) == pytest.approx([0.0, 0.05, 0.0])  # x is no b, and the b comes too late
    without_pauses = segments(("a", 0.0), ("b", 0.5), ("a", 0.6))
    assert boundary_errors(TRUTH, without_pauses) == pytest.approx([0.0, 0.1])  # where it begins is no border


def test_a_corpus_is_measured_over_all_borders_together() -> None:
    late = segments(("SIL", 0.0), ("a", 0.23), ("b", 0.53), ("a", 0.73), ("SIL", 1.03))
    measured = corpus_boundary_errors(
        {"one": TRUTH, "two": TRUTH, "other": TRUTH}, {"one": late, "two": TRUTH, "unknown": TRUTH}
    )
    assert measured.expected == 8
    assert measured.matched == 1.0
    assert measured.within(0.020) == 0.5
    assert measured.within(0.050) == 1.0
    assert measured.percentile(90) == pytest.approx(0.03)
    assert np.isnan(corpus_boundary_errors({}, {"one": late}).matched)
