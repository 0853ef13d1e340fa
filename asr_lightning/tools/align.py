r"""Write when the phones and words of a corpus are spoken: CTM files and Praat's TextGrids.

Example:
    asr align --checkpoint runs/demo/hybrid/seed1/checkpoints/last.ckpt --config experiments/demo/hybrid.yaml \
        --subsets test-clean --output runs/demo/alignments

A hybrid knows phones and words, a CTC output words only. The files are SUBSET.phones.ctm, SUBSET.words.ctm and
TextGrid/SUBSET/ID.TextGrid. An utterance that cannot be aligned is named on stderr with the reason, and the rest goes
on; the exit status is then 1.
"""

import argparse
import sys
from pathlib import Path

from asr_lightning.asr import main
from asr_lightning.errors import printable
from asr_lightning.tools.arguments import add_config, add_device, add_output, add_subsets

# Mean log posterior of an alignment's states without pauses. By the network of experiments/demo/hybrid.yaml (seed 1,
# five epochs), of the 304 utterances of the dev and test subsets none was below with its own transcript, and 303 were
# with another one of about the same length; of 418 of the training subset none, and 411 of 415.
LEAST_FIT = -6.0
STOPPED = "stopped; the files that were written are complete, but some are missing"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--checkpoint", type=Path,
        help="that `lightning fit` has saved, of a BLSTMHMM or a recognizer with a CTC output",
    )  # fmt: skip
    source.add_argument(
        "--states", type=Path, metavar="FOLDER", help="of `asr hybrid`: write the alignments that are in it"
    )
    add_config(parser, "an experiment; its `data` is the corpus, its `model`, if any, that of the checkpoint")
    add_subsets(parser, "of the corpus (default: those that the experiment tests on)")
    add_output(parser, "the files")
    parser.add_argument(
        "--least-fit", type=float, default=LEAST_FIT, metavar="X",
        help="of a BLSTMHMM: mean log posterior of an utterance's states without pauses, below which audio and "
        f"transcript do not match (default: {LEAST_FIT:g}, between right and wrong transcripts of the embedded corpus; "
        "--least-fit=-inf takes all)",
    )  # fmt: skip
    parser.add_argument(
        "--least-share", type=float, default=1.0, metavar="S",
        help="of the utterances: with fewer the exit status is 1 (default: 1, all of them)",
    )  # fmt: skip
    add_device(parser)


def run(options: argparse.Namespace) -> int:
    """Align the subsets; return the exit status."""
    from asr_lightning.tools.alignment_files import aligner_of, write_alignments
    from asr_lightning.tools.subsets import open_corpus

    aligner, tiers = aligner_of(options)
    problems, aligned = [], 0
    for subset, batches in open_corpus(options.config, options.subsets).items():
        of_subset, count = write_alignments(aligner(batches), tiers, subset, options.output)
        problems += of_subset
        aligned += count
    print(f"Written to {options.output.absolute()}")
    for problem in problems:
        print(printable(problem), file=sys.stderr)
    if aligned < options.least_share * (aligned + len(problems)):
        share = f"{aligned:,} of {aligned + len(problems):,} utterances are aligned"
        print(f"{share}, expected a share of {options.least_share:g} or more (--least-share)", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(["align", *sys.argv[1:]]))
