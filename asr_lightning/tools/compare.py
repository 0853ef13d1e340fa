r"""Compare finished runs: error rates per epoch and at the end, significance, convergence and costs.

Example:
    asr compare runs/random runs/rnnt_ws --baseline random --output reports/ws
    asr compare runs/rnnt_teacher --costs --price 2.5 --output reports/teacher

Each section is a table with notes. Without one of --curves, --rates, --significance, --convergence, --gradients and
--costs there are the first three. A run's name is that in its error_rates.csv: by default the name of the experiment's
folder, whose seeds are put together. Rates are in % and times in epochs or seconds; files .csv of rates have fractions.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from asr_lightning.asr import main
from asr_lightning.errors import InputError, printable, printable_lines
from asr_lightning.scoring import RATES
from asr_lightning.tools.arguments import above_zero, add_runs, whole_number

if TYPE_CHECKING:
    from asr_lightning.report.tables import Section

SECTIONS = {
    "curves": "error rates per epoch, a figure of them, and with --baseline after how many epochs a run is as good as "
    "the baseline half-way",
    "rates": "final rates (of `lightning test`, else of the last epoch), parameters and speeds",
    "significance": "final word errors against the baseline: bootstrap, MAPSSWE, errors of each utterance and the "
    "sentences that changed most; of runs that kept transcripts",
    "convergence": "the fit of c + a·e^(-b) to the rates at epochs e, a prediction, and how well early epochs predict "
    "the others",
    "gradients": "gradient norms of modules and how much they change from step to step, early and late, and a figure",
    "costs": "what a training costs by the speed of these runs, which are of one model: hours, days, money",
}
BY_DEFAULT = ("curves", "rates", "significance")
ASSUMED_EFFICIENCY = 0.9  # as in report/costs.py


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_runs(parser)
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER",
        help="gets a .csv and a .md of each section, figures and pages; of --costs alone, FILE.html gets the page "
        "(default: nothing is written)",
    )  # fmt: skip
    parser.add_argument(
        "--metrics", nargs="+", choices=RATES, default=["wer"], metavar="RATE",
        help=f"error rates, of {', '.join(RATES)}; curves and convergence are of the first (default: wer)",
    )  # fmt: skip
    parser.add_argument(
        "--baseline", metavar="RUNNAME", help="the run that the others are compared with (default: the first one)"
    )
    parser.add_argument(
        "--reference", metavar="RUNNAME", help="the teacher: drawn as a dashed line, the rate of its last epoch"
    )
    sections = parser.add_argument_group("sections")
    for name, description in SECTIONS.items():
        sections.add_argument(f"--{name}", action="store_true", help=description)
    fits = parser.add_argument_group("of --convergence")
    epoch = whole_number(1)
    fits.add_argument("--horizon", type=epoch, metavar="EPOCH", help="predicted (default: 1.5 times the last one)")
    fits.add_argument(
        "--early", type=epoch, metavar="EPOCH", help="the last that is fitted to predict the others (default: half)"
    )
    fits.add_argument(
        "--level", type=float, default=0.9, metavar="SHARE", help="of rates in an interval (default: 0.9)"
    )
    costs = parser.add_argument_group("of --costs")
    number = above_zero(float)
    costs.add_argument("--hours", type=number, default=960.0, metavar="N", help="of speech in an epoch (default: 960)")
    costs.add_argument("--epochs", type=number, default=50.0, metavar="N", help="of training (default: 50)")
    costs.add_argument(
        "--devices", type=whole_number(1), nargs="+", default=[1, 8, 64], metavar="N",
        help="numbers of processes, one per device (default: 1 8 64)",
    )  # fmt: skip
    costs.add_argument("--price", type=number, metavar="X", help="of an hour of one device, in any money")
    costs.add_argument(
        "--efficiency", type=number, metavar="SHARE",
        help="of the linear speed-up, with more devices than a run had (default: measured, where runs have different "
        f"numbers of devices; else {ASSUMED_EFFICIENCY}, an assumption)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Print the sections, and write their files; return the exit status."""
    if not 0 < options.level < 1:
        raise InputError(f"--level: expected a share between 0 and 1, got {options.level}")
    if options.baseline is not None and options.baseline == options.reference:
        raise InputError(f"--baseline and --reference: expected two runs, got {options.baseline!r} for both")
    chosen = [name for name in SECTIONS if getattr(options, name)] or list(BY_DEFAULT)
    problems: list[str] = []
    sections = list(compare(options, chosen, problems))  # all of them, before one is written
    for section in sections:
        print(printable_lines(str(section)), end="\n\n")
    for problem in problems:
        print(printable(f"Left out: {problem}"))
    if options.output is not None and options.output.suffix == ".html" and chosen == ["costs"]:
        page = sections[0].files["costs.html"]
        assert callable(page)
        page(options.output)
        print(f"Written to {options.output.absolute()}")
    elif options.output is not None:
        files = [name for section in sections for name in section.write(options.output)]
        print(f"Written to {options.output.absolute()}: {', '.join(files)}")
    return 0


def compare(options: argparse.Namespace, sections: Sequence[str], problems: list[str]) -> Iterator["Section"]:
    """Give the chosen sections.

    Args:
        options: Of the command.
        sections: Names of sections.
        problems: Gets what could not be read or compared.

    Raises:
        InputError: No rates are found, a line is malformed, or a named run is not among them.
    """
    from asr_lightning.report.convergence import convergence_section
    from asr_lightning.report.costs import costs_section
    from asr_lightning.report.epoch_rates import epoch_section, find_files, merge
    from asr_lightning.report.final_rates import comparisons, final_section, significance_section
    from asr_lightning.report.gradient_figure import gradient_section
    from asr_lightning.report.run_folders import find_runs, read_experiments, read_runs

    metric = options.metrics[0]
    if {"curves", "convergence"} & set(sections):
        rows = merge(find_files(options.runs))
        _check_names(options, sorted({row.run for row in rows}))
    if "curves" in sections:
        yield epoch_section(rows, metric, options.reference, options.baseline)
    if {"rates", "significance", "gradients"} & set(sections):
        experiments = read_experiments(read_runs(find_runs(options.runs), problems), problems)
        if not experiments:
            raise InputError(f"expected runs with final rates, found none: {'; '.join(problems)}")
        names = [experiment.name for experiment in experiments]
        _check_names(options, names)
    if "rates" in sections:
        yield final_section(experiments, options.metrics)
    if "significance" in sections:
        default = next((name for name in names if name != options.reference), names[0])
        if pairs := comparisons(experiments, options.baseline or default, problems):
            yield significance_section(pairs)
        elif len(names) > 1:
            problems.append("significance: no two runs have transcripts of their last epoch")
    if "convergence" in sections:
        yield convergence_section(rows, metric, options.horizon, options.early, options.level)
    if "gradients" in sections:
        if section := gradient_section(experiments, problems):
            yield section
    if "costs" in sections:
        yield costs_section(
            options.runs, options.hours, options.epochs, options.devices, options.price, options.efficiency
        )


def _check_names(options: argparse.Namespace, names: Sequence[str]) -> None:
    for option, name in (("--reference", options.reference), ("--baseline", options.baseline)):
        if name is not None and name not in names:
            raise InputError(f"{option}: expected one of the runs found, {', '.join(names)}; got {name!r}")
    if not set(names) - {options.reference}:
        raise InputError(f"expected runs to compare besides the reference, found {', '.join(names) or 'empty files'}")


if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
