r"""Show what a student would get from a teacher by weight selection, before anything is trained.

Example:
    asr teacher runs/demo/rnnt_teacher/seed1/checkpoints/last.ckpt --config experiments/demo/rnnt_ws.yaml \
        --output reports/teacher

The first table has the modules of the student: from which of the teacher their weights are selected, what share of
their values that is (tokens that the teacher lacks keep random rows), and what share of the teacher's values. The
second has the layers of the teacher's encoder, kept or skipped: their similarity (linear CKA, from 0 to 1) to the layer
below, to the most similar layer that is kept, and to the student's layer that is made from them, with selected weights
and with random ones. Little is lost with a skipped layer that is similar to a kept one. weights.csv has all parameters.
"""

import argparse
import sys
from pathlib import Path

from asr_lightning.asr import main
from asr_lightning.tools.arguments import add_config, add_device, add_output, whole_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("teacher", type=Path, metavar="CHECKPOINT", help="of the teacher")
    add_config(parser, "experiment of the student: its `model`, `data` and, for the rules, `weight_selection`")
    add_output(parser, "weights.csv and layers.csv")
    parser.add_argument("--layers", choices=("first", "uniform", "last"), help="rule, in place of the experiment's")
    parser.add_argument(
        "--elements", choices=("uniform", "consecutive", "random_consistent", "random_inconsistent"),
        help="rule, in place of the experiment's",
    )  # fmt: skip
    parser.add_argument("--subset", help="any subset of the data (default: the first one of validation)")
    parser.add_argument(
        "--utterances", type=whole_number(1), default=16, metavar="N", help="drawn at random (default: 16)"
    )
    parser.add_argument("--seed", type=whole_number(0), default=1, help="of draw and random weights (default: 1)")
    add_device(parser)


def run(options: argparse.Namespace) -> int:
    """Select, measure and write; return the exit status."""
    from asr_lightning.tools.teacher_report import report

    rules = {key: value for key in ("layers", "elements") if (value := getattr(options, key)) is not None}
    print(
        report(
            options.teacher, options.config, options.output, rules, options.subset, options.utterances, options.seed,
            options.device,
        )
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main(["teacher", *sys.argv[1:]]))
