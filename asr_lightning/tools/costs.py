"""Says what a training of so many hours and epochs costs, from the speed of runs: on the terminal and on a page.

Example: python -m asr_lightning.tools.costs runs/rnnt_teacher --price 2.5 --output costs.html
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from asr_lightning.errors import InputError
from asr_lightning.report.costs import (
    ASSUMED_EFFICIENCY,
    Costs,
    MeasuredRun,
    cost_table,
    find_measured_runs,
    write_costs,
)
from asr_lightning.report.tables import as_text
from asr_lightning.tools.arguments import above_zero, whole_number


def describe(runs: Sequence[MeasuredRun], costs: Costs) -> str:
    """Say what was measured, on what, and where the efficiency is from."""
    lines = [
        f"{run.name}: {run.processes} × {run.kind}, {run.precision}, steps of {run.batch_seconds or '?'} s: "
        f"{run.speed:,.1f} audio seconds per second, median of {len(run.speeds)} epochs "
        f"({min(run.speeds):,.1f} to {max(run.speeds):,.1f})"
        for run in runs
    ]
    if runs[0].kind != "GPU":
        lines.append(f"Each device is one like that of these runs ({runs[0].kind}): this says nothing about GPUs.")
    origin = "measured" if costs.measured else "not measured"
    return "\n".join([*lines, f"Efficiency of numbers of devices that no run had: {costs.efficiency:.3f}, {origin}."])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 2 where the input cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m asr_lightning.tools.costs",
        description="Say what a training costs: hours, days, device-hours and money, from the speed that the callback "
        "Throughput logged in runs of one model.",
        epilog="Give runs with different numbers of devices to have the efficiency measured.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, or a folder of run folders")
    parser.add_argument(
        "--output", type=Path, metavar="HTML", help="a page to write, whose inputs can be changed in it"
    )
    parser.add_argument("--hours", type=above_zero(float), default=960.0, help="of speech in an epoch (default: 960)")
    parser.add_argument("--epochs", type=above_zero(float), default=50.0, help="of training (default: 50)")
    parser.add_argument("--devices", type=whole_number(1), nargs="+", default=[1, 8, 64], metavar="N",
                        help="numbers of processes, one per device (default: 1 8 64)")  # fmt: skip
    parser.add_argument(
        "--price", type=above_zero(float), help="of an hour of one device, in any money (default: none)"
    )
    parser.add_argument(
        "--efficiency",
        type=above_zero(float),
        help="share of the linear speed-up that numbers of devices keep which no run had, 0 to 1 (default: that of the "
        f"runs, if they had several numbers of devices; else {ASSUMED_EFFICIENCY}, an assumption and no measurement)",
    )
    options = parser.parse_args(arguments)
    try:
        runs = find_measured_runs(options.runs)
        costs = Costs.of(runs, options.efficiency)
        inputs = {name: getattr(options, name) for name in ("hours", "epochs", "devices", "price")}
        print(describe(runs, costs), "", as_text(cost_table(costs, **inputs)), sep="\n")
        if options.output:
            write_costs(options.output, runs, costs, inputs)
            print(f"\nWritten to {options.output.absolute()}")
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"cannot write {options.output}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
