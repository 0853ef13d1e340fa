"""Planted curves: gradient norms that are known, and curves that cross where they were made to."""

import numpy as np
import pytest

from asr_lightning.analysis.training_curves import crossing, early_and_late
from asr_lightning.errors import InputError


def test_norms_and_changes_of_planted_series() -> None:
    steps = np.arange(10, 1010, 10)
    norms = np.where(steps < 500, 4.0 * 2.0 ** (np.arange(100) % 2), 1.0)  # 4, 8, 4, 8 …, then constant
    early, late = early_and_late(steps, norms, share=0.2)
    assert (early.first, early.last, early.count) == (10, 200, 20) and (late.first, late.last) == (810, 1000)
    assert early.norm == pytest.approx(6.0) and early.change == pytest.approx(4.0)
    assert early.relative_change == pytest.approx(np.log(2))
    assert (late.norm, late.change, late.relative_change) == (1.0, 0.0, 0.0)
    scaled, _ = early_and_late(steps, 1000 * norms, share=0.2)
    assert scaled.relative_change == pytest.approx(early.relative_change) and scaled.change == pytest.approx(4000.0)


def test_a_noisier_gradient_changes_more() -> None:
    generator, steps = np.random.default_rng(0), np.arange(2000)
    smooth, rough = (np.exp(size * generator.standard_normal(2000)) for size in (0.1, 0.5))
    ratio = early_and_late(steps, rough)[0].relative_change / early_and_late(steps, smooth)[0].relative_change
    assert ratio == pytest.approx(5.0, rel=0.15)
    expected = 0.5 * 2 / np.sqrt(np.pi)  # mean |x - y| of two normal variables
    assert early_and_late(steps, rough)[1].relative_change == pytest.approx(expected, rel=0.1)


def test_norms_of_a_frozen_module_have_no_relative_change() -> None:
    early, late = early_and_late(range(20), [0.0] * 10 + [2.0, 4.0] * 5, share=0.25)
    assert early.norm == early.change == 0.0 and np.isnan(early.relative_change)
    assert late.relative_change == pytest.approx(np.log(2))


@pytest.mark.parametrize(
    ("steps", "share", "message"),
    [
        ([1, 2, 2, 4], 0.5, "rising steps"),
        ([1, 2], 0.5, "four or more"),
        ([0, 100, 200, 300], 0.1, "found 1: take a larger share"),
        ([1, 2, 3, 4], 0.6, "at most 0.5, got 0.6"),
    ],
)
def test_what_says_nothing_is_refused(steps: list[int], share: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        early_and_late(steps, [1.0] * len(steps), share)


def curves(offsets: list[float], slope: float, end: int = 20) -> list[dict[int, float]]:
    return [{epoch: 0.5 + offset + slope * epoch for epoch in range(1, end + 1)} for offset in offsets]


def test_curves_cross_where_they_were_planted() -> None:
    random, selected = curves([0.1], -0.02), curves([0.0], -0.0125)  # 0.1 - 0.0075 * epoch = 0 at 13.3
    estimate = crossing(random, selected)
    assert estimate.epoch == pytest.approx(0.1 / 0.0075) == estimate.lower == estimate.upper and estimate.share == 1.0


def test_the_interval_is_that_of_the_seeds() -> None:
    random, selected = curves([0.07, 0.1, 0.13], -0.02), curves([0.0, 0.0, 0.0], -0.0125)
    estimate = crossing(random, selected)
    assert estimate.lower is not None and estimate.upper is not None and estimate.epoch is not None
    assert estimate.lower == pytest.approx(0.07 / 0.0075, rel=0.1) and estimate.upper == pytest.approx(
        0.13 / 0.0075, rel=0.1
    )
    assert estimate.lower < estimate.epoch < estimate.upper
    many = crossing(curves([0.07, 0.1, 0.13] * 12, -0.02), selected)
    assert many.lower is not None and many.upper is not None
    assert many.upper - many.lower < (estimate.upper - estimate.lower) / 2


def test_curves_that_do_not_cross_have_no_epoch() -> None:
    estimate = crossing(curves([0.5], -0.01), curves([0.0], -0.01))
    assert (estimate.epoch, estimate.lower, estimate.upper, estimate.share) == (None, None, None, 0.0)
    never_lower = crossing(curves([0.0], -0.01), curves([0.1], -0.01))
    assert never_lower.epoch is None, "the other was never lower, so that nothing falls to it"
    with pytest.raises(InputError, match="two or more epochs that all seeds have, got 1"):
        crossing([{1: 0.5, 2: 0.4}], [{2: 0.4, 3: 0.3}])
    with pytest.raises(InputError, match="expected seeds of both"):
        crossing([], [{1: 0.5}])
