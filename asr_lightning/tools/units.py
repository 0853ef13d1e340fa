"""Makes the tokens of a recognizer from the training transcripts of an experiment: characters or SentencePiece pieces.

Example: python -m asr_lightning.tools.units characters --config experiments/ds2_kspon.yaml --output units.tsv
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from asr_lightning.errors import InputError
from asr_lightning.text.hangul import FULL_SIZE, write_characters
from asr_lightning.text.tokenizers import train_sentencepiece
from asr_lightning.tools.subsets import training_texts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 2 where the input cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m asr_lightning.tools.units",
        description="Make the tokens of a recognizer from the training transcripts of an experiment.",
        epilog="The data of the experiment can be changed as in `lightning fit`, with --data.init_args.root FOLDER or "
        "with --data CLASS and its --data.init_args.",
    )
    parser.add_argument("kind", choices=("characters", "unigram", "bpe"), help="the last two are SentencePiece models")
    parser.add_argument("--config", type=Path, required=True, metavar="YAML", help="experiment whose `data` is read")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="a list, or a .model of SentencePiece"
    )
    parser.add_argument(
        "--tokens", type=int, default=FULL_SIZE, help="tokens with blank, unknown, end and space (default: %(default)s)"
    )
    parser.add_argument("--least", type=int, default=1, help="leave characters out that come less often (default: 1)")
    options, changes = parser.parse_known_args(arguments)
    if changes and not changes[0].startswith("--data"):
        parser.error(f"unrecognized arguments: {' '.join(changes)}; of the experiment, --data… can be changed")
    try:
        texts = training_texts(options.config, changes)
        if options.kind == "characters":
            found = write_characters(texts, options.output, options.tokens, options.least)
            print(f"{found} characters in {options.output}, so that SyllableTokenizer has {found + 4} tokens")
        else:
            prefix = options.output.with_suffix("")
            print(f"written: {train_sentencepiece(texts, options.tokens, prefix, options.kind)}")
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
