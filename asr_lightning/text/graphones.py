"""Graphones: pieces of a spelling with the pieces of pronunciation that belong to them [Bisani and Ney 2008, §3].

An entry is a word and one pronunciation of it. Graphones that follow each other make up both: PHONE, F OW1 N is
PH:F O:OW1 N:N E: for example. The graphones and their probabilities are found by expectation maximization: all
segmentations of all entries are weighed at once. Lattices of entries with equally many letters and phones form one
array.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from asr_lightning.errors import InputError

LONGEST = 64  # letters or phones of an entry: probabilities of longer ones may be too small for a double
BETWEEN, AMONG = "}", "|"  # letters and phones, phones, in a written graphone
ROWS = 1024  # entries in a lattice at most, so that it stays in the cache

Graphone = tuple[str, tuple[str, ...]]  # letters, phones
Entry = tuple[str, tuple[str, ...]]
Size = tuple[int, int]  # letters and phones of a graphone
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Group:
    """B entries of N letters and M phones.

    Attributes:
        entries: (B,) indices.
        letters: For every size k of graphones, numbers (N + 1 - k, B) of the pieces of k letters from each position.
        phones: The same of phones, (M + 1 - k, B).
    """

    entries: Integers
    letters: list[Integers]
    phones: list[Integers]


class GraphoneModel:
    """Unigram probabilities of graphones, estimated from entries, and segmentations of these entries.

    At first all graphones that occur in a segmentation of an entry are equally probable.

    Args:
        entries: To estimate it from.
        letters: In a graphone at most.
        phones: In a graphone at most; graphones may have no letters or no phones, but not neither.

    Raises:
        InputError: There are no entries, or one is empty or too long.

    Attributes:
        probabilities: (L, P) of all pairs of L pieces of spelling and P pieces of pronunciation.
    """

    def __init__(self, entries: Sequence[Entry], letters: int = 2, phones: int = 2) -> None:
        if letters < 1 or phones < 1:
            raise InputError(f"expected graphones of 1 or more letters and phones, got {letters} and {phones}")
        _check(entries)
        self.entries = entries
        self.sizes = [(m, n) for m in range(letters + 1) for n in range(phones + 1) if m or n]
        self._letters = _Pieces([tuple(word) for word, _ in entries], letters)
        self._phones = _Pieces([pronunciation for _, pronunciation in entries], phones)
        shapes: dict[Size, list[int]] = {}
        for number, (word, pronunciation) in enumerate(entries):
            shapes.setdefault((len(word), len(pronunciation)), []).append(number)
        self._groups = [
            _Group(np.array(chunk), self._letters.of(chunk), self._phones.of(chunk))
            for _, rows in sorted(shapes.items())
            for chunk in (rows[start : start + ROWS] for start in range(0, len(rows), ROWS))
        ]
        possible = np.zeros((len(self._letters), len(self._phones)))
        for group in self._groups:
            for size in self.sizes:
                possible[_arcs(group, size)] = 1.0
        self.probabilities = possible / possible.sum()

    def __call__(self, graphone: Graphone) -> float:
        """Return the probability of a graphone; 0 of one that fits in no entry."""
        letters, phones = graphone
        row, column = self._letters.ids.get(tuple(letters)), self._phones.ids.get(phones)
        return 0.0 if row is None or column is None else float(self.probabilities[row, column])

    def expected_counts(self) -> tuple[Floats, float]:
        """Return how often graphones (L, P) are expected to be used, and the natural log likelihood of all entries."""
        counts = np.zeros_like(self.probabilities)
        log_likelihood = 0.0
        for group in self._groups:
            weights = self._weights(group)
            flipped = {size: weight[::-1, ::-1] for size, weight in weights.items()}
            forward, backward = _sums(weights), _sums(flipped)[::-1, ::-1]  # (N + 1, M + 1, B)
            total = forward[-1, -1]
            log_likelihood += float(np.log(total).sum())
            for (m, n), weight in weights.items():
                rows, columns = weight.shape[:2]
                share = forward[:rows, :columns] * weight * backward[m:, n:] / total
                np.add.at(counts, _arcs(group, (m, n)), share)
        return counts, log_likelihood

    def improve(self) -> float:
        """Run a pass of expectation maximization; return the natural log likelihood of all entries before it."""
        counts, log_likelihood = self.expected_counts()
        self.probabilities = counts / counts.sum()
        return log_likelihood

    def segmentations(self) -> list[list[Graphone]]:
        """Return the most probable segmentation of every entry."""
        cuts: list[list[Graphone]] = [[] for _ in self.entries]
        for group in self._groups:
            last = _best(self._weights(group), self.sizes)
            for row, number in enumerate(group.entries.tolist()):
                word, pronunciation = self.entries[number]
                position = (len(word), len(pronunciation))
                while position != (0, 0):
                    m, n = self.sizes[last[*position, row]]
                    start = (position[0] - m, position[1] - n)
                    cuts[number].append((word[start[0] : position[0]], pronunciation[start[1] : position[1]]))
                    position = start
                cuts[number].reverse()
        return cuts

    def graphones(self, counts: Floats) -> Iterator[tuple[Graphone, float]]:
        """Give the graphones of an array (L, P) that are not 0 in it."""
        for row, column in np.argwhere(counts).tolist():
            yield ("".join(self._letters.pieces[row]), self._phones.pieces[column]), float(counts[row, column])

    def _weights(self, group: _Group) -> dict[Size, Floats]:
        """Return the probabilities of all graphones of a lattice, by size, (N + 1 - m, M + 1 - n, B)."""
        sizes = [(m, n) for m, n in self.sizes if len(group.letters) > m and len(group.phones) > n]
        return {size: self.probabilities[_arcs(group, size)] for size in sizes}


def write_graphone(graphone: Graphone) -> str:
    """Write a graphone as a token: letters, `}`, phones with `|` between them.

    Examples are `PH}F` and `X}K|S`; `E}` is a silent letter, `}AH0` a phone without a letter.

    Raises:
        InputError: A letter or phone has one of the marks of the format.
    """
    letters, phones = graphone
    token = letters + BETWEEN + AMONG.join(phones)
    if token.count(BETWEEN) > 1 or any(AMONG in phone for phone in phones) or token.split() != [token]:
        raise InputError(
            f"expected letters without {BETWEEN!r} and phones without {BETWEEN!r} and {AMONG!r}, found {letters!r} "
            f"with {' '.join(phones)!r}; leave the word out of the lexicon"
        )
    return token


def parse_graphone(token: str) -> Graphone:
    """Read a graphone that `write_graphone` wrote.

    Raises:
        InputError: It is none.
    """
    letters, mark, rest = token.partition(BETWEEN)
    phones = tuple(rest.split(AMONG)) if rest else ()
    if not mark or BETWEEN in rest or not all(phones) or not (letters or phones):
        raise InputError(f"expected graphones as 'PH{BETWEEN}F' or 'X{BETWEEN}K{AMONG}S', found the token {token!r}")
    return letters, phones


class _Pieces:
    """Numbers of the pieces of sequences, each of at most `longest` symbols; the empty piece is 0."""

    def __init__(self, sequences: Sequence[tuple[str, ...]], longest: int) -> None:
        self.ids: dict[tuple[str, ...], int] = {(): 0}
        self._numbers = [
            [
                [
                    self.ids.setdefault(sequence[start : start + size], len(self.ids))
                    for start in range(len(sequence) + 1 - size)
                ]
                for size in range(min(longest, len(sequence)) + 1)
            ]
            for sequence in sequences
        ]
        self.pieces = list(self.ids)

    def __len__(self) -> int:
        return len(self.pieces)

    def of(self, rows: Sequence[int]) -> list[Integers]:
        """Return the pieces of equally long sequences, as of `_Group`."""
        sizes = range(len(self._numbers[rows[0]]))
        return [np.array([self._numbers[row][size] for row in rows]).T for size in sizes]


def _check(entries: Sequence[Entry]) -> None:
    if not entries:
        raise InputError("expected words with pronunciations to find graphones in, found none")
    for word, phones in entries:
        if not (0 < len(word) <= LONGEST and 0 < len(phones) <= LONGEST):
            raise InputError(
                f"{word!r}: expected 1 to {LONGEST} letters and phones, found {len(word)} and {len(phones)}; "
                "leave the word out"
            )


def _arcs(group: _Group, size: Size) -> tuple[Integers, Integers]:
    """Return the graphones of one size from each position in the lattice, as indices of arrays (L, P)."""
    letters, phones = size
    if letters >= len(group.letters) or phones >= len(group.phones):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return group.letters[letters][:, None], group.phones[phones][None]


def _lattice_positions(
    weights: dict[Size, Floats],
) -> tuple[tuple[int, int, int], Iterator[tuple[int, int, list[Size]]]]:
    """Return the shape of a lattice, and its positions in order with the sizes of graphones that end there."""
    (m, n), weight = next(iter(weights.items()))
    rows, columns, batch = weight.shape[0] + m, weight.shape[1] + n, weight.shape[2]
    positions = (
        (i, j, [(m, n) for m, n in weights if m <= i and n <= j]) for i in range(rows) for j in range(columns) if i or j
    )
    return (rows, columns, batch), positions


def _sums(weights: dict[Size, Floats]) -> Floats:
    """Return the summed probability (N + 1, M + 1, B) of all paths from the start to each position."""
    shape, positions = _lattice_positions(weights)
    sums = np.zeros(shape)
    sums[0, 0] = 1.0
    for i, j, sizes in positions:
        for m, n in sizes:
            sums[i, j] += sums[i - m, j - n] * weights[m, n][i - m, j - n]
    return sums


def _best(weights: dict[Size, Floats], sizes: Sequence[Size]) -> npt.NDArray[np.int8]:
    """Return the index in `sizes` of the last graphone of the best path to each position (N + 1, M + 1, B)."""
    shape, positions = _lattice_positions(weights)
    scores, last = np.zeros(shape), np.zeros(shape, np.int8)
    scores[0, 0] = 1.0
    for i, j, ending in positions:
        candidates = np.stack([scores[i - m, j - n] * weights[m, n][i - m, j - n] for m, n in ending])
        best = candidates.argmax(0)
        scores[i, j] = candidates.max(0)
        last[i, j] = np.array([sizes.index(size) for size in ending], np.int8)[best]
    return last
