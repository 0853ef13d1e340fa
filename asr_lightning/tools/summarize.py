"""Puts finished runs beside each other: final error rates, size, time of training and speed of recognition.

Example: python -m asr_lightning.tools.summarize runs/las runs/e2e --output reports/attention
"""

import argparse
import csv
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from asr_lightning.errors import InputError
from asr_lightning.files import replacing, write_atomically
from asr_lightning.report.figures import ErrorRate, Metric
from asr_lightning.tools.compare import MISSING, Table, as_markdown, as_text, read_rates, summarise
from asr_lightning.tools.parameters import count_parameters, read_part

RATES = ("test_error_rates.csv", "error_rates.csv")  # the first that is there


@dataclass(frozen=True)
class Run:
    """What one run folder says.

    Attributes:
        rates: Of its last epoch, by subset.
        parameters: Trainable ones.
        training_seconds: Wall time of training; None where the run only tested another's network.
        real_time_factors: Seconds of search per second of audio, by subset; that of the rates.
    """

    rates: dict[str, ErrorRate]
    parameters: int
    training_seconds: float | None
    real_time_factors: dict[str, float]


def find_runs(folders: Iterable[Path]) -> list[Path]:
    """Return the folders that hold error rates, each once.

    Raises:
        InputError: There is none under one of them.
    """
    found: dict[Path, None] = {}
    for folder in folders:
        runs = sorted({file.parent.resolve() for name in RATES for file in folder.rglob(name)})
        if not runs:
            raise InputError(f"expected {' or '.join(RATES)} in {folder.absolute()}, or in a folder under it, got none")
        found |= dict.fromkeys(runs)
    return list(found)


def read_run(folder: Path) -> Run:
    """Read what a run has logged.

    Raises:
        InputError: A file is missing or malformed.
    """
    path = next(folder / name for name in RATES if (folder / name).exists())
    rows = read_rates(path)
    last = max((row.epoch for row in rows), default=None)
    if last is None:
        raise InputError(f"{path}: expected a line for each subset, got an empty file")
    versions = sorted(folder.glob("logs/version_*/metrics.csv"), key=lambda file: int(file.parent.name.split("_")[1]))
    if not versions:
        raise InputError(f"expected logs/version_<n>/metrics.csv in {folder}, as Lightning's CSVLogger writes it")
    metrics = [row for version in versions for row in _read_metrics(version)]
    seconds = [float(row["train/seconds"]) for row in metrics if row.get("train/seconds")]
    subsets = [row.subset for row in rows if row.epoch == last]
    factors = {name: _last(metrics, f"{name}/real_time_factor") for name in subsets}
    return Run(
        rates={row.subset: row for row in rows if row.epoch == last},
        parameters=sum(count_parameters(read_part(versions[-1].with_name("config.yaml"))).values()),
        training_seconds=seconds[-1] if seconds else None,
        real_time_factors={name: factor for name, factor in factors.items() if factor is not None},
    )


def _read_metrics(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _last(metrics: Sequence[dict[str, str]], name: str) -> float | None:
    values = [float(row[name]) for row in metrics if row.get(name)]
    return values[-1] if values else None


def tabulate(runs: Sequence[Run], metrics: Sequence[Metric] = ("wer", "ser")) -> Table:
    """Make the table: one line per experiment, the mean and spread over its seeds."""
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        by_name.setdefault(next(iter(run.rates.values())).run, []).append(run)
    subsets = sorted({subset for run in runs for subset in run.rates})
    head = ["experiment", "seeds", "parameters", "training s"]
    names = [*(metric.upper().replace("_", " ") for metric in metrics), "× real time"]
    table = [[*head, *(f"{subset} {name}" for subset in subsets for name in names)]]
    for name, seeds in by_name.items():
        times = [run.training_seconds for run in seeds if run.training_seconds is not None]
        line = [
            name,
            str(len(seeds)),
            f"{seeds[0].parameters:,}",
            f"{statistics.fmean(times):.0f}" if times else MISSING,
        ]
        for subset in subsets:
            rates = [run.rates[subset] for run in seeds if subset in run.rates]
            factors = [run.real_time_factors[subset] for run in seeds if subset in run.real_time_factors]
            line += [summarise([getattr(rate, metric) for rate in rates]) for metric in metrics]
            line.append(f"{statistics.fmean(factors):.3f}" if factors else MISSING)
        table.append(line)
    return table


def summarize(folders: Sequence[Path], output: Path, metrics: Sequence[Metric] = ("wer", "ser")) -> str:
    """Write `summary.md` and `summary.csv` of some runs into a folder, and return what to tell the user.

    Raises:
        InputError: No run is found, or a file of one is missing or malformed.
    """
    table = tabulate([read_run(folder) for folder in find_runs(folders)], metrics)
    note = (
        "Error rates in % after the last epoch, mean ± sample standard deviation over seeds; training s: wall time of "
        f"training without validation ({MISSING}: another run's network); × real time: seconds of search per second of "
        "audio."
    )
    write_atomically(output / "summary.md", f"{as_markdown(table)}\n\n{note}\n")
    with replacing(output / "summary.csv") as half, half.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(table)
    return "\n".join([as_text(table), "", note, "", f"Written to {output.absolute()}: summary.md, summary.csv"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 2 where the input cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m asr_lightning.tools.summarize",
        description="Put finished runs beside each other: final error rates over seeds, parameters, seconds of "
        "training and real time factor of recognition.",
        epilog="Rates are those of `lightning test` where a run was tested, else those of its last epoch.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, or a folder of run folders")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help="where summary.md and summary.csv are written"
    )
    parser.add_argument(
        "--metrics", nargs="+", choices=get_args(Metric), default=["wer", "ser"], help="columns (default: wer ser)"
    )
    options = parser.parse_args(arguments)
    try:
        print(summarize(options.runs, options.output, options.metrics))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
