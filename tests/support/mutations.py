"""Damaged or hostile files made of good ones, and what readers may do with them."""

import os
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from asr_lightning.errors import InputError

NUMBERS = [
    *(b"nan", b"inf", b"-inf", b"-1", b"-0.5", b"0", b"1e308", b"1e999", b"-99999", b"1_0", b"0x10", b"1e-320"),
    *(b"999999999", b"4294967296", b"18446744073709551616", b"9" * 400, "٣".encode(), b"1.5.2", b""),
]
PIECES = [
    *(b"\0", b"\r\n", b"\n", b"\t", b" ", b"\r", b"\xef\xbb\xbf", b"\xff\xfe", b"\xff", b"\xed\xa0\x80", b"\x1f\x8b"),
    *(b'"', b"'", b"\\", b",", b"{", b"[", b"(", b")", b"/", b"::", b"#", b";;", b"!!", b"&a ", b"*a", b"../../x"),
    *("\u202eabc\u202c", "가각", "ﬃ", "\u2028", "\x85", "İ", "e" + 300 * "\u0301"),
    *(b"a" * 70_000, b"[" * 5_000, b"(" * 5_000, b"{a: " * 2_000, b" " * 70_000, b"\n" * 5_000),
]
# Seconds in all, and the same examples every time; `Refusing` measures the memory of a reader.
FUZZED = settings(
    max_examples=120,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
RANDOM = st.integers(0, 2**32 - 1).map(Random)


def mutated(content: bytes, random: Random) -> bytes:
    """Change a file by one to three slips."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        content = random.choice(SLIPS)(content, random)
    return content


def _cut(content: bytes, random: Random) -> bytes:
    return content[: random.randint(0, len(content))]


def _cut_out(content: bytes, random: Random) -> bytes:
    start = random.randint(0, len(content))
    return content[:start] + content[start + random.randint(1, 40) :]


def _flip(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 8)) if content else 0):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _overwrite(content: bytes, random: Random) -> bytes:
    """Put an extreme binary number somewhere, mostly into the header."""
    offset = random.randint(0, min(len(content), random.choice((64, 1 << 20))))
    number = random.choice(
        (b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0" * 4, b"\0\0\0\x3b", b"\xff" * 8)
    )
    return content[:offset] + number + content[offset + len(number) :]


def _insert(content: bytes, random: Random) -> bytes:
    offset = random.randint(0, len(content))
    piece = random.choice(PIECES)
    return content[:offset] + (piece if isinstance(piece, bytes) else piece.encode()) + content[offset:]


def _number(content: bytes, random: Random) -> bytes:
    numbers = list(re.finditer(rb"-?\d+(\.\d+)?", content[:100_000]))
    if not numbers:
        return content
    match = random.choice(numbers)
    return content[: match.start()] + random.choice(NUMBERS) + content[match.end() :]


def _lines(content: bytes, random: Random) -> bytes:
    lines = content.split(b"\n")
    first, second = random.randrange(len(lines)), random.randrange(len(lines))
    change = random.randrange(4)
    if change == 0:
        lines.insert(first, lines[second])
    elif change == 1:
        del lines[first]
    elif change == 2:
        lines[first], lines[second] = lines[second], lines[first]
    else:
        fields = re.split(rb"([\s,:=|]+)", lines[first])
        del fields[random.randrange(len(fields))]
        lines[first] = b"".join(fields)
    return b"\n".join(lines)


def _recode(content: bytes, random: Random) -> bytes:
    codec = random.choice(("utf-16", "utf-16-le", "utf-8-sig", "cp949", "utf-32", "crlf", "cr"))
    if codec in ("crlf", "cr"):
        return content.replace(b"\n", b"\r\n" if codec == "crlf" else b"\r")
    return content.decode("utf-8", errors="replace").encode(codec, errors="replace")


SLIPS = [_cut, _cut_out, _flip, _flip, _overwrite, _insert, _number, _number, _lines, _lines, _recode]


class Refusing:
    """Let a reader succeed, or raise an error that names the file; other errors fail, and so does much memory.

    Args:
        names: Texts that the message must have.
        allowed: The errors that are documented.
        megabytes: By how much the process may grow.
    """

    def __init__(self, *names: object, allowed: type[Exception] = InputError, megabytes: int = 600) -> None:
        self.names = [str(name) for name in names]
        self.allowed = allowed
        self.limit = megabytes << 10

    def __enter__(self) -> None:
        self.before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.before
        assert grown < self.limit, f"grew by {grown >> 10} MB"
        if not isinstance(error, self.allowed):
            return False
        missing = [name for name in self.names if name not in str(error)]
        assert not missing, f"{str(error)!r} does not say {missing}"
        assert len(str(error)) < 4_000, f"a message of {len(str(error))} characters: {str(error)[:400]}"
        return True


@contextmanager
def spoiled(path: Path, random: Random) -> Iterator[None]:
    """Change a file for a while."""
    content = path.read_bytes()
    path.write_bytes(mutated(content, random))
    try:
        yield
    finally:
        path.write_bytes(content)


def in_the_place_of_a_file(path: Path) -> dict[str, Callable[[], None]]:
    """Functions that put something at a path where a readable file is expected, by a description of it."""
    return {
        "nothing": lambda: None,
        "a folder": path.mkdir,
        "an empty file": lambda: path.write_bytes(b"") and None,
        "a link to itself": lambda: path.symlink_to(path),
        "a link to nowhere": lambda: path.symlink_to(path.with_name("nowhere")),
        "a file that may not be read": lambda: (path.write_text("x"), path.chmod(0)) and None,
        "a pipe": lambda: os.mkfifo(path),
    }
