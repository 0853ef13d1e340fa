"""Curves fitted to the error rates of runs: later epochs predicted, and how well early epochs predicted the rest."""

import math
from collections.abc import Sequence

import numpy as np

from asr_lightning.analysis.convergence import backcast, fit
from asr_lightning.errors import InputError
from asr_lightning.report.figures import ErrorRate, rates_by_run
from asr_lightning.report.path_figures import ConvergenceCurve, plot_convergence
from asr_lightning.report.tables import MISSING, Section, Table, as_csv
from asr_lightning.scoring import Metric

FEWEST = 6  # epochs that a curve is fitted to; of fewer, its intervals are too wide to be of use
DRAWN = 120  # points of a curve
CURVE_COLUMNS = ("run", "subset", "epoch", "rate", "lower", "upper", "early")


def converge(
    rows: Sequence[ErrorRate],
    metric: Metric = "wer",
    horizon: int | None = None,
    early: int | None = None,
    level: float = 0.9,
) -> list[ConvergenceCurve]:
    """Fit the rates of runs; the measurements of all seeds of a run join in one fit.

    Args:
        rows: Of one or more runs.
        metric: Which rate.
        horizon: The epoch to look ahead to; one and a half times the last one if None.
        early: The last epoch that back-casting may see; half of a run's epochs if None.
        level: Share of measurements that intervals are to hold.

    Returns:
        One curve for each run and subset, in their order.
    """
    fits = []
    for run, by_subset in rates_by_run(rows, metric).items():
        for subset, seeds in by_subset.items():
            fits.append(_fit_curve(run, subset, list(seeds.values()), horizon, early, level))
    return fits


def _fit_curve(
    run: str, subset: str, seeds: list[dict[int, float]], horizon: int | None, early: int | None, level: float
) -> ConvergenceCurve:
    measured = sorted((epoch, rate) for seed in seeds for epoch, rate in seed.items() if epoch >= 1)
    epochs = sorted({epoch for epoch, _ in measured})
    if len(epochs) < FEWEST:
        problem = f"expected at least {FEWEST} epochs, got {len(epochs)}"
        return ConvergenceCurve(run, subset, len(seeds), measured, problem=problem)
    try:
        law = fit([epoch for epoch, _ in measured], [rate for _, rate in measured])
    except ValueError as error:
        return ConvergenceCurve(run, subset, len(seeds), measured, problem=str(error))
    drawn_epochs = np.linspace(epochs[0], max(horizon or math.ceil(1.5 * epochs[-1]), epochs[-1]), DRAWN)
    forecast = law.predict(drawn_epochs, level)
    fitted_to = early or epochs[math.ceil(len(epochs) / 2) - 1]
    try:
        early_fit = backcast(seeds, fitted_to, level)
    except ValueError:  # too few epochs, before or after
        return ConvergenceCurve(run, subset, len(seeds), measured, law, forecast)
    return ConvergenceCurve(
        run, subset, len(seeds), measured, law, forecast, early_fit, early_fit.curve.predict(drawn_epochs, level)
    )


def convergence_table(fits: Sequence[ConvergenceCurve], level: float) -> Table:
    """Make the table: one line for each run and subset, rates in per cent."""
    table = [
        ["run", "subset", "seeds", "epochs", "a %", "b", "c %", "spread %", "at epoch", "predicted %",
         "seen to epoch", "back-cast error %", "carried-forward error %", "coverage"],
    ]  # fmt: skip
    for curve in fits:
        epochs = len({epoch for epoch, _ in curve.measured})
        line = [curve.run, curve.subset, str(curve.seeds), str(epochs)]
        if curve.law is None or curve.forecast is None:
            table.append([*line, *[MISSING] * (len(table[0]) - len(line))])
            continue
        bounds, forecast = curve.law.bounds(level), curve.forecast
        line += [_format_interval(getattr(curve.law, name), bounds[name], 1 if name == "b" else 100) for name in "abc"]
        line.append(MISSING if math.isnan(curve.law.spread) else f"{100 * curve.law.spread:.1f}")
        last_rate = float(forecast.rates[-1]), (float(forecast.lower[-1]), float(forecast.upper[-1]))
        line += [f"{forecast.epochs[-1]:.0f}", _format_interval(*last_rate, 100)]
        early_fit = curve.backcast
        line += [MISSING] * 4 if early_fit is None else [
            str(early_fit.fitted_to), f"{100 * early_fit.error:.2f}", f"{100 * early_fit.naive_error:.2f}",
            MISSING if math.isnan(early_fit.coverage) else f"{early_fit.coverage:.0%} of {len(early_fit.epochs)}",
        ]  # fmt: skip
        table.append(line)
    return table


def _format_interval(value: float, bounds: tuple[float, float], factor: float) -> str:
    if math.isinf(bounds[1]) and bounds[0] == 0:
        return f"{factor * value:.2f}"
    high = "∞" if math.isinf(bounds[1]) else f"{factor * bounds[1]:.2f}"
    return f"{factor * value:.2f} ({factor * bounds[0]:.2f} to {high})"


def curve_rows(fits: Sequence[ConvergenceCurve]) -> list[list[str]]:
    """Return the curves that are drawn, as the lines of a CSV with `CURVE_COLUMNS`; rates are fractions."""
    lines = []
    for curve in fits:
        if curve.forecast is None:
            continue
        early = curve.early.rates if curve.early else [math.nan] * DRAWN
        forecast = curve.forecast
        rows = zip(forecast.epochs, forecast.rates, forecast.lower, forecast.upper, early, strict=True)
        lines += [[curve.run, curve.subset, *(f"{value:.6g}" for value in row)] for row in rows]
    return lines


def notes(fits: Sequence[ConvergenceCurve], metric: Metric, level: float) -> list[str]:
    """Return notes that explain the numbers of the table."""
    return [
        f"{metric.upper()} at epoch e is taken for c + a·e^(-b), fitted to logarithms of the rates of all seeds "
        "together; spread is that of single measurements around the curve, in per cent of the rate.",
        f"In brackets: where {level:.0%} of single measurements are expected, and of a, b, c their intervals.",
        "Back-cast: fitted to the first epochs only, and compared with what came later: mean absolute error in points "
        "of per cent, beside that of the last rate seen of the same seed carried forward; coverage is the share of "
        f"later measurements within their {level:.0%} intervals. Three points give no interval to three parameters.",
        *(f"{curve.run}, {curve.subset}: no curve; {curve.problem}" for curve in fits if curve.problem),
    ]


def convergence_section(
    rows: Sequence[ErrorRate],
    metric: Metric = "wer",
    horizon: int | None = None,
    early: int | None = None,
    level: float = 0.9,
) -> Section:
    """Return the fits of `converge` as a table, the curves and a figure.

    Raises:
        InputError: No run has rates of epoch 1 or later.
    """
    fits = converge(rows, metric, horizon, early, level)
    measured_fits = [curve for curve in fits if curve.measured]
    if not measured_fits:
        raise InputError("expected rates of epoch 1 or later, got none")
    stem, label = f"{metric}_convergence", f"{metric.upper().replace('_', ' ')} (%)"
    return Section(
        stem,
        convergence_table(fits, level),
        notes(fits, metric, level),
        files={
            f"{stem}_curves.csv": as_csv([list(CURVE_COLUMNS), *curve_rows(fits)]),
            f"{stem}.png": lambda path: plot_convergence(measured_fits, label, level, path),
        },
    )
