r"""Average the weights of several checkpoints of a run, and compare its error rates with those of single ones.

Example:
    asr average runs/conformer_ctc/checkpoints/best-*.ckpt --output runs/conformer_ctc/average \
        --beside runs/conformer_ctc/checkpoints/last.ckpt

The experiments keep the ten best checkpoints by a development set, as `best-*.ckpt`, which is what public recipes
average: ESPnet's `keep_nbest_models: 10`, SpeechBrain's `avg_checkpoints: 10`. The result is tested as any other
checkpoint: `lightning test --config … --ckpt_path …/average.ckpt`. Where a checkpoint holds an average over steps too,
as of EMAWeightAveraging, both are in the table.
"""

import argparse
import sys
from pathlib import Path

from asr_lightning.asr import main
from asr_lightning.errors import InputError
from asr_lightning.tools.arguments import add_config, add_device, add_output, add_subsets


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT", help="two or more .ckpt files")
    add_output(parser, "average.ckpt, average.md and average.csv")
    parser.add_argument(
        "--beside", nargs="+", type=Path, default=[], metavar="CHECKPOINT",
        help="measured too, but not averaged, as last.ckpt (default: none)",
    )  # fmt: skip
    add_config(
        parser,
        "experiment whose `data` is read, and whose `model`, if it has one (default: data of config.yaml in the logs "
        "of the run, model of the checkpoint)",
        False,
    )
    add_subsets(parser, "of the corpus (default: those that the experiment validates but does not test on)")
    add_device(parser)


def run(options: argparse.Namespace) -> int:
    """Average the checkpoints, and measure; return the exit status."""
    if len(options.checkpoints) < 2:
        raise InputError(f"expected two or more checkpoints to average, got {options.checkpoints[0]} only")
    from asr_lightning.models.checkpoints import CheckpointFiles
    from asr_lightning.tools.averaging import Weights, average, measure_averages, weights_of, write_average
    from asr_lightning.tools.prepared_recognizer import prepare_recognizer
    from asr_lightning.tools.subsets import development_subsets
    from asr_lightning.tools.weight_lines import find_config

    config = options.config or find_config(options.checkpoints[0])
    subsets = options.subsets or development_subsets(config, None)
    recognizer = prepare_recognizer(options.checkpoints[0], options.device, None, options.config)
    averaged = average(recognizer, options.checkpoints)
    CheckpointFiles().save_checkpoint(averaged, options.output / "average.ckpt")
    beside = [weights for path in options.beside for weights in weights_of(path)]
    rates = measure_averages(recognizer, [*beside, Weights("averaged", averaged["state_dict"])], config, subsets)
    print(write_average(rates, options.output, len(options.checkpoints)))
    return 0


if __name__ == "__main__":
    sys.exit(main(["average", *sys.argv[1:]]))
