r"""Estimate n-gram language models from text, and measure their perplexity.

Example:
    asr ngram estimate --order 3 --skip-columns 1 --output lm.arpa 'train/**/*.trans.txt'
    asr ngram perplexity --arpa lm.arpa --skip-columns 1 'dev/**/*.trans.txt'

Texts are UTF-8 files with one sentence per line. `.gz` and quoted patterns are fine, `-` is the standard input. Blank
lines are skipped, nothing is normalized: case matters for words.
"""

import argparse
import codecs
import glob
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from asr_lightning.asr import main
from asr_lightning.errors import InputError
from asr_lightning.tools.arguments import above_zero, add_config, whole_number

if TYPE_CHECKING:
    from asr_lightning.text.tokenizers import Tokenizer

SMOOTHINGS = ("kneser-ney", "witten-bell")
STDIN = "-"
FOREIGN = 0.5  # share of unknown tokens from which text and model are taken to have different units

Split = Callable[[str], Sequence[str]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the commands' arguments."""
    texts = argparse.ArgumentParser(add_help=False)
    texts.add_argument("texts", nargs="+", metavar="TEXT", help="text files, or quoted patterns of them")
    texts.add_argument(
        "--units", choices=("words", "tokens"), default="words",
        help="what the n-grams are made of: words, or the tokens of a recognizer (default: words)",
    )  # fmt: skip
    add_config(texts, "experiment whose tokenizer makes the tokens (default: characters A-Z, ' and _)", False)
    texts.add_argument(
        "--skip-columns", type=whole_number(0), default=0, metavar="N",
        help="words at the start of each line to skip: 1 for *.trans.txt of LibriSpeech and text of Kaldi (default: 0)",
    )  # fmt: skip
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    estimation = commands.add_parser(
        "estimate", parents=[texts], help="make a model", description="Make a model from text."
    )
    estimation.add_argument(
        "--order", type=whole_number(1), default=3, metavar="N", help="units in an n-gram (default: 3)"
    )
    estimation.add_argument(
        "--smoothing", choices=SMOOTHINGS, default="kneser-ney",
        help="kneser-ney is modified and interpolated; witten-bell suits tiny texts (default: kneser-ney)",
    )  # fmt: skip
    estimation.add_argument(
        "--prune", type=above_zero(float), metavar="X",
        help="leave out n-grams without which the perplexity rises by less than this share, e.g. 1e-8 (default: none)",
    )  # fmt: skip
    estimation.add_argument(
        "--output", type=Path, required=True, metavar="ARPA", help="the file to write, compressed if it ends in .gz"
    )
    estimation.set_defaults(command=estimate)
    perplexity = commands.add_parser(
        "perplexity", parents=[texts], help="measure how well a model predicts text",
        description="Measure how well a model predicts text, ends of sentences included.",
    )  # fmt: skip
    perplexity.add_argument("--arpa", type=Path, required=True, help="the model, .gz is fine")
    perplexity.set_defaults(command=measure_perplexity)


def run(options: argparse.Namespace) -> int:
    """Estimate or measure; return the exit status."""
    print(options.command(options))
    return 0


def find_texts(patterns: Iterable[str]) -> list[str]:
    """Return the files that paths and glob patterns name, those of a pattern sorted; `-` remains.

    Raises:
        InputError: There is none for one of them.
    """
    texts: list[str] = []
    for pattern in patterns:
        exists = pattern == STDIN or Path(pattern).exists()
        paths = [pattern] if exists else sorted(glob.glob(pattern, recursive=True))
        files = [path for path in paths if path == STDIN or not Path(path).is_dir()]
        if not files:
            raise InputError(f"no text file at {pattern} (looked for {Path(pattern).absolute()}); correct the path")
        texts += files
    return texts


def read_sentences(texts: Iterable[str], skip_columns: int = 0) -> Iterator[str]:
    """Give the lines of text files, UTF-8 and maybe compressed by gzip, without blank ones.

    Args:
        texts: Paths; `-` is the standard input.
        skip_columns: How many words at the start of each line belong to no sentence.

    Raises:
        InputError: A file cannot be read.
    """
    from asr_lightning.text.arpa import open_text

    for path in texts:
        try:
            with nullcontext(sys.stdin.buffer) if path == STDIN else open_text(Path(path)) as lines:
                for number, line in enumerate(lines, 1):
                    fields = decode(line, f"{path}, line {number}").split(maxsplit=skip_columns)
                    if len(fields) > skip_columns:
                        yield fields[skip_columns].strip()
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def decode(line: bytes, location: str) -> str:
    """Return the text of a line of UTF-8.

    Raises:
        InputError: It is not UTF-8; the message names the place.
    """
    try:
        return line.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        byte = line[error.start : error.start + 1]
        raise InputError(f"{location}: expected UTF-8, found the byte {byte!r}; convert the file") from error


def choose_units(units: str, config: Path | None) -> tuple[Split, list[str] | None]:
    """Return a function that splits text into units, and the vocabulary if it does not depend on the text.

    Args:
        units: `words`, or `tokens` of a recognizer.
        config: The experiment of the recognizer; None: its tokens are characters.

    Raises:
        InputError: There is no tokenizer in the experiment, it cannot be made, or words need none.
    """
    from asr_lightning.text.ngram import SENTENCE_END, SENTENCE_START, UNKNOWN
    from asr_lightning.text.tokenizers import CharacterTokenizer

    if units == "words":
        if config is not None:
            raise InputError(f"--config {config}: expected --units tokens with it, found words")
        return str.split, None
    tokenizer = CharacterTokenizer() if config is None else read_tokenizer(config)
    names = list(tokenizer.tokens)
    names[tokenizer.unk_id] = UNKNOWN
    special = {tokenizer.tokens[tokenizer.blank_id], tokenizer.tokens[tokenizer.eos_id], SENTENCE_START, SENTENCE_END}
    return lambda text: [names[number] for number in tokenizer.encode(text)], [
        name for name in names if name not in special
    ]


def read_tokenizer(config: Path) -> "Tokenizer":
    """Return the tokenizer of an experiment's recognizer.

    Raises:
        InputError: There is none, or it cannot be made.
    """
    from asr_lightning.models.experiment import read_part
    from asr_lightning.models.instantiation import instantiate
    from asr_lightning.text.tokenizers import Tokenizer

    try:
        tokenizer = read_part(config).get("init_args", {}).get("tokenizer")
        if tokenizer is None:
            raise InputError("expected a `tokenizer` among the init_args of `model`, found none")
        return instantiate(tokenizer, Tokenizer, "a tokenizer")[0]  # type: ignore[type-abstract]
    except InputError as error:
        raise InputError(f"{config}: {error}") from error


def estimate(options: argparse.Namespace) -> str:
    """Write a model, and return what to tell the user.

    Raises:
        InputError: The text or an option cannot be used.
    """
    from asr_lightning.text.arpa import write_arpa
    from asr_lightning.text.pruning import prune
    from asr_lightning.text.smoothing import kneser_ney, witten_bell

    split, vocabulary = choose_units(options.units, options.config)
    sentences = units = 0

    def counted() -> Iterator[Sequence[str]]:
        nonlocal sentences, units
        for tokens in read_with_progress(options, split):
            sentences += 1
            units += len(tokens)
            yield tokens

    smooth = kneser_ney if options.smoothing == SMOOTHINGS[0] else witten_bell
    model = smooth(counted(), options.order, vocabulary)
    pruned = prune(model, options.prune) if options.prune else model
    write_arpa(pruned, options.output)
    lines = [f"{sentences} sentences, {units} {options.units}, order {pruned.order}, {options.smoothing}"]
    for length, level in enumerate(model.levels, 1):
        remaining = len(pruned.levels[length - 1].keys) if length <= pruned.order else 0
        lines.append(f"{length}-grams: {len(level.keys)}{f', of which {remaining} stay' if options.prune else ''}")
    return "\n".join([*lines, f"Written to {options.output.absolute()}"])


def measure_perplexity(options: argparse.Namespace) -> str:
    """Return the perplexity of texts, in words.

    Raises:
        InputError: The text, the model or an option cannot be used.
    """
    from asr_lightning.text.arpa import read_arpa

    split, _ = choose_units(options.units, options.config)
    result = read_arpa(options.arpa).perplexity(read_with_progress(options, split))
    share = result.unknown / result.tokens
    log_prob = result.log_prob + result.unknown_log_prob
    lines = [
        f"{result.sentences} sentences, {result.tokens} {options.units}, {result.unknown} ({share:.2%}) unknown",
        f"natural log probability {log_prob:.2f}, with unknown {options.units} as <unk>",
        f"perplexity {result.with_unknown:.2f}; {result.without_unknown:.2f} without the unknown {options.units}",
    ]
    if share > FOREIGN:
        lines.append(f"Most {options.units} are unknown: are --units, --config, --skip-columns and case right?")
    return "\n".join(lines)


def read_with_progress(options: argparse.Namespace, split: Split) -> Iterator[Sequence[str]]:
    """Give the sentences of all texts in units; on a terminal with a progress bar."""
    from tqdm import tqdm

    texts = find_texts(options.texts)
    for text in tqdm(read_sentences(texts, options.skip_columns), unit=" sentences", disable=not sys.stderr.isatty()):
        if tokens := split(text):
            yield tokens


if __name__ == "__main__":
    sys.exit(main(["ngram", *sys.argv[1:]]))
