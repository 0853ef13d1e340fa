"""Power laws of error rates over epochs, and predictions for later epochs [future work of Han et al. 2024].

The curve is r(e) = c + a·e^(-b): a power law that falls to an offset c, which more training cannot remove.

It is fitted to the logarithms of the rates. Rates vary in proportion to themselves rather than by an equal amount: of
26 epochs of small Korean Deep Speech 2 networks with three seeds each, the standard deviation between seeds grew with
the 0.83rd power of the mean CER, and with the 0.81st of the mean WER (1: in proportion, 0: by an equal amount). It also
keeps a rate that is far above the others, that of the first epoch, from dominating the fit.

With e in units of the first epoch and κ = c/a, log r = log a + log(κ + e^(-b)): given b and κ, the scale is a mean. So
the fit is a search over a grid of two numbers, refined where it is best: no starting point, no local minimum.

Uncertainty is by profile likelihood. A value z of a further measurement is in the interval where the least sum of
squares with it added, S(z), is below S·(1 + F/(n - 3)), with F the quantile of the F distribution with 1 and n - 3
degrees of freedom. For a line this is exactly Student's prediction interval. Given b and κ, S(z) is a parabola, so that
no simulation is needed. A bootstrap of residuals would be too narrow here, where three parameters are fitted to five
or ten points.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares
from scipy.stats import f as f_distribution

PARAMETERS = 3
# Epochs in units of the first one. Exponents: from hardly any fall to one at once; offsets: from none to nothing else.
EXPONENTS = np.geomspace(0.01, 10.0, 80)
OFFSETS = np.concatenate([[0.0], np.geomspace(1e-4, 1e4, 80)])  # c/a

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Prediction:
    """Rates that a curve predicts, (E,), and between which bounds a measurement is expected, (E,) each."""

    epochs: Array
    rates: Array
    lower: Array
    upper: Array


@dataclass(frozen=True)
class PowerLaw:
    """A fitted curve r(e) = c + a·e^(-b), with e counted from 1.

    Attributes:
        a: What training removes: the rate of epoch 1 above the offset. 0 or more, a fraction as the rates are.
        b: How fast: the excess over the offset falls 2^b-fold when the epochs double. 0 or more.
        c: The offset, 0 or more.
        spread: Standard deviation of log rates around the curve; 0.1 is about 10 % of the rate. NaN without a degree of
            freedom.
        epochs: (n,) of the measurements that it was fitted to.
        logs: (n,) natural logarithms of their rates.
    """

    a: float
    b: float
    c: float
    spread: float
    epochs: Array
    logs: Array

    @property
    def points(self) -> int:
        """How many measurements the curve was fitted to."""
        return len(self.epochs)

    def __call__(self, epochs: ArrayLike) -> Array:
        """Return the rates at epochs."""
        return self.c + self.a * np.asarray(epochs, dtype=float) ** -self.b

    def predict(self, epochs: ArrayLike, level: float = 0.9) -> Prediction:
        """Predict what will be measured at epochs.

        Args:
            epochs: (E,), at least 1.
            level: Share of measurements that are to lie within their bounds, each by itself.

        Returns:
            Bounds are 0 and infinite where the curve has as many parameters as points.
        """
        horizon = np.atleast_1d(np.asarray(epochs, dtype=float))
        if self.points <= PARAMETERS:
            return Prediction(horizon, self(horizon), np.zeros(len(horizon)), np.full(len(horizon), np.inf))
        exponents, offsets, means, rooms = self._confidence_region(level)
        widths = np.sqrt(rooms * (self.points + 1) / self.points)
        centers = means + np.log(offsets + (horizon[:, None] / self.epochs.min()) ** -exponents)  # (E, candidates)
        return Prediction(
            horizon, self(horizon), np.exp((centers - widths).min(axis=1)), np.exp((centers + widths).max(axis=1))
        )

    def bounds(self, level: float = 0.9) -> dict[str, tuple[float, float]]:
        """Return the intervals of `a`, `b` and `c`; 0 and infinite where nothing is known."""
        if self.points <= PARAMETERS:
            return dict.fromkeys("abc", (0.0, math.inf))
        exponents, offsets, means, rooms = self._confidence_region(level)
        widths = np.sqrt(rooms / self.points)
        low, high = np.exp(means - widths), np.exp(means + widths)
        steepness = self.epochs.min() ** exponents
        slowest, fastest = float(exponents.min()), float(exponents.max())
        return {
            "a": (float((low * steepness).min()), float((high * steepness).max())),
            "b": (slowest if slowest > EXPONENTS[0] else 0.0, fastest if fastest < EXPONENTS[-1] else math.inf),
            "c": (float((low * offsets).min()), float((high * offsets).max())),
        }

    def _confidence_region(self, level: float) -> tuple[Array, Array, Array, Array]:
        """Return b, c/a, mean log a and how much the sum of squares may still grow, of all pairs within a level."""
        freedom = self.points - PARAMETERS
        quantile = f_distribution.ppf(level, 1, freedom)
        exponents, offsets = self._candidates(reach=2.0 * math.sqrt(quantile))
        sums, means = _sums_of_squares(self.epochs / self.epochs.min(), self.logs, exponents, offsets)
        limit = sums.min() * (1.0 + quantile / freedom)
        inside = sums <= limit
        return exponents[inside], offsets[inside], means[inside], limit - sums[inside]

    def _candidates(self, reach: float) -> tuple[Array, Array]:
        """Return pairs of b and c/a, flat: the fit, the grid, and rings around the fit where the grid is too coarse.

        The rings are ellipses as of a line's covariance, up to `reach` standard deviations.
        """
        scaled = self.epochs / self.epochs.min()
        ratio = self.c / (self.a * self.epochs.min() ** -self.b)
        power = scaled**-self.b
        slopes = np.stack([-power * np.log(scaled), np.ones_like(power)], axis=1) / (ratio + power)[:, None]  # (n, 2)
        _, sizes, axes = np.linalg.svd(slopes - slopes.mean(axis=0), full_matrices=False)
        radii, angles = np.linspace(0.0, reach * self.spread, 40), np.linspace(0.0, 2 * np.pi, 72, endpoint=False)
        circle = np.stack([np.cos(angles), np.sin(angles)], axis=1) / np.maximum(sizes, 1e-9)  # (72, 2)
        rings = (radii[:, None, None] * (circle @ axes)).reshape(-1, 2) + (self.b, ratio)
        exponents, offsets = np.meshgrid(EXPONENTS, OFFSETS, indexing="ij")
        return (
            np.concatenate([exponents.ravel(), np.clip(rings[:, 0], EXPONENTS[0], EXPONENTS[-1])]),
            np.concatenate([offsets.ravel(), np.clip(rings[:, 1], 0.0, OFFSETS[-1])]),
        )


def fit(epochs: ArrayLike, rates: ArrayLike) -> PowerLaw:
    """Fit a curve to error rates.

    Args:
        epochs: (n,), at least 1. An epoch may occur several times, as with several seeds; their measurements are then
            taken to be independent.
        rates: (n,) above 0, as fractions.

    Raises:
        ValueError: Fewer than three different epochs, one below 1, or a rate that has no logarithm.
    """
    epoch_numbers, values = np.asarray(epochs, dtype=float), np.asarray(rates, dtype=float)
    if epoch_numbers.shape != values.shape or epoch_numbers.ndim != 1:
        raise ValueError(f"expected as many rates as epochs, got {values.shape} and {epoch_numbers.shape}")
    if len(np.unique(epoch_numbers)) < PARAMETERS or epoch_numbers.min() < 1:
        raise ValueError(f"expected at least {PARAMETERS} epochs from 1, got {sorted(set(epoch_numbers.tolist()))}")
    if not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"expected finite rates above 0, got {values.tolist()}")
    logs, scaled = np.log(values), epoch_numbers / epoch_numbers.min()
    grid = [axis.flatten() for axis in np.meshgrid(EXPONENTS, OFFSETS, indexing="ij")]
    sums, means = _sums_of_squares(scaled, logs, *grid)
    best = int(np.argmin(sums))
    scale, exponent, offset = _refine(scaled, logs, means[best], grid[0][best], grid[1][best])
    residuals = logs - scale - np.log(offset + scaled**-exponent)
    freedom = len(epoch_numbers) - PARAMETERS
    spread = math.sqrt(float(residuals @ residuals) / freedom) if freedom else math.nan
    excess = math.exp(scale)  # a, with epochs in units of the first
    return PowerLaw(excess * epoch_numbers.min() ** exponent, exponent, excess * offset, spread, epoch_numbers, logs)


def _sums_of_squares(epochs: Array, logs: Array, exponents: Array, offsets: Array) -> tuple[Array, Array]:
    """Return, for G pairs of b and c/a, the least sum of squares and the log a that gives it, (G,) each."""
    shapes = np.log(offsets[:, None] + epochs ** -exponents[:, None])  # (G, n)
    differences = logs - shapes
    means = differences.mean(axis=1)
    return np.square(differences - means[:, None]).sum(axis=1), means


def _refine(epochs: Array, logs: Array, scale: float, exponent: float, offset: float) -> tuple[float, float, float]:
    """Refine the best cell of the grid to the best point, within the grid's limits."""

    def residuals(point: Array) -> Array:
        return point[0] + np.log(point[2] + epochs ** -point[1]) - logs

    limits = [-np.inf, EXPONENTS[0], 0.0], [np.inf, EXPONENTS[-1], OFFSETS[-1]]
    start = np.clip([scale, exponent, offset], *limits)
    solution = least_squares(
        residuals, start, bounds=limits, x_scale=np.maximum(np.abs(start), 1e-3), xtol=1e-12, ftol=1e-12, gtol=1e-12
    )
    chosen = solution.x if 2 * solution.cost < float(np.square(residuals(start)).sum()) else start
    return float(chosen[0]), float(chosen[1]), float(chosen[2])


@dataclass(frozen=True)
class Backcast:
    """Predictions from the first epochs, compared with the measurements that followed.

    Attributes:
        fitted_to: The last epoch that was fitted.
        epochs: (N,) of the later measurements.
        measured: (N,) rates.
        predicted: (N,) by the curve.
        lower: (N,) bounds of the interval.
        upper: (N,).
        carried: (N,) the last rate that was seen of the same run: the naive prediction.
        curve: The fitted curve.
    """

    fitted_to: int
    epochs: Array
    measured: Array
    predicted: Array
    lower: Array
    upper: Array
    carried: Array
    curve: PowerLaw

    @property
    def error(self) -> float:
        """Mean absolute error of the curve, as the rates."""
        return float(np.abs(self.predicted - self.measured).mean())

    @property
    def naive_error(self) -> float:
        """Mean absolute error of the last rate carried forward."""
        return float(np.abs(self.carried - self.measured).mean())

    @property
    def coverage(self) -> float:
        """Share of measurements within their bounds; NaN where there are no bounds."""
        if np.isinf(self.upper).all():
            return math.nan
        return float(((self.lower <= self.measured) & (self.measured <= self.upper)).mean())


def backcast(curves: Sequence[dict[int, float]], fitted_to: int, level: float = 0.9) -> Backcast:
    """Fit the epochs up to `fitted_to`, and predict the later ones.

    Args:
        curves: Of each run, a seed of the same experiment, its rates by epoch; epochs before 1 do not count.
        fitted_to: The last epoch to fit.
        level: Of the intervals.

    Raises:
        ValueError: Too little was measured up to this epoch, nothing after it, or rates have no logarithm.
    """
    fitted = [(epoch, rate) for curve in curves for epoch, rate in curve.items() if 1 <= epoch <= fitted_to]
    law = fit([epoch for epoch, _ in fitted], [rate for _, rate in fitted])
    later = []
    for curve in curves:
        fitted_epochs = [epoch for epoch in curve if 1 <= epoch <= fitted_to]
        if fitted_epochs:
            later += [(epoch, rate, curve[max(fitted_epochs)]) for epoch, rate in curve.items() if epoch > fitted_to]
    if not later:
        raise ValueError(f"expected epochs after {fitted_to}, got none")
    epochs, measured, carried = (np.array(column, dtype=float) for column in zip(*later, strict=True))
    prediction = law.predict(epochs, level)
    return Backcast(fitted_to, epochs, measured, prediction.rates, prediction.lower, prediction.upper, carried, law)
