r"""Calibrate the confidence of words on a development set, for `asr transcribe --calibration`.

Example:
    asr confidence --checkpoint runs/rnnt/checkpoints/last.ckpt --config experiments/rnnt_ws.yaml \
        --subsets dev-clean --output runs/rnnt/confidence

Writes calibration.json and reliability.png. To measure the calibration, each half of the utterances is calibrated by
the other half. A subset that the experiment tests on is refused.
"""

import argparse
import sys
from pathlib import Path

from asr_lightning.asr import main
from asr_lightning.tools.arguments import add_config, add_device, whole_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--checkpoint", type=Path, required=True, help="a .ckpt file that `lightning fit` has written")
    add_config(parser, "an experiment with its data")
    parser.add_argument(
        "--subsets", nargs="+", metavar="SUBSET",
        help="development sets (default: those that the experiment validates on)",
    )  # fmt: skip
    parser.add_argument("--method", choices=("temperature", "isotonic"), default="isotonic", help="default: isotonic")
    parser.add_argument(
        "--confidence", choices=("product", "min", "mean"), default="product",
        help="of a word, from the probabilities of its tokens (default: product); the same for `asr transcribe`",
    )  # fmt: skip
    parser.add_argument(
        "--beam", type=whole_number(1), metavar="N", help="hypotheses kept (default: as experiment or checkpoint say)"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where the files go")
    add_device(parser)


def run(options: argparse.Namespace) -> int:
    """Calibrate; return the exit status."""
    from tqdm import tqdm

    from asr_lightning.report.tables import as_text
    from asr_lightning.tools import subsets, word_confidence
    from asr_lightning.tools.prepared_recognizer import prepare_recognizer

    names = subsets.development_subsets(options.config, options.subsets)
    recognizer = prepare_recognizer(options.checkpoint, options.device, options.beam, options.config)
    batches = (batch for part in subsets.open_corpus(options.config, names).values() for batch in part)
    bar = tqdm(batches, unit="batch", disable=not sys.stderr.isatty())
    words = word_confidence.collect(recognizer, bar, options.confidence)
    print(as_text(word_confidence.calibrate(words, options.method, options.output)))
    correct = words[1]
    print(f"\n{len(correct)} words of {', '.join(names)}, {correct.mean():.1%} of them right")
    print(f"Written to {options.output.absolute()}: calibration.json, reliability.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(["confidence", *sys.argv[1:]]))
