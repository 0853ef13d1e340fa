"""Writes one HTML file that shows a group of runs: curves, tables, layers, neighbours, alignments with their audio.

Example: python -m asr_lightning.tools.report runs/demo/e2e_a runs/demo/e2e_b --output runs/demo/e2e.html
"""

import argparse
import csv
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile

from asr_lightning.errors import InputError, printable, printable_lines, reason
from asr_lightning.files import name_of_run
from asr_lightning.report.page import write_page
from asr_lightning.report.page_data import gather_alignments, gather_curves, gather_neighbours
from asr_lightning.report.page_layers import gather_layers
from asr_lightning.report.page_sentences import gather_sentences
from asr_lightning.report.page_summary import gather_summary, gather_training
from asr_lightning.report.run_folders import RATES, Experiment, find_runs, read_experiments, read_runs, scored_on
from asr_lightning.report.run_pairs import PairComparison, Skipped, compare_pairs
from asr_lightning.report.tables import Table
from asr_lightning.tools.compare import find_files, merge
from asr_lightning.tools.compare_final import (
    NOTES,
    SIGNIFICANCE_HEAD,
    SIGNIFICANCE_NOTES,
    final_table,
    significance_line,
)

GATHERERS = {"layers": ("tsne", gather_layers), "neighbours": ("neighbours", gather_neighbours),
             "alignments": ("alignments", gather_alignments)}  # fmt: skip
# what numbers, columns and archives of damaged files give
DAMAGED = (OSError, ValueError, LookupError, TypeError, EOFError, MemoryError, SyntaxError, TokenError, csv.Error,
           zlib.error, BadZipFile, RuntimeError)  # fmt: skip
Gatherer = Callable[[str, Path, int], dict[str, Any] | None]
MEGABYTE = 1_000_000


def gather(
    runs: Sequence[Path], title: str | None, baseline: str | None, stage: str
) -> tuple[dict[str, Any], list[str]]:
    """Read what the page shows.

    Args:
        runs: Folders that hold runs, at any depth.
        title: Of the page; the names of the experiments if None.
        baseline: Name of the run that the others are compared with; the first by name if None.
        stage: Whose activations, neighbours and alignments: `test`, `validate` or `predict`.

    Returns:
        The data, and what could not be read.

    Raises:
        InputError: There are no runs, they have nothing to show, or the baseline is none of them.
    """
    problems: list[str] = []
    found = find_runs(runs)
    trained = [run for run in found if (run / RATES["validation"]).exists()]
    experiments = read_experiments(read_runs(found, problems), problems)
    names = [experiment.name for experiment in experiments]
    if baseline is not None and baseline not in names:
        raise InputError(f"--baseline: expected one of the runs found, {', '.join(names)}; got {baseline!r}")
    title = title or _title(names or [name_of_run(run)[0] for run in found])
    data: dict[str, Any] = {"title": title, "curves": _curves(trained or runs, problems), "summary": None}
    data |= {"training": gather_training(experiments), "tables": [], "sentences": []}
    if experiments:
        pairs = _pairs(experiments, baseline or names[0], problems)
        data["summary"] = gather_summary(experiments, pairs, baseline or names[0])
        data["tables"] = _tables(experiments, pairs)
        data["sentences"] = gather_sentences({one.name: one.runs for one in experiments}, pairs)
    for part, (folder, gatherer) in GATHERERS.items():
        share = max(1, sum((run / folder / stage).is_dir() for run in found))
        data[part] = [one for run in found if (one := _try(gatherer, run, run / folder / stage, share, problems))]
    if not any(data[part] for part in ("curves", "tables", *GATHERERS)):
        missing = f": {'; '.join(problems)}" if problems else ""
        raise InputError(f"expected runs with something to show in {', '.join(map(str, runs))}, found nothing{missing}")
    return data, problems


def _title(names: Sequence[str], most: int = 4) -> str:
    distinct = list(dict.fromkeys(names))
    more = f" and {len(distinct) - most} more" if len(distinct) > most else ""
    return ", ".join(distinct[:most]) + more


def _curves(runs: Sequence[Path], problems: list[str]) -> dict[str, Any] | None:
    try:
        return gather_curves(merge(find_files(runs)))
    except InputError as error:  # runs that were only tested
        problems.append(str(error))
        return None


def _try(gatherer: Gatherer, run: Path, folder: Path, share: int, problems: list[str]) -> dict[str, Any] | None:
    name, seed = name_of_run(run)
    try:
        return gatherer(f"{name}, seed {seed}" if seed else name, folder, share)
    except InputError as error:
        problems.append(str(error))
    except DAMAGED as error:
        problems.append(f"{folder}: expected what the callbacks write, got {type(error).__name__}: {reason(error)}")
    return None


def _pairs(experiments: Sequence[Experiment], baseline: str, problems: list[str]) -> list[PairComparison]:
    pairs = []
    for pair in compare_pairs({one.name: one.runs for one in experiments}, baseline):
        if isinstance(pair, Skipped):
            problems.append(str(pair))
        else:
            pairs.append(pair)
    return pairs


def _tables(experiments: Sequence[Experiment], pairs: Sequence[PairComparison]) -> list[dict[str, Any]]:
    rates = (rate for one in experiments for run in one.runs for rate in run.rates.values())
    notes = [*NOTES, *scored_on(rates, differing_only=True)]
    tables = [_table("Final error rates", final_table(experiments, "wer"), notes)]
    lines = [SIGNIFICANCE_HEAD, *map(significance_line, pairs)]
    return tables + ([_table("Significance", lines, SIGNIFICANCE_NOTES)] if pairs else [])


def _table(title: str, lines: Table, notes: Sequence[str]) -> dict[str, Any]:
    return {"title": title, "head": lines[0], "rows": lines[1:], "notes": list(notes)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 2 where the input cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m asr_lightning.tools.report",
        description="Write one HTML file that shows a group of runs; it needs no server and no network.",
        epilog="Layers, neighbours and alignments are shown of runs that the callbacks Activations, TSNE, Neighbours "
        "and Alignments have looked into, as `lightning test` with experiments/demo/e2e_a_inside.yaml does.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, or with runs in it")
    parser.add_argument("--output", type=Path, required=True, metavar="HTML", help="the file to write")
    parser.add_argument("--title", help="of the page (default: the names of the experiments)")
    parser.add_argument(
        "--baseline", metavar="RUNNAME", help="the run that others are compared with (default: the first)"
    )
    parser.add_argument("--stage", choices=("test", "validate", "predict"), default="test",
                        help="whose layers, neighbours and alignments (default: test)")  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        data, problems = gather(options.runs, options.title, options.baseline, options.stage)
        write_page(options.output, data)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"cannot write {options.output}: {error.strerror}", file=sys.stderr)
        return 2
    for problem in problems:
        print(f"left out: {printable_lines(problem)}", file=sys.stderr)
    shown = ", ".join(f"{part} of {len(data[part])} runs" for part in GATHERERS if data[part])
    size = options.output.stat().st_size / MEGABYTE
    print(f"Written to {printable(str(options.output.absolute()))} ({size:.1f} MB){': ' + shown if shown else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
