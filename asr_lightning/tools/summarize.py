"""Puts finished runs beside each other: final error rates, size, time of training and speed of recognition.

Example: python -m asr_lightning.tools.summarize runs/las runs/e2e --output reports/attention
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from asr_lightning.errors import InputError, printable
from asr_lightning.files import write_atomically
from asr_lightning.report.run_folders import Experiment, find_runs, read_experiments, read_run, scored_on
from asr_lightning.report.tables import (
    MISSING,
    Table,
    as_csv,
    as_markdown,
    as_text,
    count,
    escape_markdown,
    number,
    summarise,
)
from asr_lightning.scoring import COUNTS, Metric


def tabulate(experiments: Sequence[Experiment], metrics: Sequence[Metric] = ("wer", "ser")) -> Table:
    """Make the table: one line per experiment, the mean and spread over its seeds."""
    subsets = sorted({subset for experiment in experiments for run in experiment.runs for subset in run.rates})
    head = ["experiment", "seeds", "parameters", "training s"]
    names = [*(metric.upper().replace("_", " ") for metric in metrics), *COUNTS, "× real time"]
    table = [[*head, *(f"{subset} {name}" for subset in subsets for name in names)]]
    for experiment in experiments:
        line = [
            experiment.name,
            str(len(experiment.runs)),
            number(experiment.parameters, ","),
            number(experiment.training_seconds, ".0f"),
        ]
        for subset in subsets:
            rates = experiment.rates(subset)
            line += [summarise([getattr(rate, metric) for rate in rates]) for metric in metrics]
            line += [count([getattr(rate, name) for rate in rates]) for name in COUNTS]
            line.append(number(experiment.real_time_factors.get(subset), ".3f"))
        table.append(line)
    return table


def summarize(folders: Sequence[Path], output: Path, metrics: Sequence[Metric] = ("wer", "ser")) -> str:
    """Write `summary.md` and `summary.csv` of some runs into a folder, and return what to tell the user.

    Raises:
        InputError: No run is found, or a file of one is missing or malformed.
    """
    runs = [read_run(folder) for folder in find_runs(folders)]
    table = tabulate(read_experiments(runs), metrics)
    note = (
        "Error rates in % after the last epoch, mean ± sample standard deviation over seeds; training s: wall time of "
        f"training without validation ({MISSING}: another run's network); × real time: seconds of search per second of "
        "audio."
    )
    note = " ".join([*scored_on((rate for run in runs for rate in run.rates.values()), differing_only=True), note])
    write_atomically(output / "summary.md", f"{as_markdown(table)}\n\n{escape_markdown(note)}\n")
    write_atomically(output / "summary.csv", as_csv(table))
    return "\n".join(
        [as_text(table), "", printable(note), "", f"Written to {output.absolute()}: summary.md, summary.csv"]
    )


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
