"""Put the finished runs of an ablation in one table, beside the paper's numbers; picture and page."""

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from asr_lightning.ablations.costs import measured_costs_section
from asr_lightning.ablations.definition import Variant
from asr_lightning.ablations.execution import finished_commands
from asr_lightning.ablations.plan import Plan, PlannedRun
from asr_lightning.errors import InputError
from asr_lightning.files import source_commit, write_atomically
from asr_lightning.report.epoch_rates import epoch_section, find_files, merge
from asr_lightning.report.final_rates import comparisons, final_section, significance_section
from asr_lightning.report.page import write_page
from asr_lightning.report.page_contents import gather
from asr_lightning.report.page_summary import paper_curves
from asr_lightning.report.run_folders import RATE_FILES, Experiment, Run, read_experiments, read_runs, scored_on
from asr_lightning.report.run_pairs import PairComparison, compare_pairs
from asr_lightning.report.tables import MISSING, Table, as_csv, as_markdown, as_text, escape_markdown, number, summarize

Pairs = dict[tuple[str, str], PairComparison]  # by variant and subset


def write_results(plan: Plan) -> str:
    """Write table, page, costs and the sections of `asr compare` of what is finished; return what to tell the user.

    Raises:
        InputError: No run has rates, or a file of one is malformed.
    """
    with_rates = [run for run in [*plan.compared, plan.reference] if run is not None and _has_rates(run.folder)]
    runs = [run for run in with_rates if list(run.commands[0]) in finished_commands(run)]
    if not any(run.name in plan.variants for run in runs):
        raise InputError(f"{plan.folder}: no variant has error rates yet")
    problems: list[str] = []
    final_runs = read_runs([run.folder for run in runs], problems)
    experiments = read_experiments(final_runs, problems)
    pairs = _pairs(experiments, plan.ablation.baseline)
    table = results_table(plan, experiments, pairs)
    epochs = epochs_table(plan, runs)
    notes = [
        *_notes(plan),
        *_equal_rates_notes(experiments),
        *(f"Left out: {run.label}, which is still training." for run in with_rates if run not in runs),
    ]
    notes += scored_on((rate for run in final_runs for rate in run.rates.values()), differing_only=True)
    parts = [f"# {plan.ablation.question}", as_markdown(table)]
    parts += ["## By epoch", as_markdown(epochs)] if epochs else []
    write_atomically(plan.folder / "table.md", "\n\n".join([*parts, *map(escape_markdown, notes)]) + "\n")
    write_atomically(plan.folder / "table.csv", as_csv(table))
    _write_sections(plan, runs, experiments)
    page, left_out = gather([run.folder for run in runs], plan.ablation.question, _baseline(plan, experiments), "test")
    title = {"title": f"Variants, beside {plan.ablation.source}", "head": table[0], "rows": table[1:]}
    if page["curves"]:
        page["curves"]["paper"] = paper_curves(plan.ablation.paper)
    if page["summary"]:
        page["summary"]["commands"].insert(0, {"run": "all of them", "lines": [_command(plan)]})
    page["tables"] = [{**title, "notes": notes}, *page["tables"]]
    write_page(plan.folder / "page.html", page)
    lines = [
        as_text(table),
        *([as_text(epochs)] if epochs else []),
        *notes,
        *(f"left out: {problem}" for problem in problems + left_out),
    ]
    files = ", ".join(
        sorted(file.name for file in plan.folder.iterdir() if file.is_file() and not file.name.startswith("."))
    )
    return "\n\n".join([plan.ablation.question, *lines, f"Written to {plan.folder.absolute()}: {files}"])


def _has_rates(folder: Path) -> bool:
    return any((folder / name).exists() for name in RATE_FILES.values())


def _baseline(plan: Plan, experiments: Sequence[Experiment]) -> str | None:
    names = [experiment.name for experiment in experiments]
    return plan.ablation.baseline if plan.ablation.baseline in names else None


def _pairs(experiments: Sequence[Experiment], baseline: str) -> Pairs:
    """Compare each variant with the baseline, where both kept transcripts."""
    runs: dict[str, list[Run]] = {experiment.name: experiment.runs for experiment in experiments}
    if baseline not in runs:
        return {}
    return {(pair.run, pair.subset): pair for pair in compare_pairs(runs, baseline) if isinstance(pair, PairComparison)}


def results_table(plan: Plan, experiments: Sequence[Experiment], pairs: Pairs) -> Table:
    """Make the table: a line per variant; our rates beside those of the paper."""
    by_name = {experiment.name: experiment for experiment in experiments}
    names = [*([plan.reference.name] if plan.reference else []), *plan.variants]
    available = sorted({subset for experiment in experiments for run in experiment.runs for subset in run.rates})
    subsets = [subset for subset in plan.ablation.subsets if subset in available] or available
    columns = [(subset, metric) for subset in subsets for metric in plan.ablation.metrics]
    paper = {column: rates for column, rates in plan.ablation.paper.items() if ", epoch" not in column}
    titles = [_title(subset, metric) for subset, metric in columns]
    only_paper = [column for column in paper if column not in titles]
    head = ["variant", "seeds", "parameters"]
    for title in titles:
        head += [f"{title} %", *([f"paper's {title} %"] if title in paper else [])]
    head += [f"paper's {column} %" for column in only_paper]
    head += (
        [text for subset in subsets for text in (f"ΔWER {subset}", f"95 % interval {subset}", f"p {subset}")]
        if pairs
        else []
    )
    table = [head]
    for name in names:
        experiment = by_name.get(name)
        line = [name, str(len(experiment.runs)) if experiment else "0"]
        line.append(number(experiment.parameters, ",") if experiment else MISSING)
        for (subset, metric), title in zip(columns, titles, strict=True):
            line.append(
                summarize([getattr(rate, metric) for rate in experiment.rates(subset)]) if experiment else MISSING
            )
            line += [_paper(paper[title], name)] if title in paper else []
        line += [_paper(paper[column], name) for column in only_paper]
        for subset in subsets if pairs else ():
            line += _difference(pairs.get((name, subset)))
        table.append(line)
    return table


def epochs_table(plan: Plan, runs: Sequence[PlannedRun]) -> Table:
    """Make the table of the epochs that the paper has rates of; empty where ours were not trained for any of them."""
    columns: dict[str, dict[int, dict[str, float]]] = {}
    for column, rates in plan.ablation.paper.items():
        title, _, epoch_text = column.partition(", epoch ")
        if epoch_text:
            columns.setdefault(title, {})[int(epoch_text)] = dict(rates)
    rows = (
        merge(find_files([run.folder for run in runs if (run.folder / RATE_FILES["validation"]).exists()]))
        if columns
        else []
    )
    names = list(dict.fromkeys(name for by_epoch in columns.values() for rates in by_epoch.values() for name in rates))
    table = [
        ["epoch", *(f"{title} {name} {whose}" for title in columns for name in names for whose in ("ours", "paper"))]
    ]
    for epoch in sorted({epoch for by_epoch in columns.values() for epoch in by_epoch}):
        line = [str(epoch)]
        for title, by_epoch in columns.items():
            subset, _, rate = title.rpartition(" ")
            for name in names:
                matching = [row for row in rows if (row.run, row.subset, row.epoch) == (name, subset, epoch)]
                line += [
                    summarize([getattr(row, rate.lower()) for row in matching]),
                    _paper(by_epoch.get(epoch, {}), name),
                ]
        table.append(line)
    trained = {row.epoch for row in rows}
    return table if trained & {epoch for by_epoch in columns.values() for epoch in by_epoch} else []


def _title(subset: str, metric: str) -> str:
    return f"{subset} {metric.upper().replace('_', ' ')}"


def _paper(rates: Mapping[str, float], name: str) -> str:
    if name not in rates:
        return MISSING
    decimals = max(len(str(rate).partition(".")[2]) for rate in rates.values())  # as many as the paper prints
    return f"{rates[name]:.{decimals}f}"


def _difference(pair: PairComparison | None) -> list[str]:
    if pair is None:
        return [MISSING] * 3
    bootstrap, p = pair.bootstrap, pair.matched_pairs.p
    interval = (
        MISSING
        if bootstrap.low is None or bootstrap.high is None
        else f"{100 * bootstrap.low:+.2f} … {100 * bootstrap.high:+.2f}"
    )
    return [
        f"{100 * bootstrap.difference:+.2f}",
        interval,
        MISSING if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}",
    ]


def _notes(plan: Plan) -> list[str]:
    """Return the notes below the table: source, measures, remarks, commit and command."""
    ablation = plan.ablation
    notes = [
        f"Source: {ablation.source}. Error rates in %: of `lightning test` where a run was tested, else of its last "
        f"epoch; mean ± sample standard deviation over seeds. ΔWER: points against {ablation.baseline}, with the 95 % "
        "bootstrap interval over speakers or utterances, and p of the matched-pairs test (MAPSSWE), not corrected for "
        "the number of comparisons.",
    ]
    variants = ((name, ablation.variants[name]) for name in plan.variants)
    notes += [f"{name}: {variant.note}" for name, variant in variants if isinstance(variant, Variant) and variant.note]
    if plan.scale == "demo" and ablation.paper:
        notes.append("Networks and data of the demo are small: their rates cannot be compared with the paper's.")
    return [*notes, f"Commit {source_commit()}, {time.strftime('%Y-%m-%d')}: {_command(plan)}"]


def _command(plan: Plan) -> str:
    return f"asr ablate {plan.ablation.name} --scale {plan.scale}"


def _equal_rates_notes(experiments: Sequence[Experiment]) -> list[str]:
    """Return a note on every two variants that have the same rates with every seed: maybe they are one network.

    Networks with a CER of 1 or more everywhere, as in a rehearsal, are not compared.
    """
    rates = {
        experiment.name: {run.seed: [replace(rate, run="") for rate in run.rates.values()] for run in experiment.runs}
        for experiment in experiments
        if any(rate.cer < 1 for run in experiment.runs for rate in run.rates.values())
    }
    return [
        f"{first} and {second} have the same rates with every seed: they may be the same network."
        for first, second in itertools.combinations(rates, 2)
        if (seeds := rates[first].keys() & rates[second].keys())
        and all(rates[first][seed] == rates[second][seed] for seed in seeds)
    ]


def _write_sections(plan: Plan, runs: Sequence[PlannedRun], experiments: Sequence[Experiment]) -> None:
    """Write curves of the runs that were trained, final rates, significance, sentences and costs."""
    metrics = plan.ablation.metrics
    trained = [run for run in runs if (run.folder / RATE_FILES["validation"]).exists()]
    names = {run.name for run in trained}
    reference = plan.reference.name if plan.reference and plan.reference.name in names else None
    if names - {reference}:
        baseline = plan.ablation.baseline if plan.ablation.baseline in names else None
        rows = merge(find_files([run.folder for run in trained]))
        epoch_section(rows, metrics[0], reference, baseline).write(plan.folder)
    final_section(experiments, metrics).write(plan.folder)
    baseline = _baseline(plan, experiments)
    if baseline and (pairs := comparisons(experiments, baseline, [])):
        significance_section(pairs).write(plan.folder)
    if costs := measured_costs_section(plan.runs):
        costs.write(plan.folder)
