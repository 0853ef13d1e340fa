"""Make the tokens of a recognizer from the training transcripts of an experiment: characters or SentencePiece pieces.

Example:
    asr units characters --config experiments/ds2_kspon.yaml --output units.tsv

The data of the experiment can be changed as in `lightning fit`, with --data.init_args.root FOLDER or with --data CLASS
and its --data.init_args.
"""

import argparse
import sys
from pathlib import Path

from asr_lightning.asr import main
from asr_lightning.text.hangul import FULL_SIZE
from asr_lightning.tools.arguments import add_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("kind", choices=("characters", "unigram", "bpe"), help="the last two are SentencePiece models")
    add_config(parser, "experiment whose `data` is read")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="a list, or a .model of SentencePiece"
    )
    parser.add_argument(
        "--tokens", type=int, default=FULL_SIZE, help="tokens with blank, unknown, end and space (default: %(default)s)"
    )
    parser.add_argument("--least", type=int, default=1, help="leave characters out that come less often (default: 1)")


CHANGES = "--data"  # of the experiment, after the command's own options


def run(options: argparse.Namespace) -> int:
    """Make the tokens; return the exit status."""
    from asr_lightning.text.hangul import write_characters
    from asr_lightning.text.tokenizers import train_sentencepiece
    from asr_lightning.tools.subsets import training_texts

    texts = training_texts(options.config, options.remaining)
    if options.kind == "characters":
        count = write_characters(texts, options.output, options.tokens, options.least)
        print(f"{count} characters in {options.output}, so that SyllableTokenizer has {count + 4} tokens")
    else:
        prefix = options.output.with_suffix("")
        print(f"written: {train_sentencepiece(texts, options.tokens, prefix, options.kind)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(["units", *sys.argv[1:]]))
