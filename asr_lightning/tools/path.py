r"""Measure the loss, and error rates if asked, on straight lines between the networks of checkpoints.

Example:
    asr path --between runs/demo/rnnt_random/seed1/checkpoints/last.ckpt \
        runs/demo/rnnt_ws/seed1/checkpoints/last.ckpt --output reports/ws

The networks are (1 - α)·first + α·second, of one architecture. Buffers are interpolated as the weights are, running
statistics too, which are not measured anew for the networks between; beyond the ends they stay those of the nearer end.
The start of a run is an end point as any other: checkpoints/initial.ckpt, which the callback DistanceFromStart writes.
"""

import argparse
import sys
from pathlib import Path

from asr_lightning.asr import main
from asr_lightning.errors import InputError
from asr_lightning.tools.arguments import add_config, add_device, add_output, whole_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--between", nargs=2, type=Path, required=True, action="append", metavar=("FIRST", "SECOND"),
        help="two .ckpt files; may be given several times, one curve each",
    )  # fmt: skip
    add_output(parser, "path.csv and path.png")
    add_config(
        parser,
        "experiment whose `data` is read, and whose `model`, if it has one, those of the checkpoints (default: data of "
        "config.yaml in the logs of the first checkpoint's run, models as in the checkpoints)",
        False,
    )
    parser.add_argument("--subset", help="any subset of these data (default: the first one of validation)")
    parser.add_argument(
        "--utterances", type=whole_number(0), default=200, metavar="N",
        help="at most so many, drawn at random and held in memory; 0 for all (default: 200)",
    )  # fmt: skip
    parser.add_argument("--seed", type=whole_number(0), default=1, help="of the draw (default: 1)")
    parser.add_argument("--from", dest="start", type=float, default=-0.25, metavar="α", help="default: -0.25")
    parser.add_argument("--to", dest="stop", type=float, default=1.25, metavar="α", help="default: 1.25")
    parser.add_argument(
        "--points", type=int, default=13, metavar="N", help="evenly spread; 0 and 1 are always among them (default: 13)"
    )
    parser.add_argument("--error-rates", action="store_true", help="also recognize the speech, which takes longer")
    add_device(parser)


def run(options: argparse.Namespace) -> int:
    """Measure and draw; return the exit status."""
    from asr_lightning.analysis.interpolation import line_positions
    from asr_lightning.tools.weight_lines import find_config, measure_line, read_batches, write_line

    try:
        positions = line_positions(options.start, options.stop, options.points)
    except ValueError as error:
        raise InputError(f"--from, --to and --points: {error}") from error
    pairs = [(first, second) for first, second in options.between]
    config = options.config or find_config(pairs[0][0])
    subset, batches = read_batches(config, options.subset, options.utterances, options.seed)
    lines = [
        measure_line(pair, subset, batches, positions, options.error_rates, options.device, options.config)
        for pair in pairs
    ]
    print(write_line(lines, options.output))
    return 0


if __name__ == "__main__":
    sys.exit(main(["path", *sys.argv[1:]]))
