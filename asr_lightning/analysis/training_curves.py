"""Curves of trainings: gradient norms early and late, and the epoch at which two learning curves cross."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from asr_lightning.errors import InputError


@dataclass(frozen=True)
class NormSpan:
    """Gradient norms of a module in a span of a training.

    Attributes:
        first: Optimizer step of the first of them.
        last: Step of the last.
        count: How many there are.
        norm: Their mean.
        change: Mean absolute difference of successive norms.
        relative_change: Mean of |ln(next / norm)|, which is the same for gradients of any scale; norms of 0, as of a
            frozen module, are left out.
    """

    first: int
    last: int
    count: int
    norm: float
    change: float
    relative_change: float


def early_and_late(steps: ArrayLike, norms: ArrayLike, share: float = 0.1) -> tuple[NormSpan, NormSpan]:
    """Return the gradient norms at the beginning and at the end of a training.

    Changes are those from one logged step to the next: of every step where `trainer.log_every_n_steps` is 1.

    Args:
        steps: (N,) optimizer steps, rising.
        norms: (N,) the norm at each.
        share: Of the steps that are early, and of those that are late; at most a half.

    Raises:
        InputError: The steps do not rise, or a span has less than two norms.
    """
    steps, norms = np.asarray(steps, int), np.asarray(norms, float)
    if not 0 < share <= 0.5:
        raise InputError(f"share: expected more than 0 and at most 0.5, got {share}")
    if len(steps) < 4 or np.any(np.diff(steps) <= 0):
        raise InputError(f"gradient norms: expected four or more at rising steps, got {len(steps)}")
    length = (steps[-1] - steps[0]) * share
    return _span(steps, norms, steps <= steps[0] + length), _span(steps, norms, steps >= steps[-1] - length)


def _span(steps: np.ndarray, norms: np.ndarray, inside: np.ndarray) -> NormSpan:
    span_norms, span_steps = norms[inside], steps[inside]
    if len(span_norms) < 2:
        raise InputError(
            f"gradient norms: expected two or more from step {span_steps[0]} to {span_steps[-1]}, found "
            f"{len(span_norms)}: take a larger share, or log more often by trainer.log_every_n_steps"
        )
    positive = span_norms[span_norms > 0]
    relative = np.abs(np.diff(np.log(positive)))
    return NormSpan(
        first=int(span_steps[0]),
        last=int(span_steps[-1]),
        count=len(span_norms),
        norm=float(span_norms.mean()),
        change=float(np.abs(np.diff(span_norms)).mean()),
        relative_change=float(relative.mean()) if len(relative) else math.nan,
    )


@dataclass(frozen=True)
class Crossing:
    """Where the learning curve of one experiment falls to that of another, which was lower at first.

    Attributes:
        epoch: With fractions, on lines between the epochs; None where the means over seeds do not cross.
        lower: End of the interval; None where no resample crosses.
        upper: Likewise.
        share: Of the resamples that cross.
    """

    epoch: float | None
    lower: float | None
    upper: float | None
    share: float


def crossing(
    baseline: Sequence[Mapping[int, float]],
    other: Sequence[Mapping[int, float]],
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Crossing:
    """Return the last epoch at which the mean rate of the baseline falls to that of the other experiment.

    The interval is that of a bootstrap over seeds: those of each experiment are drawn with replacement. With
    three seeds for each experiment it is a rough one.

    Args:
        baseline: Rate by epoch, for each seed.
        other: Likewise, of the experiment that is expected to be lower at first.
        level: Of the interval.
        resamples: How many are drawn.
        seed: Of the draws.

    Raises:
        InputError: An experiment has no seed, or they share fewer than two epochs.
    """
    if not baseline or not other:
        raise InputError(f"crossing: expected seeds of both experiments, got {len(baseline)} and {len(other)}")
    epochs = sorted(set.intersection(*(set(curve) for curve in (*baseline, *other))))
    if len(epochs) < 2:
        raise InputError(f"crossing: expected two or more epochs that all seeds have, got {len(epochs)}")
    first, second = (np.array([[curve[epoch] for epoch in epochs] for curve in curves]) for curves in (baseline, other))
    generator = np.random.default_rng(seed)
    crossings = []
    for _ in range(resamples):
        draws = [curves[generator.integers(len(curves), size=len(curves))] for curves in (first, second)]
        crossings.append(_last_crossing(epochs, draws[0].mean(0) - draws[1].mean(0)))
    crossed = [epoch for epoch in crossings if epoch is not None]
    tail = (1 - level) / 2
    lower, upper = np.quantile(crossed, [tail, 1 - tail]).tolist() if crossed else (None, None)
    return Crossing(_last_crossing(epochs, first.mean(0) - second.mean(0)), lower, upper, len(crossed) / resamples)


def _last_crossing(epochs: Sequence[int], differences: np.ndarray) -> float | None:
    """Return where differences, on lines between epochs, last fall from above 0 to 0 or below."""
    for index in range(len(epochs) - 1, 0, -1):
        start, end = differences[index - 1], differences[index]
        if start > 0 >= end:
            return float(epochs[index - 1] + (epochs[index] - epochs[index - 1]) * start / (start - end))
    return None
