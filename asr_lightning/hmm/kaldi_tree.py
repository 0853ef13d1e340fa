"""Decision trees in Kaldi's binary form, by which its code reads trees that it did not make.

    tree  = "ContextDependency " width center "ToPdf " table of phones "EndContextDependency "
    table = "TE " key size "( " an entry for each value of the key ") "
    leaf  = "CE " pdf
    split = "SE " key phones "{ " the entry if the key's value is among them, and if not "} "

The entry of phone 0 is "NULL "; that of any other is a table of states, and that of a state a leaf or a split.
Numbers are little-endian after a byte with their size, which is negative if they have no sign.
"""

import struct
from collections.abc import Collection
from dataclasses import dataclass, field

import kaldi_hmm_gmm as kaldi
import numpy as np

LEFT, CENTER, RIGHT, STATE = 0, 1, 2, -1  # Kaldi's keys
EDGE = 0  # instead of a phone before the first and after the last one
CONTEXTS = {1: 0, 3: CENTER}  # number of phones: index of the middle one
MARK = b"\0B"  # of a binary file
SHOWN = 20  # bytes of a faulty file

Question = tuple[int, frozenset[int]]  # LEFT or RIGHT, and phone ids


@dataclass
class Node:
    """A leaf with its pdf, or a question with the nodes for yes and no."""

    rows: np.ndarray
    pdf: int = -1
    question: Question | None = None
    children: list["Node"] = field(default_factory=list)


def as_kaldi(roots: dict[tuple[int, int], Node], phones: int) -> kaldi.ContextDependency:
    """Convert trees to Kaldi's class, by its binary form.

    Args:
        roots: For every phone id and number of a state.
        phones: How many there are.
    """
    states = 1 + max(state for _, state in roots)
    tables = [_table(STATE, [_write(roots[phone, state]) for state in range(states)]) for phone in range(1, phones + 1)]
    table = _table(CENTER, [b"NULL ", *tables])
    data = b"ContextDependency " + _int(3) + _int(CENTER) + b"ToPdf " + table + b"EndContextDependency "
    return read_tree(data, phones, states)


def _write(node: Node) -> bytes:
    if node.question is None:
        return b"CE " + _int(node.pdf)
    key, members = node.question
    values = sorted(members)
    packed = struct.pack(f"<bi{len(values)}i", 4, len(values), *values)
    return b"SE " + _int(key) + packed + b"{ " + b"".join(map(_write, node.children)) + b"} "


def _table(key: int, entries: Collection[bytes]) -> bytes:
    return b"TE " + _int(key) + struct.pack("<bI", -4, len(entries)) + b"( " + b"".join(entries) + b") "


def _int(number: int) -> bytes:
    return struct.pack("<bi", 4, number)


def read_tree(data: bytes, phones: int, states: int) -> kaldi.ContextDependency:
    """Return the tree in Kaldi's binary form after checking it.

    Kaldi's reader checks no number: neither those of pdfs nor those of phones.

    Args:
        data: Of a file.
        phones: How many there are.
        states: Of every phone.

    Raises:
        ValueError: It is no tree of these phones and states.
    """
    body = data.removeprefix(MARK)
    _Reader(body).read(phones, states)
    tree = kaldi.ContextDependency.__new__(kaldi.ContextDependency)
    tree.__setstate__((np.frombuffer(body, dtype=np.int8).tolist(),))
    return tree


class _Reader:
    """Check of the bytes of a tree, up to the first invalid one."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0
        self.pdfs: set[int] = set()

    def read(self, phones: int, states: int) -> None:
        """Read everything."""
        self._token(b"ContextDependency ")
        width = self._integer(CONTEXTS)
        center = self._integer({CONTEXTS[width]})
        self._token(b"ToPdf ")
        self._table(center, phones + 1)
        self._token(b"NULL ")
        for _ in range(phones):
            self._table(STATE, states)
            for _ in range(states):
                self._node((LEFT, RIGHT) if width == 3 else (), range(phones + 1))
            self._token(b") ")
        self._token(b") EndContextDependency ")
        self._require(self.position == len(self.data), "the end")
        self._require(max(self.pdfs) == len(self.pdfs) - 1, "pdfs that count from 0")

    def _require(self, fulfilled: bool, expected: str) -> None:
        if not fulfilled:
            excerpt = self.data[self.position : self.position + SHOWN]
            raise ValueError(
                f"expected a tree in Kaldi's binary form, with {expected} at byte {self.position}: {excerpt!r}"
            )

    def _token(self, token: bytes) -> None:
        self._require(self.data.startswith(token, self.position), repr(token.decode()))
        self.position += len(token)

    def _integer(self, allowed: Collection[int], size: int = 4) -> int:
        number = int.from_bytes(self.data[self.position + 1 : self.position + 5], "little", signed=True)
        complete = self.data.startswith(struct.pack("b", size), self.position) and self.position + 5 <= len(self.data)
        self._require(complete and number in allowed, f"a number in {allowed}")
        self.position += 5
        return number

    def _table(self, key: int, size: int) -> None:
        self._token(b"TE ")
        self._integer({key})
        self._integer({size}, -4)
        self._token(b"( ")

    def _node(self, keys: Collection[int], values: range) -> None:
        if self.data.startswith(b"SE ", self.position):
            self.position += 3
            self._integer(keys)
            size = 4 * self._integer(range(1, len(values) + 1))
            packed = self.data[self.position : self.position + size]
            members = np.frombuffer(packed[: len(packed) // 4 * 4], dtype="<i4")
            valid = len(packed) == size and set(members.tolist()) <= set(values)
            self._require(valid and bool(np.all(np.diff(members) > 0)), "phones in their order")
            self.position += size
            self._token(b"{ ")
            for _ in "yes", "no":
                self._node(keys, values)
            self._token(b"} ")
        else:
            self._token(b"CE ")
            pdf = self._integer(range(len(self.data)))
            self._require(pdf not in self.pdfs, "a pdf of its own")
            self.pdfs.add(pdf)
