"""Contents of the HTML page of runs: curves, tables, layers, neighbours, alignments."""

import csv
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile

from asr_lightning.errors import InputError, reason
from asr_lightning.files import name_of_run
from asr_lightning.report.epoch_rates import crossing_table, find_files, merge
from asr_lightning.report.figures import ErrorRate
from asr_lightning.report.final_rates import comparisons, final_section, significance_section
from asr_lightning.report.gradient_figure import gradient_section
from asr_lightning.report.page_data import gather_alignments, gather_curves, gather_neighbours
from asr_lightning.report.page_layers import gather_layers
from asr_lightning.report.page_sentences import gather_sentences
from asr_lightning.report.page_summary import gather_summary, gather_training
from asr_lightning.report.run_folders import RATE_FILES, Experiment, find_runs, read_experiments, read_runs
from asr_lightning.report.run_pairs import PairComparison

GATHERERS = {"layers": ("tsne", gather_layers), "neighbours": ("neighbours", gather_neighbours),
             "alignments": ("alignments", gather_alignments)}  # fmt: skip
# raised while reading numbers, columns and archives of damaged files
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
    folders = find_runs(runs)
    trained = [run for run in folders if (run / RATE_FILES["validation"]).exists()]
    experiments = read_experiments(read_runs(folders, problems), problems)
    names = [experiment.name for experiment in experiments]
    if baseline is not None and baseline not in names:
        raise InputError(f"--baseline: expected one of the runs found, {', '.join(names)}; got {baseline!r}")
    title = title or _title(names or [name_of_run(run)[0] for run in folders])
    rates = _rates(trained or runs, problems)
    data: dict[str, Any] = {"title": title, "curves": gather_curves(rates), "summary": None}
    data |= {"training": gather_training(experiments), "tables": [], "sentences": []}
    if experiments:
        pairs = comparisons(experiments, baseline or names[0], problems)
        data["summary"] = gather_summary(experiments, pairs, baseline or names[0])
        data["tables"] = _tables(experiments, pairs)
        crossings = crossing_table(rates, "wer", baseline or names[0])
        if len(crossings) > 1:
            notes = ["WER, means over seeds, on lines between epochs. Runs whose curves do not cross it are left out."]
            data["tables"].append(
                {"title": "Where curves cross", "head": crossings[0], "rows": crossings[1:], "notes": notes}
            )
        data["sentences"] = gather_sentences({experiment.name: experiment.runs for experiment in experiments}, pairs)
    for part, (folder, gatherer) in GATHERERS.items():
        share = max(1, sum((run / folder / stage).is_dir() for run in folders))
        data[part] = [
            content
            for run in folders
            if (content := _gather_part(gatherer, run, run / folder / stage, share, problems))
        ]
    if not any(data[part] for part in ("curves", "tables", *GATHERERS)):
        reasons = f": {'; '.join(problems)}" if problems else ""
        raise InputError(f"expected runs with something to show in {', '.join(map(str, runs))}, found nothing{reasons}")
    return data, problems


def _title(names: Sequence[str], limit: int = 4) -> str:
    distinct = list(dict.fromkeys(names))
    more = f" and {len(distinct) - limit} more" if len(distinct) > limit else ""
    return ", ".join(distinct[:limit]) + more


def _rates(runs: Sequence[Path], problems: list[str]) -> list[ErrorRate]:
    try:
        return merge(find_files(runs))
    except InputError as error:  # runs that were only tested
        problems.append(str(error))
        return []


def _gather_part(gatherer: Gatherer, run: Path, folder: Path, share: int, problems: list[str]) -> dict[str, Any] | None:
    name, seed = name_of_run(run)
    try:
        return gatherer(f"{name}, seed {seed}" if seed else name, folder, share)
    except InputError as error:
        problems.append(str(error))
    except DAMAGED as error:
        problems.append(f"{folder}: expected what the callbacks write, got {type(error).__name__}: {reason(error)}")
    return None


def _tables(experiments: Sequence[Experiment], pairs: Sequence[PairComparison]) -> list[dict[str, Any]]:
    sections = {"Final error rates": final_section(experiments, ["wer"])}
    if pairs:
        sections["Significance"] = significance_section(pairs)
    if len(experiments) > 1 and (gradients := gradient_section(experiments, [])):
        totals = [row for row in gradients.table[1:] if row[0] == "total"]
        sections["Gradient norms"] = replace(gradients, table=[gradients.table[0], *totals])
    return [
        {"title": title, "head": section.table[0], "rows": section.table[1:], "notes": list(section.notes)}
        for title, section in sections.items()
    ]
