"""N-gram models in ARPA files [Doug Paul's format; SRILM's ngram-format(5)]."""

import codecs
import gzip
import math
import re
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asr_lightning.errors import InputError, shown
from asr_lightning.files import read_number, regular, replacing
from asr_lightning.text.ngram import ABSENT, SENTENCE_END, SENTENCE_START, UNKNOWN, Floats, Integers, Level, NGram, find

IMPOSSIBLE = -99.0  # log10, or less: how the format writes a probability of 0
ROUNDING = 1e-6  # log10 probabilities so little above 0 are read as 0
GZIP = b"\x1f\x8b"
LN10 = math.log(10)
BLOCK = 65536  # n-grams that are written at once

_COUNT = re.compile(rb"ngram\s+(\d+)\s*=\s*(\d+)")


@dataclass
class _Section:
    """The n-grams of one length as a file has them.

    Attributes:
        rows: (G, n) ids.
        log_probs: (G,) natural logs; not a number where they follow from shorter n-grams.
        backoffs: (G,) natural logs.
        lines: (G,) numbers of the lines in the file.
    """

    rows: Integers
    log_probs: Floats
    backoffs: Floats
    lines: Integers


def read_arpa(path: str | Path) -> NGram:
    r"""Read an ARPA file, plain or compressed by gzip.

    Fields are separated by tabs or spaces, tokens are UTF-8. Back-off weights may be missing: they are then 1, as are
    the log10 of 0. A log10 of -99 or less is a probability of 0. What is before `\data\` and after `\end\` is skipped;
    n-grams whose beginning was pruned away are kept; `<UNK>` is read as `<unk>` where that is missing.

    Raises:
        InputError: It cannot be read, or is malformed; the message names the line.
    """
    path = Path(path)
    try:
        with open_text(path) as file:
            tokens, sections = _Reader(path, file).read()
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot read the language model {path} ({reason}); correct the path, or get it anew"
        ) from error
    _complete(sections, len(tokens))
    levels: list[Level] = []
    for section in sections:
        levels.append(_level(tokens, levels, section, path))
    return NGram(tokens, levels)


@contextmanager
def open_text(path: Path) -> Iterator[Iterable[bytes]]:
    """Give the lines of a file; compression by gzip is recognized by the content, not by the name."""
    with regular(path).open("rb") as file:
        if not file.peek(len(GZIP)).startswith(GZIP):
            yield file
            return
        with gzip.GzipFile(fileobj=file) as text:
            yield text


class _Reader:
    """Parser of one file; `number` and `line` are the last line read."""

    def __init__(self, path: Path, lines: Iterable[bytes]) -> None:
        self.path = path
        self.lines = iter(lines)
        self.line = b""
        self.number = 0
        self.tokens: list[str] = []
        self.ids: dict[bytes, int] = {}

    def read(self) -> tuple[list[str], list[_Section]]:
        counts = self._read_header()
        sections = []
        for length, (count, line) in enumerate(counts, 1):
            if self.line != f"\\{length}-grams:".encode():
                raise self._error(f"the line \\{length}-grams:")
            start = self.number
            sections.append(self._read_section(length))
            size = len(sections[-1].lines)
            if size != count:
                raise InputError(
                    f"{self.path}, line {start}: expected {count} {length}-grams, as line {line} says, found {size}; "
                    "the file is damaged, get or make it anew"
                )
            if length == 1:
                self._check_vocabulary()
        if self.line != b"\\end\\":
            raise self._error("the line \\end\\")
        # An empty section: the n-grams one shorter are never lengthened, but their back-off weights count.
        while len(sections) > 1 and not len(sections[-1].lines) and not sections[-2].backoffs.any():
            sections.pop()
        return self.tokens, sections

    def _read_header(self) -> list[tuple[int, int]]:
        """Return the number of n-grams of each length, and the line that states it."""
        while self._next().removeprefix(codecs.BOM_UTF8) != b"\\data\\":
            if not self.line:
                raise self._error(
                    "an ARPA file, in which the n-grams begin with the line \\data\\ (binary formats are not read)"
                )
        counts: list[tuple[int, int]] = []
        while match := _COUNT.fullmatch(self._next()):
            if int(match[1]) != len(counts) + 1:
                raise self._error(f"ngram {len(counts) + 1}=<count>")
            counts.append((int(match[2]), self.number))
        if not counts:
            raise self._error("ngram 1=<count>")
        return counts

    def _next(self) -> bytes:
        """Go to the next line that is not blank; at the end of the file the line is empty."""
        for line in self.lines:
            self.number += 1
            self.line = line.strip()
            if self.line:
                return self.line
        self.line = b""
        return self.line

    def _read_section(self, length: int) -> _Section:
        """Read n-grams until a line begins with a backslash, or the file ends."""
        ids, lines = array("q"), array("q")
        log_probs, backoffs = array("d"), array("d")
        while (line := self._next()) and not line.startswith(b"\\"):
            fields = line.split()
            if not length + 1 <= len(fields) <= length + 2:
                raise self._error(
                    f"a log10 probability, {length} token{'s' * (length > 1)} and maybe a back-off weight"
                )
            log_probs.append(self._number(fields[0]))
            backoffs.append(self._number(fields[-1]) if len(fields) == length + 2 else 0.0)
            if log_probs[-1] > ROUNDING:
                raise self._error("a log10 probability of 0 or less")
            if length == 1:
                self._add(fields[1])
            try:
                ids.extend([self.ids[token] for token in fields[1 : length + 1]])
            except KeyError as error:
                token = error.args[0].decode(errors="replace")
                raise self._error("tokens of the 1-grams", repr(shown(token))) from error
            lines.append(self.number)
        rows = np.array(ids, np.int64).reshape(-1, length)
        return _Section(rows, np.minimum(_natural(log_probs), 0.0), _natural(backoffs), np.array(lines))

    def _number(self, field: bytes) -> float:
        try:
            number = read_number(field.decode())
        except ValueError:
            number = math.nan
        if not number < math.inf:
            raise self._error("a number", repr(shown(field.decode(errors="replace"))))
        return number

    def _add(self, token: bytes) -> None:
        if token in self.ids:
            raise self._error("every token once", repr(shown(token.decode(errors="replace"))) + " again")
        try:
            self.tokens.append(token.decode())
        except UnicodeDecodeError as error:
            raise self._error("UTF-8") from error
        self.ids[token] = len(self.ids)

    def _check_vocabulary(self) -> None:
        upper_case = UNKNOWN.upper()
        if UNKNOWN not in self.tokens and upper_case in self.tokens:
            self.tokens[self.tokens.index(upper_case)] = UNKNOWN
        missing = [token for token in (SENTENCE_START, SENTENCE_END) if token not in self.tokens]
        if missing:
            absent = " and no ".join(missing)
            raise InputError(f"{self.path}: expected <s> and </s> among the 1-grams, found no {absent}")

    def _error(self, expected: str, found: str | None = None) -> InputError:
        if found is None:
            text = self.line.decode(errors="replace")
            found = repr(shown(text)) if text else "the end of the file"
        return InputError(f"{self.path}, line {max(1, self.number)}: expected {expected}, found {found}")


def _natural(log10: Sequence[float]) -> Floats:
    values = np.array(log10, np.float64)
    return np.where(values <= IMPOSSIBLE, -np.inf, values * LN10)


def _complete(sections: list[_Section], vocabulary: int) -> None:
    """Add the beginnings of n-grams that were pruned away; back-off gives their probabilities."""
    for length in range(len(sections) - 1, 1, -1):
        lower, upper = sections[length - 1], sections[length]
        rows = np.concatenate([lower.rows, upper.rows[:, :-1]])
        codes = np.zeros(len(rows), np.int64)
        for column in rows.T:
            codes = np.unique(codes * vocabulary + column, return_inverse=True)[1]
        first = np.unique(codes, return_index=True)[1]
        missing = first[first >= len(lower.rows)]
        zeros = np.zeros(len(missing))
        sections[length - 1] = _Section(
            np.concatenate([lower.rows, rows[missing]]),
            np.concatenate([lower.log_probs, zeros + np.nan]),
            np.concatenate([lower.backoffs, zeros]),
            np.concatenate([lower.lines, upper.lines[missing - len(lower.rows)]]),
        )


def _level(tokens: Sequence[str], below: Sequence[Level], section: _Section, path: Path) -> Level:
    """Sort a section.

    Raises:
        InputError: An n-gram is in it twice.
    """
    contexts = find(below, section.rows[:, :-1], len(tokens))
    assert (contexts != ABSENT).all()
    keys = contexts * len(tokens) + section.rows[:, -1]
    order = keys.argsort(kind="stable")
    keys = keys[order]
    repeats = np.flatnonzero(keys[1:] == keys[:-1]) + 1
    if len(repeats):
        words = " ".join(tokens[number] for number in section.rows[order[repeats[0]]])
        line, first = section.lines[order[repeats[0]]], section.lines[order[repeats[0] - 1]]
        raise InputError(
            f"{path}, line {line}: expected every n-gram once, found {shown(words)!r} again, as in line {first}"
        )
    log_probs = section.log_probs
    pruned = np.flatnonzero(np.isnan(log_probs))
    if len(pruned):
        model = NGram(tokens, below)
        log_probs[pruned] = below[-1].backoffs[contexts[pruned]] + model.log_probs(section.rows[pruned, 1:])
    return Level(keys, log_probs[order], section.backoffs[order])


def write_arpa(model: NGram, path: str | Path) -> None:
    """Write a model in 9 significant digits; compressed if the path ends in `.gz`. The file is replaced when complete.

    Raises:
        InputError: The file cannot be written.
    """
    path = Path(path)
    try:
        with replacing(path) as half, half.open("wb") as raw:
            with gzip.GzipFile("", "wb", 6, raw, 0) if path.suffix == ".gz" else raw as file:
                for text in _blocks(model):
                    file.write(text.encode())
    except OSError as error:
        raise InputError(f"cannot write the language model {path} ({error.strerror or error})") from error


def _blocks(model: NGram) -> Iterator[str]:
    counts = [f"ngram {length}={len(level.keys)}" for length, level in enumerate(model.levels, 1)]
    yield "\n".join(["\\data\\", *counts]) + "\n"
    for length, level in enumerate(model.levels, 1):
        yield f"\n\\{length}-grams:\n"
        rows = model.rows(length)
        for start in range(0, len(rows), BLOCK):
            block = slice(start, start + BLOCK)
            yield "".join(
                f"{_decimal(log_prob)}\t{' '.join([model.tokens[number] for number in row])}"
                f"{_weight(backoff) if length < model.order else ''}\n"
                for row, log_prob, backoff in zip(
                    rows[block].tolist(), level.log_probs[block].tolist(), level.backoffs[block].tolist(), strict=True
                )
            )
    yield "\n\\end\\\n"


def _decimal(natural: float) -> str:
    return f"{max(natural / LN10, IMPOSSIBLE):.9g}"


def _weight(natural: float) -> str:
    return f"\t{_decimal(natural)}" if natural else ""
