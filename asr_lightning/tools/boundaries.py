r"""Measure how far the borders of phones or words are from the true ones.

Example:
    asr boundaries runs/gmm.phones.ctm runs/blstm.phones.ctm --truth data/spoken/test-clean --output runs/boundaries
    asr boundaries runs/blstm.words.ctm --truth /corpora/TIMIT/TEST --tier words --output runs/boundaries

The table has the median and the 90th percentile of the distances of borders, and the shares within 20 and 50 ms.
Segments are paired by their labels, with TIMIT's without the stress of vowels.
"""

import argparse
import sys
from pathlib import Path

from asr_lightning.asr import main
from asr_lightning.errors import InputError
from asr_lightning.tools.arguments import add_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "alignments", nargs="+", type=Path, metavar="CTM", help="alignments: CTM files, or folders of them"
    )
    parser.add_argument(
        "--truth",
        type=Path,
        required=True,
        metavar="PATH",
        help="exact ones: CTM files, as the embedded corpus has, or a folder of TIMIT's .PHN and .WRD",
    )
    parser.add_argument(
        "--tier", choices=("phones", "words"), default="phones", help="of TIMIT's files (default: phones)"
    )
    parser.add_argument("--lexicon", type=Path, metavar="FILE", help="pronunciations, if the alignments are of words")
    parser.add_argument(
        "--names", nargs="+", metavar="NAME", help="of the alignments in the table (default: names of the files)"
    )
    add_output(parser, "boundaries.csv, boundaries.md and boundaries.png")


def run(options: argparse.Namespace) -> int:
    """Compare the alignments; return the exit status."""
    names = options.names or [path.name.removesuffix(".ctm") for path in options.alignments]
    count = len(options.alignments)
    if len(set(names)) != count or len(names) != count:
        raise InputError(f"--names: expected a different name for each of {count} alignments, got {', '.join(names)}")
    from asr_lightning.tools.boundary_errors import compare_boundaries

    print(compare_boundaries(options.truth, options.alignments, names, options.lexicon, options.output, options.tier))
    return 0


if __name__ == "__main__":
    sys.exit(main(["boundaries", *sys.argv[1:]]))
