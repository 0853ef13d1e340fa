"""Compares finished runs: error rates per epoch, the significance of the final ones, and the sentences behind them.

Example: python -m asr_lightning.tools.compare runs/random runs/rnnt_ws --baseline random --output reports/ws
"""

import argparse
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import get_args

from asr_lightning.errors import InputError, printable, printable_lines
from asr_lightning.files import write_atomically
from asr_lightning.report.figures import ErrorRate, plot_error_rates, rates_by_run
from asr_lightning.report.run_folders import COLUMNS, read_rates, scored_on
from asr_lightning.report.tables import Table, as_csv, as_markdown, as_text, escape_markdown, summarise
from asr_lightning.scoring import Metric
from asr_lightning.tools.compare_final import compare_final


def find_files(folders: Iterable[Path]) -> list[Path]:
    """Return every `error_rates.csv` under some folders, each once.

    Raises:
        InputError: There is none under one of them.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        files = sorted(folder.rglob("error_rates.csv"))
        if not files:
            state = "in no folder under it" if folder.is_dir() else "and that is no folder"
            raise InputError(
                f"expected the run folder {folder.absolute()} to hold error_rates.csv, {state}.\n"
                "The callback asr_lightning.callbacks.transcripts.Transcripts writes it while a recogniser is trained:"
                " lightning fit --config experiments/<name>.yaml"
            )
        found |= {file.resolve(): file for file in files}
    return list(found.values())


def merge(files: Iterable[Path]) -> list[ErrorRate]:
    """Read several files into one sorted list.

    Raises:
        InputError: Two lines are of the same run, seed, epoch and subset.
    """
    seen: dict[tuple[str, str, int, str], tuple[ErrorRate, Path]] = {}
    for path in files:
        for row in read_rates(path):
            key = (row.run, row.seed, row.epoch, row.subset)
            if key in seen:
                raise InputError(
                    f"run {row.run!r}, seed {row.seed!r}, epoch {row.epoch}, {row.subset} is in {seen[key][1]} and"
                    f" again in {path}: give one of the two folders, or name the runs apart (Transcripts.run)"
                )
            seen[key] = (row, path)
    return sorted((row for row, _ in seen.values()), key=_order)


def _order(row: ErrorRate) -> tuple[str, int, str, int, str]:
    return (row.run, len(row.seed), row.seed, row.epoch, row.subset)  # seed 2 before seed 10


def tabulate(rows: Sequence[ErrorRate], metric: Metric, reference: str | None = None) -> Table:
    """Make the table: one line per epoch, one column per subset and run, the reference left out."""
    by_run = rates_by_run((row for row in rows if row.run != reference), metric)
    subsets = sorted({subset for by_subset in by_run.values() for subset in by_subset})
    columns = [(subset, run) for subset in subsets for run in by_run]
    table = [["epoch", *(f"{subset} {run}" for subset, run in columns)]]
    for epoch in sorted({row.epoch for row in rows if row.run != reference}):
        cells = []
        for subset, run in columns:
            seeds = by_run[run].get(subset, {}).values()
            cells.append(summarise([rates[epoch] for rates in seeds if epoch in rates]))
        table.append([str(epoch), *cells])
    return table


def epochs_to_reach(rates: dict[int, float], target: float) -> float | None:
    """Return when a curve first is at or below a rate, in epochs, interpolated linearly between two of them.

    Args:
        rates: By epoch, in their order.
        target: The rate to reach.

    Returns:
        None where it never is.
    """
    before: tuple[int, float] | None = None
    for epoch, rate in rates.items():
        if rate <= target:
            if before is None or math.isinf(before[1]):
                return float(epoch)
            return before[0] + (epoch - before[0]) * (before[1] - target) / (before[1] - rate)
        before = (epoch, rate)
    return None


def half_way(seeds: Iterable[dict[int, float]]) -> tuple[int, float]:
    """Return the epoch half-way through a run, and its mean rate there over the seeds that have it.

    Where that epoch was not validated, it is the last one before it, or else the first of all.
    """
    seeds = list(seeds)
    epochs = sorted({epoch for rates in seeds for epoch in rates})
    epoch = max((one for one in epochs if 1 <= one <= max(epochs[-1] // 2, 1)), default=epochs[0])
    return epoch, statistics.fmean(rates[epoch] for rates in seeds if epoch in rates)


def speed_lines(rows: Sequence[ErrorRate], metric: Metric, baseline: str, reference: str | None) -> list[str]:
    """Say how soon each run is as good as the baseline half-way."""
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
            reached = [when for rates in seeds if (when := epochs_to_reach(rates, target)) is not None]
            if len(reached) == len(seeds):
                result = f"{statistics.fmean(reached):.1f}"
            else:
                result = f"> {max(max(rates) for rates in seeds)} ({len(reached)} of {len(seeds)} seeds got there)"
            lines.append(f"  * {run}: {result}")
    return lines


def notes(rows: Sequence[ErrorRate], metric: Metric, reference: str | None) -> list[str]:
    """Say what the table's numbers are of, and the last rates of the reference."""
    lines = [f"{metric.upper()} in %; mean ± sample standard deviation where a run has several seeds."]
    for run, by_subset in rates_by_run(rows, metric).items():
        seeds = sorted({seed for by_seed in by_subset.values() for seed in by_seed}, key=lambda seed: (len(seed), seed))
        lines.append(f"{run}: {len(seeds)} seed{'s' * (len(seeds) > 1)} ({', '.join(seed or '?' for seed in seeds)})")
        if run == reference:
            last = {name: [list(rates.values())[-1] for rates in seeds.values()] for name, seeds in by_subset.items()}
            lines[-1] += ", after its last epoch " + ", ".join(
                f"{name} {summarise(rates)}" for name, rates in last.items()
            )
    return lines + scored_on(rows)


def compare(
    runs: Sequence[Path],
    output: Path,
    metric: Metric = "wer",
    reference: str | None = None,
    baseline: str | None = None,
) -> str:
    """Write the table, the figure and the merged rates of some runs, and what `compare_final` finds at their end.

    Args:
        runs: Folders that hold an `error_rates.csv`, at any depth.
        output: Folder for `<metric>_per_epoch.csv`, `.md`, `.png` and `.svg`, and the files of `compare_final`.
        metric: Which rate the tables and the figure show.
        reference: Name of the run that is shown by its last epoch only: the teacher of the others.
        baseline: Name of the run that the others are timed against and tested against; without it they are tested
            against the first one and not timed.

    Returns:
        What to tell the user.

    Raises:
        InputError: No rates are found, a line is malformed, or a named run is not among them.
    """
    rows = merge(find_files(runs))
    names = sorted({row.run for row in rows})
    _check_names(names, reference, baseline)
    table = tabulate(rows, metric, reference)
    remarks = notes(rows, metric, reference)
    speeds = speed_lines(rows, metric, baseline, reference) if baseline else []
    stem = f"{metric}_per_epoch"
    bullets = [line if line.startswith(" ") else f"* {line}" for line in map(escape_markdown, remarks + speeds)]
    markdown = "\n".join([as_markdown(table), "", *bullets]) + "\n"
    for suffix, text in ((".csv", as_csv([COLUMNS, *map(astuple, rows)])), (".md", markdown)):
        write_atomically(output / f"{stem}{suffix}", text)
    plot_error_rates(rows, output / f"{stem}.png", metric, reference)
    last, files = compare_final(runs, output, metric, reference, baseline)
    names = [*(f"{stem}.{suffix}" for suffix in ("csv", "md", "png", "svg")), *files]
    lies = f"Written to {output.absolute()}: {', '.join(names)}"
    return printable_lines("\n".join([as_text(table), "", *map(printable, remarks + speeds), "", *last, "", lies]))


def _check_names(names: Sequence[str], reference: str | None, baseline: str | None) -> None:
    for option, name in (("--reference", reference), ("--baseline", baseline)):
        if name is not None and name not in names:
            raise InputError(f"{option}: expected one of the runs found, {', '.join(names)}; got {name!r}")
    if not set(names) - {reference}:
        raise InputError(f"expected runs to compare besides the reference, found {', '.join(names) or 'empty files'}")
    if baseline is not None and baseline == reference:
        raise InputError(f"--baseline and --reference: expected two runs, got {baseline!r} for both")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m asr_lightning.tools.compare",
        description="Compare finished runs: error rates per epoch, over seeds, as a table and a figure; their final"
        " rates with parameters and speeds; whether they differ significantly from a baseline (bootstrap and MAPSSWE);"
        " and word errors of each utterance, with the sentences that changed most. Rates are in % and times in"
        " epochs or seconds; files .csv have rates as fractions.",
        epilog="A run's name is that in its error_rates.csv: by default the name of the experiment's folder, whose"
        " seeds are put together. What needs transcripts is left out where a run has none of its last epoch.",
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder with error_rates.csv in it, or in folders under it"
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="where <metric>_per_epoch.csv, .md, .png, .svg, final.md, final_rates.csv, significance.csv are put, and"
        " for each run and subset utterances_….csv and sentences_….md",
    )
    parser.add_argument(
        "--reference", metavar="RUNNAME", help="the teacher: drawn as a dashed line, the rate of its last epoch"
    )
    parser.add_argument(
        "--baseline",
        metavar="RUNNAME",
        help="test the others against this run (default: the first one), and say after how many epochs they are as"
        " good as it is half-way (default: do not)",
    )
    parser.add_argument(
        "--metric",
        choices=get_args(Metric),
        default="wer",
        help="which error rate tables and figure show; significance is of word errors (default: wer)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 2 where the input cannot be used."""
    options = _parser().parse_args(arguments)
    try:
        print(compare(options.runs, options.output, options.metric, options.reference, options.baseline))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
