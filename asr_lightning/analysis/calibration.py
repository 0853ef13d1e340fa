"""Calibration of confidences: how far they are from the share of right words, and maps that correct them."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from asr_lightning.errors import InputError, reason, shown
from asr_lightning.files import regular

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

EDGE = 1e-6  # confidences are kept so far from 0 and 1, whose logarithms are infinite
BINS = 10
LOG_TEMPERATURES = (-4.0, 4.0)  # natural logarithms: range in which the best temperature is searched


def normalized_cross_entropy(confidences: Floats, correct: Bools) -> float:
    """Return NIST's normalized cross-entropy, 1 for perfect confidences [Siu and Gish 1999].

    It is the share of the entropy of the share of right words that the confidences explain: 0 if each word has this
    share as its confidence, and negative where confidences mislead.

    Args:
        confidences: (N,), from 0 to 1.
        correct: (N,), whether each word is right.

    Raises:
        ValueError: There are only right or only wrong words, whose entropy is 0.
    """
    _check(confidences, correct)
    share = correct.mean()
    if share in (0.0, 1.0):
        raise ValueError(f"expected right and wrong words, got {len(correct)} words of which {share:.0%} are right")
    entropy = -(share * np.log(share) + (1 - share) * np.log(1 - share))
    return float(1.0 - _cross_entropy(confidences, correct) / entropy)


@dataclass(frozen=True)
class Reliability:
    """Words in bins of equal width by confidence; empty bins are left out.

    Attributes:
        confidence: (M,) mean of the bin.
        accuracy: (M,) share of right words.
        counts: (M,) words.
    """

    confidence: Floats
    accuracy: Floats
    counts: npt.NDArray[np.int64]

    @property
    def expected_error(self) -> float:
        """Expected calibration error: mean of |accuracy - confidence| over the words [Guo et al. 2017, 2]."""
        return float((np.abs(self.accuracy - self.confidence) * self.counts).sum() / self.counts.sum())


def reliability(confidences: Floats, correct: Bools, bins: int = BINS) -> Reliability:
    """Put words into bins by their confidence.

    Args:
        confidences: (N,), from 0 to 1.
        correct: (N,), whether each word is right.
        bins: Of equal width.

    Raises:
        ValueError: There are no words, or confidences are no probabilities.
    """
    _check(confidences, correct)
    numbers = np.minimum((confidences * bins).astype(np.int64), bins - 1)
    counts = np.bincount(numbers, minlength=bins)
    used = counts > 0
    sums = (np.bincount(numbers, weights=values, minlength=bins)[used] for values in (confidences, correct))
    confidence, accuracy = (total / counts[used] for total in sums)
    return Reliability(confidence, accuracy, counts[used])


class Calibration(ABC):
    """Base class: a map from confidences to better ones that keeps their order."""

    @abstractmethod
    def __call__(self, confidences: Floats) -> Floats:
        """Return calibrated confidences (N,) of (N,)."""

    @abstractmethod
    def as_json(self) -> dict[str, Any]:
        """Return the data from which `read_calibration` makes the same map."""


@dataclass(frozen=True)
class Temperature(Calibration):
    """Division of log odds by a temperature above 0 [Guo et al. 2017, 4.2]: above 1, confidences become less sure."""

    temperature: float

    def __call__(self, confidences: Floats) -> Floats:
        """Return calibrated confidences (N,) of (N,)."""
        inner = np.clip(confidences, EDGE, 1 - EDGE)
        return expit((np.log(inner) - np.log1p(-inner)) / self.temperature)

    def as_json(self) -> dict[str, Any]:
        """Return the temperature."""
        return {"temperature": self.temperature}


@dataclass(frozen=True)
class Isotonic(Calibration):
    """The best non-decreasing map [Zadrozny and Elkan 2002]; lines between the means of its steps.

    Attributes:
        confidence: (M,) rising.
        accuracy: (M,) never falling.
    """

    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]

    def __call__(self, confidences: Floats) -> Floats:
        """Return calibrated confidences (N,) of (N,)."""
        return np.interp(confidences, self.confidence, self.accuracy)

    def as_json(self) -> dict[str, Any]:
        """Return the steps."""
        return {"isotonic": {"confidence": list(self.confidence), "accuracy": list(self.accuracy)}}


def fit_temperature(confidences: Floats, correct: Bools) -> Temperature:
    """Return the temperature of the least cross-entropy, by golden section; it has one minimum in 1 / T.

    Raises:
        ValueError: There are no words, or confidences are no probabilities.
    """
    _check(confidences, correct)
    low, high = LOG_TEMPERATURES
    ratio = (5**0.5 - 1) / 2

    def loss(log_temperature: float) -> float:
        return _cross_entropy(Temperature(float(np.exp(log_temperature)))(confidences), correct)

    while high - low > 1e-6:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) <= loss(right) else (left, high)
    return Temperature(float(np.exp((low + high) / 2)))


def fit_isotonic(confidences: Floats, correct: Bools) -> Isotonic:
    """Return the least squares map that never falls, by pooling adjacent violators [Ayer et al. 1955].

    A step of n words is at least 1 / (2n) away from 0 and 1, since few words prove little.

    Raises:
        ValueError: There are no words, or confidences are no probabilities.
    """
    _check(confidences, correct)
    values, indices = np.unique(confidences, return_inverse=True)
    counts = np.bincount(indices).astype(float)
    hit_counts = np.bincount(indices, weights=correct)
    steps: list[tuple[float, float, float]] = []  # words, right words, summed confidence
    for count, hits, total in zip(counts, hit_counts, counts * values, strict=True):
        step = (count, hits, total)
        while steps and steps[-1][1] / steps[-1][0] >= step[1] / step[0]:
            previous = steps.pop()
            step = (previous[0] + step[0], previous[1] + step[1], previous[2] + step[2])
        steps.append(step)
    accuracy = np.maximum.accumulate([np.clip(hits / n, 1 / (2 * n), 1 - 1 / (2 * n)) for n, hits, _ in steps])
    return Isotonic(tuple(float(total / n) for n, _, total in steps), tuple(accuracy.tolist()))


def read_calibration(path: Path) -> Calibration:
    """Read a map that was written as JSON.

    Raises:
        InputError: There is no such file, or it holds something else.
    """
    try:
        content = json.loads(regular(path).read_text("utf-8"))
        if set(content) == {"temperature"} and 0 < (temperature := float(content["temperature"])) < float("inf"):
            return Temperature(temperature)
        steps = content["isotonic"]
        confidence, accuracy = (np.array(steps[name], dtype=float) for name in ("confidence", "accuracy"))
        rises = len(confidence) and (np.diff(confidence) > 0).all() and (np.diff(accuracy) >= 0).all()
        if not (rises and confidence.shape == accuracy.shape and 0 <= accuracy[0] and accuracy[-1] <= 1):
            raise ValueError("its steps do not rise from 0 to 1")
        return Isotonic(tuple(confidence.tolist()), tuple(accuracy.tolist()))
    except OSError as error:
        raise InputError(f"cannot read the calibration {path}: {reason(error)}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path}: expected a calibration as `tools.confidence` writes it, found something else: {shown(str(error))}"
        ) from error


def _cross_entropy(confidences: Floats, correct: Bools) -> float:
    inner = np.clip(confidences, EDGE, 1 - EDGE)
    return float(-np.where(correct, np.log(inner), np.log1p(-inner)).mean())


def _check(confidences: Sequence[float] | Floats, correct: Bools) -> None:
    values = np.asarray(confidences)
    if not len(values) or values.shape != np.shape(correct) or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(
            f"expected confidences from 0 to 1 and as many marks of right words, at least one, got shapes "
            f"{values.shape} and {np.shape(correct)}"
        )
