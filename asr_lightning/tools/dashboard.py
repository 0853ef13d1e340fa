"""Make a W&B workspace and a report of groups of runs, or say what they would show.

Example:
    asr dashboard --group demo/rnnt_random demo/rnnt_ws --runs runs/demo --save

They show error rates per epoch, training, t-SNE pictures by layer and tables of neighbours. Without --save nothing is
sent. The exit status is 1 where a run has not logged what is shown.
"""

import argparse
import sys
from pathlib import Path

from asr_lightning.asr import main
from asr_lightning.tools.arguments import add_subsets


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--group", nargs="+", required=True, metavar="NAME",
        help="W&B's groups: the folder above the seed's and the one above that, as demo/rnnt_ws",
    )  # fmt: skip
    parser.add_argument("--project", default="asr_lightning", help="of the runs (default: asr_lightning)")
    parser.add_argument("--entity", help="user or team at W&B (default: that of the login)")
    add_subsets(parser, "whose error rates are drawn (default: test-clean test-other)")
    parser.set_defaults(subsets=["test-clean", "test-other"])
    parser.add_argument("--layers", nargs="+", metavar="LAYER", help="of the t-SNE pictures (default: those in --runs)")
    parser.add_argument(
        "--runs", nargs="+", type=Path, metavar="FOLDER", help="check that the runs below have logged what is shown"
    )
    parser.add_argument("--save", action="store_true", help="make both at W&B, new ones each time; needs a login")


def run(options: argparse.Namespace) -> int:
    """Show, check and publish; return the exit status."""
    from asr_lightning.tools import publishing

    return publishing.run(options)


if __name__ == "__main__":
    sys.exit(main(["dashboard", *sys.argv[1:]]))
