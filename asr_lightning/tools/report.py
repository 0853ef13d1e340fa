"""Write one HTML file that shows a group of runs; it needs no server and no network.

Example:
    asr report runs/demo/e2e_a runs/demo/e2e_b --output runs/demo/e2e.html

It shows curves, tables, layers, neighbours, and alignments with their audio; the last three of runs that the callbacks
Activations, TSNE, Neighbours and Alignments have looked into, as `lightning test` with
experiments/demo/e2e_a_inside.yaml does.
"""

import argparse
import sys
from pathlib import Path

from asr_lightning.asr import main
from asr_lightning.errors import printable, printable_lines
from asr_lightning.tools.arguments import add_runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_runs(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="HTML", help="the file to write")
    parser.add_argument("--title", help="of the page (default: the names of the experiments)")
    parser.add_argument(
        "--baseline", metavar="RUNNAME", help="the run that others are compared with (default: the first)"
    )
    parser.add_argument(
        "--stage", choices=("test", "validate", "predict"), default="test",
        help="whose layers, neighbours and alignments (default: test)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Write the page; return the exit status."""
    from asr_lightning.report.page import write_page
    from asr_lightning.report.page_contents import GATHERERS, MEGABYTE, gather

    data, problems = gather(options.runs, options.title, options.baseline, options.stage)
    write_page(options.output, data)
    for problem in problems:
        print(f"left out: {printable_lines(problem)}", file=sys.stderr)
    shown = ", ".join(f"{part} of {len(data[part])} runs" for part in GATHERERS if data[part])
    size = options.output.stat().st_size / MEGABYTE
    print(f"Written to {printable(str(options.output.absolute()))} ({size:.1f} MB){': ' + shown if shown else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
