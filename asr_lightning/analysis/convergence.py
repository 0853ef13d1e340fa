"""Power laws of error rates over epochs, and predictions for later epochs [future work of Han et al. 2024].

The curve is r(e) = c + a·e^(-b): a power law that falls to an offset c, what more training cannot mend.

It is fitted to the logarithms of the rates. Rates vary in proportion to themselves rather than by an equal amount: of
26 epochs of small Korean Deep Speech 2 networks with three seeds each, the standard deviation between seeds grew with
the 0.83rd power of the mean CER, and with the 0.81st of the mean WER (1: in proportion, 0: by an equal amount). It also
keeps a rate that is far above the others, that of the first epoch, from deciding on everything.

With e in units of the first epoch and κ = c/a, log r = log a + log(κ + e^(-b)): given b and κ, the scale is a mean. So
the fit is a search over a grid of two numbers, refined where it is best: no starting point, no local minimum.

Uncertainty is by profile likelihood. A value z of a further measurement is in the interval where the least sum of
squares with it added, S(z), is below S·(1 + F/(n - 3)), with F the quantile of the F distribution with 1 and n - 3
degrees of freedom. For a line this is exactly Student's prediction interval. Given b and κ, S(z) is a parabola, so that
no simulation is needed. A bootstrap of residuals would be too narrow here, where three parameters meet five or ten
points.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares
from scipy.stats import f as f_distribution

PARAMETERS = 3
# With epochs in units of the first one: from hardly a bend to all of it at once, from no offset to nothing else.
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
        a: What training mends: the rate of epoch 1 above the offset. 0 or more, a fraction as the rates are.
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
        asked = np.atleast_1d(np.asarray(epochs, dtype=float))
        if self.points <= PARAMETERS:
            return Prediction(asked, self(asked), np.zeros(len(asked)), np.full(len(asked), np.inf))
        exponents, offsets, means, rooms = self._likely(level)
        widths = np.sqrt(rooms * (self.points + 1) / self.points)
        centers = means + np.log(offsets + (asked[:, None] / self.epochs.min()) ** -exponents)  # (E, candidates)
        return Prediction(
            asked, self(asked), np.exp((centers - widths).min(axis=1)), np.exp((centers + widths).max(axis=1))
        )

    def bounds(self, level: float = 0.9) -> dict[str, tuple[float, float]]:
        """Return the intervals of `a`, `b` and `c`; 0 and infinite where nothing is known."""
        if self.points <= PARAMETERS:
            return dict.fromkeys("abc", (0.0, math.inf))
        exponents, offsets, means, rooms = self._likely(level)
        widths = np.sqrt(rooms / self.points)
        low, high = np.exp(means - widths), np.exp(means + widths)
        steepness = self.epochs.min() ** exponents
        slowest, fastest = float(exponents.min()), float(exponents.max())
        return {
            "a": (float((low * steepness).min()), float((high * steepness).max())),
            "b": (slowest if slowest > EXPONENTS[0] else 0.0, fastest if fastest < EXPONENTS[-1] else math.inf),
            "c": (float((low * offsets).min()), float((high * offsets).max())),
        }

    def _likely(self, level: float) -> tuple[Array, Array, Array, Array]:
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

        The rings are ellipses as of a line's covariance, up to so many standard deviations.
        """
        scaled = self.epochs / self.epochs.min()
        own = self.c / (self.a * self.epochs.min() ** -self.b)
        power = scaled**-self.b
        slopes = np.stack([-power * np.log(scaled), np.ones_like(power)], axis=1) / (own + power)[:, None]  # (n, 2)
        _, sizes, axes = np.linalg.svd(slopes - slopes.mean(axis=0), full_matrices=False)
        radii, angles = np.linspace(0.0, reach * self.spread, 40), np.linspace(0.0, 2 * np.pi, 72, endpoint=False)
        circle = np.stack([np.cos(angles), np.sin(angles)], axis=1) / np.maximum(sizes, 1e-9)  # (72, 2)
        rings = (radii[:, None, None] * (circle @ axes)).reshape(-1, 2) + (self.b, own)
        exponents, offsets = np.meshgrid(EXPONENTS, OFFSETS, indexing="ij")
        return (
            np.concatenate([exponents.ravel(), np.clip(rings[:, 0], EXPONENTS[0], EXPONENTS[-1])]),
            np.concatenate([offsets.ravel(), np.clip(rings[:, 1], 0.0, OFFSETS[-1])]),
        )


def fit(epochs: ArrayLike, rates: ArrayLike) -> PowerLaw:
    """Fit a curve to error rates.

    Args:
        epochs: (n,), at least 1. One may come several times, as where several seeds were trained; their measurements
            are then taken to be independent.
        rates: (n,) above 0, as fractions.

    Raises:
        ValueError: Fewer than three different epochs, one below 1, or a rate that has no logarithm.
    """
    when, values = np.asarray(epochs, dtype=float), np.asarray(rates, dtype=float)
    if when.shape != values.shape or when.ndim != 1:
        raise ValueError(f"expected as many rates as epochs, got {values.shape} and {when.shape}")
    if len(np.unique(when)) < PARAMETERS or when.min() < 1:
        raise ValueError(f"expected at least {PARAMETERS} epochs from 1, got {sorted(set(when.tolist()))}")
    if not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"expected finite rates above 0, got {values.tolist()}")
    logs, scaled = np.log(values), when / when.min()
    grid = [axis.flatten() for axis in np.meshgrid(EXPONENTS, OFFSETS, indexing="ij")]
    sums, means = _sums_of_squares(scaled, logs, *grid)
    best = int(np.argmin(sums))
    scale, exponent, offset = _refine(scaled, logs, means[best], grid[0][best], grid[1][best])
    residuals = logs - scale - np.log(offset + scaled**-exponent)
    freedom = len(when) - PARAMETERS
    spread = math.sqrt(float(residuals @ residuals) / freedom) if freedom else math.nan
    excess = math.exp(scale)  # a, with epochs in units of the first
    return PowerLaw(excess * when.min() ** exponent, exponent, excess * offset, spread, when, logs)


def _sums_of_squares(epochs: Array, logs: Array, exponents: Array, offsets: Array) -> tuple[Array, Array]:
    """Return, for G pairs of b and c/a, the least sum of squares and the log a that gives it, (G,) each."""
    shapes = np.log(offsets[:, None] + epochs ** -exponents[:, None])  # (G, n)
    rests = logs - shapes
    means = rests.mean(axis=1)
    return np.square(rests - means[:, None]).sum(axis=1), means


def _refine(epochs: Array, logs: Array, scale: float, exponent: float, offset: float) -> tuple[float, float, float]:
    """Go from the best cell of the grid to the best point, within the grid's limits."""

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
        fitted_to: The last epoch that was seen.
        epochs: (N,) of the later measurements.
        measured: (N,) rates.
        predicted: (N,) by the curve.
        lower: (N,) bounds of the interval.
        upper: (N,).
        carried: (N,) the last rate that was seen of the same run: the naive prediction.
        curve: What was fitted.
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
    """Fit the epochs up to one, and predict those after it.

    Args:
        curves: Of each run, a seed of the same experiment, its rates by epoch; epochs before 1 do not count.
        fitted_to: The last epoch to fit.
        level: Of the intervals.

    Raises:
        ValueError: Too little was measured up to this epoch, nothing after it, or rates have no logarithm.
    """
    seen = [(epoch, rate) for curve in curves for epoch, rate in curve.items() if 1 <= epoch <= fitted_to]
    law = fit([epoch for epoch, _ in seen], [rate for _, rate in seen])
    later = []
    for curve in curves:
        before = [epoch for epoch in curve if 1 <= epoch <= fitted_to]
        if before:
            later += [(epoch, rate, curve[max(before)]) for epoch, rate in curve.items() if epoch > fitted_to]
    if not later:
        raise ValueError(f"expected epochs after {fitted_to}, got none")
    epochs, measured, carried = (np.array(column, dtype=float) for column in zip(*later, strict=True))
    prediction = law.predict(epochs, level)
    return Backcast(fitted_to, epochs, measured, prediction.rates, prediction.lower, prediction.upper, carried, law)
