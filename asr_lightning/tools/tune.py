r"""Tune values of an experiment: search those that lower an error rate of a development set, with Optuna.

Example:
    asr tune --config experiments/demo/ds2.yaml --space experiments/search_spaces/ds2.yaml --metric dev/cer \
        --subsets dev -- --trainer.max_epochs 3

A space is a YAML of dotted keys of the experiment, as on the command line of `lightning fit`, with a range or a list:

    model.init_args.optimizer.init_args.lr: {low: 1.0e-4, high: 1.0e-2, log: true}
    model.init_args.encoder.init_args.layers: {low: 2, high: 5}
    model.init_args.encoder.init_args.hidden: [128, 160, 192]

With --checkpoint nothing is trained: every trial decodes the development set anew with the checkpoint, for weights of
language models and other values of the search in `model.init_args.search.init_args`. Where 0 is in all ranges, it is
the first trial, so that what is chosen is never worse on the development set than no language model at all.

A metric of a test set is refused. Called again the command goes on; called several times at once, with one --output,
the calls share the work. Arguments behind -- go to every run.
"""

import argparse
import sys
from pathlib import Path

from asr_lightning.asr import main
from asr_lightning.errors import InputError
from asr_lightning.tools.arguments import add_config, whole_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_config(parser, "the experiment")
    parser.add_argument(
        "--space", type=Path, required=True, metavar="YAML", help="keys, with lists of values or ranges"
    )
    parser.add_argument(
        "--checkpoint", type=Path, metavar="CKPT", help="decode with it in place of training, to tune the search"
    )
    parser.add_argument("--metric", required=True, metavar="SUBSET/RATE", help="what to minimize, as dev/cer")
    parser.add_argument(
        "--subsets", nargs="+", default=[], metavar="SUBSET",
        help="development sets that trials are evaluated on (default: the validation_subsets of the experiment)",
    )  # fmt: skip
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/search"),
        metavar="FOLDER",
        help="of trials (default: runs/search)",
    )
    parser.add_argument(
        "--trials", type=whole_number(1), default=20, metavar="N", help="finished or pruned ones in all (default: 20)"
    )
    parser.add_argument("--workers", type=whole_number(1), default=1, metavar="N", help="trials at a time (default: 1)")
    parser.add_argument("--sampler", choices=("tpe", "random", "grid"), default="tpe", help="default: tpe")
    parser.add_argument("--seed", type=whole_number(0), default=1, help="of the sampler (default: 1)")
    parser.add_argument("--no-pruning", action="store_true", help="finish hopeless trials too")
    parser.add_argument("more", nargs="*", help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> int:
    """Make trials, and report them, also after Ctrl-C; return the exit status."""
    if "/" not in options.metric:
        raise InputError(f"expected a --metric as dev/cer, got {options.metric}")
    from asr_lightning.ablations.tuning import Tuning, check_subsets, read_space

    space = read_space(options.space)
    check_subsets(options.config, options.metric, options.subsets)
    if options.checkpoint is not None and not options.checkpoint.is_file():
        raise InputError(f"no checkpoint at {options.checkpoint} (looked for {options.checkpoint.absolute()})")
    if options.subsets and options.checkpoint is None:
        options.more = ["--data.init_args.validation_subsets", f"[{', '.join(options.subsets)}]", *options.more]
    tuning = Tuning(
        options.config, space, options.output, options.metric, options.sampler, options.seed, not options.no_pruning,
        options.more, options.checkpoint,
    )  # fmt: skip
    try:
        tuning.run(options.trials, options.workers)
    except KeyboardInterrupt:
        print(tuning.report())
        raise
    print(tuning.report())
    return 0


if __name__ == "__main__":
    sys.exit(main(["tune", *sys.argv[1:]]))
