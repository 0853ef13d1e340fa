"""Curves fitted to the error rates of runs: later epochs predicted, and how well early epochs predicted the rest."""

import math
from collections.abc import Sequence

import numpy as np

from asr_lightning.analysis.convergence import PARAMETERS, backcast, fit
from asr_lightning.errors import InputError
from asr_lightning.report.figures import ErrorRate, rates_by_run
from asr_lightning.report.path_figures import ConvergenceCurve, plot_convergence
from asr_lightning.report.tables import MISSING, Section, Table, as_csv
from asr_lightning.scoring import Metric

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
        early: The last epoch that back-casting may see; half of a run's epochs, but at least three, if None.
        level: Share of measurements that intervals are to hold.

    Returns:
        One for each run and subset, in their order.
    """
    fits = []
    for run, by_subset in rates_by_run(rows, metric).items():
        for subset, seeds in by_subset.items():
            fits.append(_converge(run, subset, list(seeds.values()), horizon, early, level))
    return fits


def _converge(
    run: str, subset: str, seeds: list[dict[int, float]], horizon: int | None, early: int | None, level: float
) -> ConvergenceCurve:
    measured = sorted((epoch, rate) for seed in seeds for epoch, rate in seed.items() if epoch >= 1)
    epochs = sorted({epoch for epoch, _ in measured})
    try:
        law = fit([epoch for epoch, _ in measured], [rate for _, rate in measured])
    except ValueError as error:
        return ConvergenceCurve(run, subset, len(seeds), measured, problem=str(error))
    ahead = np.linspace(epochs[0], max(horizon or math.ceil(1.5 * epochs[-1]), epochs[-1]), DRAWN)
    forecast = law.predict(ahead, level)
    seen = early or epochs[max(PARAMETERS, math.ceil(len(epochs) / 2)) - 1]
    try:
        past = backcast(seeds, seen, level)
    except ValueError:  # too few epochs, before or after
        return ConvergenceCurve(run, subset, len(seeds), measured, law, forecast)
    return ConvergenceCurve(run, subset, len(seeds), measured, law, forecast, past, past.curve.predict(ahead, level))


def convergence_table(fits: Sequence[ConvergenceCurve], level: float) -> Table:
    """Make the table: one line for each run and subset, rates in per cent."""
    table = [
        ["run", "subset", "seeds", "epochs", "a %", "b", "c %", "spread %", "at epoch", "predicted %",
         "seen to epoch", "back-cast error %", "carried-forward error %", "coverage"],
    ]  # fmt: skip
    for fitted in fits:
        epochs = len({epoch for epoch, _ in fitted.measured})
        line = [fitted.run, fitted.subset, str(fitted.seeds), str(epochs)]
        if fitted.law is None or fitted.forecast is None:
            table.append([*line, *[MISSING] * (len(table[0]) - len(line))])
            continue
        bounds, ahead = fitted.law.bounds(level), fitted.forecast
        line += [_within(getattr(fitted.law, name), bounds[name], 1 if name == "b" else 100) for name in "abc"]
        line.append(MISSING if math.isnan(fitted.law.spread) else f"{100 * fitted.law.spread:.1f}")
        last = float(ahead.rates[-1]), (float(ahead.lower[-1]), float(ahead.upper[-1]))
        line += [f"{ahead.epochs[-1]:.0f}", _within(*last, 100)]
        past = fitted.backcast
        line += [MISSING] * 4 if past is None else [
            str(past.fitted_to), f"{100 * past.error:.2f}", f"{100 * past.naive_error:.2f}",
            MISSING if math.isnan(past.coverage) else f"{past.coverage:.0%} of {len(past.epochs)}",
        ]  # fmt: skip
        table.append(line)
    return table


def _within(value: float, bounds: tuple[float, float], factor: float) -> str:
    if math.isinf(bounds[1]) and bounds[0] == 0:
        return f"{factor * value:.2f}"
    high = "∞" if math.isinf(bounds[1]) else f"{factor * bounds[1]:.2f}"
    return f"{factor * value:.2f} ({factor * bounds[0]:.2f} to {high})"


def curve_rows(fits: Sequence[ConvergenceCurve]) -> list[list[str]]:
    """Return the curves that are drawn, as the lines of a CSV with `CURVE_COLUMNS`; rates are fractions."""
    lines = []
    for fitted in fits:
        if fitted.forecast is None:
            continue
        early = fitted.early.rates if fitted.early else [math.nan] * DRAWN
        ahead = fitted.forecast
        columns = zip(ahead.epochs, ahead.rates, ahead.lower, ahead.upper, early, strict=True)
        lines += [[fitted.run, fitted.subset, *(f"{value:.6g}" for value in row)] for row in columns]
    return lines


def notes(fits: Sequence[ConvergenceCurve], metric: Metric, level: float) -> list[str]:
    """Return notes on what the table's numbers are."""
    return [
        f"{metric.upper()} at epoch e is taken for c + a·e^(-b), fitted to logarithms of the rates of all seeds "
        "together; spread is that of single measurements around the curve, in per cent of the rate.",
        f"In brackets: where {level:.0%} of single measurements are expected, and of a, b, c their intervals.",
        "Back-cast: fitted to the first epochs only, and compared with what came later: mean absolute error in points "
        "of per cent, beside that of the last rate seen of the same seed carried forward; coverage is the share of "
        f"later measurements within their {level:.0%} intervals. Three points give no interval to three parameters.",
        *(f"{fitted.run}, {fitted.subset}: no curve; {fitted.problem}" for fitted in fits if fitted.problem),
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
    drawn = [fitted for fitted in fits if fitted.measured]
    if not drawn:
        raise InputError("expected rates of epoch 1 or later, got none")
    stem, label = f"{metric}_convergence", f"{metric.upper().replace('_', ' ')} (%)"
    return Section(
        stem,
        convergence_table(fits, level),
        notes(fits, metric, level),
        files={
            f"{stem}_curves.csv": as_csv([list(CURVE_COLUMNS), *curve_rows(fits)]),
            f"{stem}.png": lambda path: plot_convergence(drawn, label, level, path),
        },
    )
