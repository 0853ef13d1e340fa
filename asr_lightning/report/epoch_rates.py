"""Error rates of runs per epoch: as a table, as a figure, and how soon a run is as good as another."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import astuple
from pathlib import Path

from asr_lightning.analysis.training_curves import crossing
from asr_lightning.errors import InputError
from asr_lightning.report.figures import ErrorRate, plot_error_rates, rates_by_run
from asr_lightning.report.run_folders import COLUMNS, read_rates, scored_on
from asr_lightning.report.tables import MISSING, Section, Table, summarize
from asr_lightning.scoring import Metric


def find_files(folders: Iterable[Path]) -> list[Path]:
    """Return every `error_rates.csv` under some folders, each once.

    Raises:
        InputError: There is none under one of them.
    """
    paths: dict[Path, Path] = {}
    for folder in folders:
        files = sorted(folder.rglob("error_rates.csv"))
        if not files:
            state = "in no folder under it" if folder.is_dir() else "and that is no folder"
            raise InputError(
                f"expected the run folder {folder.absolute()} to hold error_rates.csv, {state}.\n"
                "The callback asr_lightning.callbacks.transcripts.Transcripts writes it while a recognizer is trained:"
                " lightning fit --config experiments/<name>.yaml"
            )
        paths |= {file.resolve(): file for file in files}
    return list(paths.values())


def merge(files: Iterable[Path]) -> list[ErrorRate]:
    """Read several files into one sorted list.

    Raises:
        InputError: Two lines are of the same run, seed, epoch and subset.
    """
    merged: dict[tuple[str, str, int, str], tuple[ErrorRate, Path]] = {}
    for path in files:
        for row in read_rates(path):
            key = (row.run, row.seed, row.epoch, row.subset)
            if key in merged:
                raise InputError(
                    f"run {row.run!r}, seed {row.seed!r}, epoch {row.epoch}, {row.subset} is in {merged[key][1]} and"
                    f" again in {path}: give one of the two folders, or name the runs differently by Transcripts.run"
                )
            merged[key] = (row, path)
    return sorted((row for row, _ in merged.values()), key=_order)


def _order(row: ErrorRate) -> tuple[str, int, str, int, str]:
    return (row.run, len(row.seed), row.seed, row.epoch, row.subset)  # seed 2 before seed 10


def rates_table(rows: Sequence[ErrorRate], metric: Metric, reference: str | None = None) -> Table:
    """Make the table: one line per epoch, one column per subset and run, the reference left out."""
    by_run = rates_by_run((row for row in rows if row.run != reference), metric)
    subsets = sorted({subset for by_subset in by_run.values() for subset in by_subset})
    columns = [(subset, run) for subset in subsets for run in by_run]
    table = [["epoch", *(f"{subset} {run}" for subset, run in columns)]]
    for epoch in sorted({row.epoch for row in rows if row.run != reference}):
        cells = []
        for subset, run in columns:
            seeds = by_run[run].get(subset, {}).values()
            cells.append(summarize([rates[epoch] for rates in seeds if epoch in rates]))
        table.append([str(epoch), *cells])
    return table


def epochs_to_reach(rates: dict[int, float], target: float) -> float | None:
    """Return when a curve first is at or below a rate, in epochs, interpolated linearly between two of them.

    Args:
        rates: By epoch, in their order.
        target: The rate to reach.

    Returns:
        None if it never is.
    """
    previous: tuple[int, float] | None = None
    for epoch, rate in rates.items():
        if rate <= target:
            if previous is None or math.isinf(previous[1]):
                return float(epoch)
            return previous[0] + (epoch - previous[0]) * (previous[1] - target) / (previous[1] - rate)
        previous = (epoch, rate)
    return None


def half_way(seeds: Iterable[dict[int, float]]) -> tuple[int, float]:
    """Return the epoch half-way through a run, and its mean rate there over the seeds that have it.

    If that epoch was not validated, it is the last validated one before, or else the first of all.
    """
    seeds = list(seeds)
    epochs = sorted({epoch for rates in seeds for epoch in rates})
    epoch = max((epoch for epoch in epochs if 1 <= epoch <= max(epochs[-1] // 2, 1)), default=epochs[0])
    return epoch, statistics.fmean(rates[epoch] for rates in seeds if epoch in rates)


def speed_lines(rows: Sequence[ErrorRate], metric: Metric, baseline: str, reference: str | None) -> list[str]:
    """Return notes on how soon each run is as good as the baseline half-way."""
    by_run = rates_by_run((row for row in rows if row.run != reference), metric)
    lines = []
    for subset, baseline_seeds in by_run[baseline].items():
        epoch, target = half_way(baseline_seeds.values())
        lines.append(
            f"Epochs to reach {100 * target:.2f} % {metric.upper()} on {subset} ({baseline} after epoch {epoch}):"
        )
        for run, by_subset in by_run.items():
            if run == baseline or subset not in by_subset:
                continue
            seeds = list(by_subset[subset].values())
            reached = [epochs for rates in seeds if (epochs := epochs_to_reach(rates, target)) is not None]
            if len(reached) == len(seeds):
                result = f"{statistics.fmean(reached):.1f}"
            else:
                result = f"> {max(max(rates) for rates in seeds)} ({len(reached)} of {len(seeds)} seeds got there)"
            lines.append(f"  * {run}: {result}")
    for run, subset, crossed, interval in crossing_table(rows, metric, baseline)[1:]:
        if run != reference:
            spread = "" if interval == MISSING else f" (95 % interval over seeds {interval})"
            lines.append(f"{baseline} is as good as {run} on {subset} at epoch {crossed}{spread}.")
    return lines


def crossing_table(rows: Sequence[ErrorRate], metric: Metric, baseline: str) -> Table:
    """Return at which epoch the baseline is as good as each run that was better at first; only the head if none was.

    The interval is that of a bootstrap over seeds, see `asr_lightning.analysis.training_curves.crossing`.
    """
    by_run = rates_by_run(rows, metric)
    table = [["run", "subset", f"epoch at which {baseline} is as good", "95 % interval over seeds"]]
    for run, by_subset in by_run.items():
        for subset, seeds in by_subset.items():
            baseline_seeds = by_run.get(baseline, {}).get(subset)
            if run == baseline or baseline_seeds is None:
                continue
            try:
                result = crossing(list(baseline_seeds.values()), list(seeds.values()))
            except InputError:  # fewer than two epochs in common
                continue
            if result.epoch is not None:
                several = min(len(baseline_seeds), len(seeds)) > 1
                has_interval = several and result.lower is not None  # no resample may cross, where means only touch
                interval = f"{result.lower:.1f} to {result.upper:.1f}" if has_interval else MISSING
                table.append([run, subset, f"{result.epoch:.1f}", interval])
    return table


def notes(rows: Sequence[ErrorRate], metric: Metric, reference: str | None) -> list[str]:
    """Return notes on the metric, the seeds and the scored utterances, and the last rates of the reference."""
    lines = [f"{metric.upper()} in %; mean ± sample standard deviation where a run has several seeds."]
    for run, by_subset in rates_by_run(rows, metric).items():
        seeds = sorted({seed for by_seed in by_subset.values() for seed in by_seed}, key=lambda seed: (len(seed), seed))
        lines.append(f"{run}: {len(seeds)} seed{'s' * (len(seeds) > 1)} ({', '.join(seed or '?' for seed in seeds)})")
        if run == reference:
            last_rates = {
                name: [list(rates.values())[-1] for rates in seeds.values()] for name, seeds in by_subset.items()
            }
            lines[-1] += ", after its last epoch " + ", ".join(
                f"{name} {summarize(rates)}" for name, rates in last_rates.items()
            )
    return lines + scored_on(rows)


def epoch_section(rows: Sequence[ErrorRate], metric: Metric, reference: str | None, baseline: str | None) -> Section:
    """Return rates per epoch, a figure of them, and how soon runs are as good as the baseline half-way.

    Args:
        rows: As `merge` returns them.
        metric: Which rate.
        reference: Name of the run that is shown by its last epoch only: the teacher of the others.
        baseline: Name of the run that the others are timed against; they are not timed if None.
    """
    stem = f"{metric}_per_epoch"
    return Section(
        stem,
        rates_table(rows, metric, reference),
        notes(rows, metric, reference) + (speed_lines(rows, metric, baseline, reference) if baseline else []),
        [COLUMNS, *map(astuple, rows)],
        {f"{stem}.png": lambda path: plot_error_rates(rows, path, metric, reference)},
    )
