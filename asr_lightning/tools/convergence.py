"""Fits curves to the error rates of runs, predicts later epochs, and says how well early ones predicted the rest.

Example: python -m asr_lightning.tools.convergence runs/demo/rnnt_random runs/demo/rnnt_ws --output reports/ws
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from asr_lightning.analysis.convergence import PARAMETERS, backcast, fit
from asr_lightning.errors import InputError, printable_lines
from asr_lightning.files import write_atomically
from asr_lightning.report.figures import ErrorRate, rates_by_run
from asr_lightning.report.path_figures import ConvergenceCurve, plot_convergence
from asr_lightning.report.tables import MISSING, Table, as_csv, as_markdown, as_text, escape_markdown
from asr_lightning.scoring import Metric
from asr_lightning.tools.compare import find_files, merge

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
    found = []
    for run, by_subset in rates_by_run(rows, metric).items():
        for subset, seeds in by_subset.items():
            found.append(_converge(run, subset, list(seeds.values()), horizon, early, level))
    return found


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


def tabulate(found: Sequence[ConvergenceCurve], level: float) -> Table:
    """Make the table: one line for each run and subset, rates in per cent."""
    table = [
        ["run", "subset", "seeds", "epochs", "a %", "b", "c %", "spread %", "at epoch", "predicted %",
         "seen to epoch", "back-cast error %", "carried-forward error %", "coverage"],
    ]  # fmt: skip
    for one in found:
        epochs = len({epoch for epoch, _ in one.measured})
        line = [one.run, one.subset, str(one.seeds), str(epochs)]
        if one.law is None or one.forecast is None:
            table.append([*line, *[MISSING] * (len(table[0]) - len(line))])
            continue
        bounds, ahead = one.law.bounds(level), one.forecast
        line += [_within(getattr(one.law, name), bounds[name], 1 if name == "b" else 100) for name in "abc"]
        line.append(MISSING if math.isnan(one.law.spread) else f"{100 * one.law.spread:.1f}")
        last = float(ahead.rates[-1]), (float(ahead.lower[-1]), float(ahead.upper[-1]))
        line += [f"{ahead.epochs[-1]:.0f}", _within(*last, 100)]
        past = one.backcast
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


def curve_rows(found: Sequence[ConvergenceCurve]) -> list[list[str]]:
    """Return the curves that are drawn, as the lines of a CSV with `CURVE_COLUMNS`; rates are fractions."""
    lines = []
    for one in found:
        if one.forecast is None:
            continue
        early = one.early.rates if one.early else [math.nan] * DRAWN
        columns = zip(
            one.forecast.epochs, one.forecast.rates, one.forecast.lower, one.forecast.upper, early, strict=True
        )
        lines += [[one.run, one.subset, *(f"{value:.6g}" for value in row)] for row in columns]
    return lines


def notes(found: Sequence[ConvergenceCurve], metric: Metric, level: float) -> list[str]:
    """Say what the table's numbers are."""
    return [
        f"{metric.upper()} at epoch e is taken for c + a·e^(-b), fitted to logarithms of the rates of all seeds "
        "together; spread is that of single measurements around the curve, in per cent of the rate.",
        f"In brackets: where {level:.0%} of single measurements are expected, and of a, b, c their intervals.",
        "Back-cast: fitted to the first epochs only, and compared with what came later: mean absolute error in points "
        "of per cent, beside that of the last rate seen of the same seed carried forward; coverage is the share of "
        f"later measurements within their {level:.0%} intervals. Three points give no interval to three parameters.",
        *(f"{one.run}, {one.subset}: no curve; {one.problem}" for one in found if one.problem),
    ]


def report(
    runs: Sequence[Path], output: Path, metric: Metric, horizon: int | None, early: int | None, level: float
) -> str:
    """Write table, curves and picture of some runs, and return what to tell the user.

    Raises:
        InputError: No rates are found, or a line is malformed.
    """
    found = converge(merge(find_files(runs)), metric, horizon, early, level)
    if not any(one.measured for one in found):
        raise InputError("expected rates of epoch 1 or later, got none")
    stem = f"{metric}_convergence"
    table = tabulate(found, level)
    remarks = notes(found, metric, level)
    markdown = "\n".join([as_markdown(table), "", *(f"* {escape_markdown(line)}" for line in remarks)]) + "\n"
    write_atomically(output / f"{stem}.md", markdown)
    for name, lines in ((stem, table), (f"{stem}_curves", [list(CURVE_COLUMNS), *curve_rows(found)])):
        write_atomically(output / f"{name}.csv", as_csv(lines))
    drawn = [one for one in found if one.measured]
    plot_convergence(drawn, f"{metric.upper().replace('_', ' ')} (%)", level, output / f"{stem}.png")
    lies = f"Written to {output.absolute()}: {stem}.md, {stem}.csv, {stem}_curves.csv, {stem}.png"
    return printable_lines("\n".join([as_text(table), "", *remarks, "", lies]))


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m asr_lightning.tools.convergence",
        description="Fit c + a·e^(-b) to the error rates of runs at epochs e, predict a later epoch with an interval, "
        "and say how well the first epochs predicted the others.",
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder with error_rates.csv in it, or in folders under it"
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER",
        help="where wer_convergence.md, .csv and .png, and wer_convergence_curves.csv are written",
    )  # fmt: skip
    parser.add_argument("--metric", choices=get_args(Metric), default="wer", help="which error rate (default: wer)")
    parser.add_argument(
        "--horizon", type=int, metavar="EPOCH", help="look ahead to this epoch (default: 1.5 times the last one)"
    )
    parser.add_argument(
        "--early", type=int, metavar="EPOCH",
        help="last epoch that back-casting sees (default: half of the epochs, at least 3)",
    )  # fmt: skip
    parser.add_argument(
        "--level",
        type=float,
        default=0.9,
        metavar="SHARE",
        help="of measurements in an interval, 0 to 1 (default: 0.9)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 2 where the input cannot be used."""
    options = make_parser().parse_args(arguments)
    try:
        if not 0 < options.level < 1:
            raise InputError(f"--level: expected a share between 0 and 1, got {options.level}")
        if min(options.horizon or 1, options.early or 1) < 1:
            raise InputError("--horizon and --early: expected epochs from 1")
        print(report(options.runs, options.output, options.metric, options.horizon, options.early, options.level))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
