"""Run an ablation: what it needs, its variants over seeds, then table, picture and page.

Example:
    asr ablate weight_selection --jobs 2
    asr ablate weight_selection --scale full --dry-run

An ablation is a YAML, as docs/ablations.md explains; the paper's numbers are printed beside ours. Called again the
command goes on where it was stopped; finished runs are left alone. Runs lie in
<output>/<scale>/<ablation>/<variant>/seed<k>. The exit status is 1 where a run failed.
"""

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from asr_lightning.ablations.costs import read_costs, total
from asr_lightning.ablations.definition import SCALES
from asr_lightning.ablations.execution import Execution, check_unchanged, run_outputs, state
from asr_lightning.ablations.plan import EXPERIMENT, Plan, PlannedRun, as_typed, plan_ablation
from asr_lightning.asr import main
from asr_lightning.errors import InputError, reason
from asr_lightning.files import load_yaml
from asr_lightning.report.tables import MISSING, as_text, number
from asr_lightning.tools.arguments import whole_number

FOLDER = Path("experiments/ablations")  # of names without a path
STOPPED = "stopped; the same command goes on from here"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("ablations", metavar="ABLATION", nargs="+",
                        help=f"a YAML, or the name of one in {FOLDER}; several run one after another")  # fmt: skip
    parser.add_argument("--scale", choices=SCALES, default="demo", help="size of experiments (default: demo)")
    parser.add_argument("--seeds", type=whole_number(0), nargs="+", default=[], metavar="N",
                        help="default: those of the ablation, mostly 1 2 3")  # fmt: skip
    parser.add_argument("--variants", nargs="+", default=[], metavar="NAME", help="some of them (default: all)")
    parser.add_argument("--jobs", type=whole_number(1), default=1, metavar="N", help="runs at a time (default: 1)")
    parser.add_argument(
        "--output", type=Path, default=Path("runs"), metavar="FOLDER", help="of all runs (default: runs)"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes",
                        help="another value for every experiment, as data.init_args.root=/corpora/LibriSpeech; "
                        "repeatable")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="remove runs that were begun with other values")
    parser.add_argument("--verbose", action="store_true", help="show all lines of runs (default: one per epoch)")
    parser.add_argument("--only", metavar="FOLDER", type=Path,
                        help="run this one of --print-commands, without what it needs and without results")  # fmt: skip
    parser.add_argument("--rehearse", action="store_true",
                        help="two steps and a tiny evaluation of every run of one seed, and all results, in "
                        "<output>/rehearsal")  # fmt: skip
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--dry-run", action="store_true", help="say what would run, in which order, and run nothing")
    mode.add_argument("--print-commands", action="store_true",
                     help="print a command per run, for a cluster: those of a level may run together")  # fmt: skip
    mode.add_argument("--results", action="store_true", help="write the results of what is finished, and run nothing")


def run(options: argparse.Namespace) -> int:
    """Do what the options ask for with every ablation, until one fails; return the exit status."""
    if len(options.ablations) > 1 and (options.only or options.print_commands):
        raise InputError("--only and --print-commands: expected one ablation, found " + ", ".join(options.ablations))
    paths = [Path(name) if name.endswith(".yaml") else FOLDER / f"{name}.yaml" for name in options.ablations]
    return next((status for path in paths if (status := _run_ablation(path, options))), 0)


def _run_ablation(path: Path, options: argparse.Namespace) -> int:
    """Plan an ablation, and do what the options ask for; return the exit status."""
    changes, seeds, names = _changes(options.changes), options.seeds, options.variants
    plan = plan_ablation(path, options.scale, options.output, seeds, names, changes, options.rehearse)
    if options.dry_run or options.print_commands:
        print(describe(plan) if options.dry_run else commands(plan, options.typed))
        return 0
    if options.results:
        print(_results(plan))
        return 0
    runs = list(plan.runs) if options.only is None else [_single_run(plan, options.only)]
    check_unchanged(runs, options.overwrite)
    failed = Execution(runs, options.jobs, options.verbose).run()
    if options.only is None and not failed:
        broken = run_outputs(plan.outputs)
        failed = {plan.folder: "\n".join(broken)} if broken else {}
    for folder, problem in failed.items():
        print(f"{folder}: {problem}", file=sys.stderr)
    if options.only is None and (not failed or any(state(run) == "finished" for run in plan.compared)):
        print(_results(plan))
    return 1 if failed else 0


def describe(plan: Plan) -> str:
    """Return the plan as a table: a line per run, in the order in which they can run."""
    run_costs = {run.folder: costs for run in plan.runs if (costs := _costs(run))}
    counts: dict[str, str] = {}
    table = [["level", "run", "parameters", "hours", "GB", "state"]]
    for run in sorted(plan.runs, key=lambda run: run.level):
        key = str(run.experiments[EXPERIMENT].get("model"))
        if key not in counts:
            counts[key] = _parameters(run)
        of_variant = [costs for folder, costs in run_costs.items() if folder.parent == run.folder.parent]
        hours, gigabytes = run_costs.get(run.folder) or _mean(of_variant)
        measured = [number(hours, ".2f"), number(gigabytes, ".2f")]
        table.append([str(run.level), str(run.folder), counts[key], *measured, state(run)])
    unfinished = [run for run in plan.runs if state(run) != "finished"]
    return "\n".join([
        f"{plan.ablation.question} [{plan.ablation.source}]",
        as_text(table),
        f"{len(plan.runs)} runs, {len(unfinished)} of them not finished. Hours and GB: wall time and peak memory of a "
        f"run's commands, as measured, else of other seeds of the variant; {MISSING} where there are none. "
        "`asr compare RUN --costs` has other machines.",
        *(f"at the end: {as_typed(command)}" for command in plan.outputs),
        f"results: {plan.folder}",
    ])  # fmt: skip


def _parameters(run: PlannedRun) -> str:
    model = run.experiments[EXPERIMENT].get("model")
    if not isinstance(model, dict):
        return MISSING
    # here, since it imports torch and Lightning, which nothing else of a plan needs
    from asr_lightning.models.experiment import count_parameters

    try:
        return f"{sum(count_parameters(model).values()):,}"
    except ValueError:  # as of units or states that what is needed makes
        return "known later"


def _costs(run: PlannedRun) -> tuple[float, float] | None:
    """Return the hours that a run has taken, and its peak memory in gigabytes, nan if not known; None if it is new."""
    if (costs := total(read_costs(run.folder))) is not None:
        return costs
    # here, since it imports matplotlib
    from asr_lightning.report.run_folders import SECONDS, numbers, read_metrics, versions

    try:
        logged = [value for start in versions(run.folder) for value in numbers(read_metrics(start), SECONDS)]
    except InputError:
        return None
    return (logged[-1] / 3600, math.nan) if logged else None


def _mean(costs: Sequence[tuple[float, float]]) -> tuple[float | None, float | None]:
    """Return the mean hours and the largest gigabytes of runs."""
    if not costs:
        return None, None
    return sum(hours for hours, _ in costs) / len(costs), max(gigabytes for _, gigabytes in costs)


def commands(plan: Plan, arguments: Sequence[str]) -> str:
    """Return a line for each run that is not finished, by level: those of a level may run at the same time."""
    arguments = [argument for argument in arguments if argument != "--print-commands"]
    lines = []
    for level in sorted({run.level for run in plan.runs}):
        lines.append(f"# level {level}")
        for run in plan.runs:
            if run.level == level and state(run) != "finished":
                lines.append(shlex.join(["asr", "ablate", *arguments, "--only", str(run.folder)]))
    return "\n".join(lines)


def _changes(texts: Sequence[str]) -> dict[str, Any]:
    changes = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set: expected KEY=VALUE, found {text}")
        try:
            changes[key] = load_yaml(value)
        except (ValueError, yaml.YAMLError, RecursionError) as error:
            raise InputError(f"--set {key}: {reason(error)}") from error
    return changes


def _results(plan: Plan) -> str:
    """Write the results."""
    # here, since tables and pictures import much that a single run of many does not need
    from asr_lightning.ablations.results import write_results

    return write_results(plan)


def _single_run(plan: Plan, folder: Path) -> PlannedRun:
    """Return one run, if what it needs is finished."""
    runs = {run.folder: run for run in plan.runs}
    if folder not in runs:
        raise InputError(f"--only: expected one of {', '.join(map(str, runs))}; got {folder}")
    if missing := [need for need in runs[folder].needs if state(runs[need]) != "finished"]:
        raise InputError(
            f"--only: {folder} needs {', '.join(map(str, missing))}, expected to be finished: run that first"
        )
    return runs[folder]


if __name__ == "__main__":
    sys.exit(main(["ablate", *sys.argv[1:]]))
