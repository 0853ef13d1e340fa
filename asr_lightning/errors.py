"""The exception for wrong input, and texts of files and libraries as they can be printed in its message."""

import codecs
import difflib
import io
import os
import re
import sys
from collections.abc import Iterable

SHOWN = 80  # characters of a value in a message
REASON = 400  # characters of a library's message

# Control characters: whatever a terminal executes instead of printing it, or changes the order or number of lines:
# controls, line and paragraph separators, directions of writing, byte order marks, tags, and lone surrogates.
# Joiners are printed: Persian, Indic scripts and emoji need them.
_CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_ESCAPES = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}


class InputError(ValueError):
    """Input of the user that cannot be used.

    The message says what was expected, what was found, where, and what to do. The command line prints it without a
    stack trace.
    """

    def __str__(self) -> str:
        """Return the message with its line ends, and with all other control characters escaped."""
        return printable_lines(super().__str__())


def nearest(name: str, names: Iterable[str]) -> str:
    """Return the known name that an unknown one was meant to be; empty where none is near."""
    return next(iter(difflib.get_close_matches(name, list(names), n=1)), "")


def printable(text: str) -> str:
    r"""Escape control characters in a name or transcript of a file, for a terminal or a table of text.

    They are written as Python writes them: a tab as `\t`, an escape as `\x1b`, the right-to-left override as `\u202e`.
    A second call changes nothing.
    """
    return _CONTROLS.sub(_escape, text)


def printable_lines(text: str) -> str:
    """Escape control characters but line ends, in a message of several lines."""
    return "\n".join(map(printable, text.split("\n")))


def _escape(match: re.Match[str]) -> str:
    character, code = match[0], ord(match[0])
    if character in _ESCAPES:
        return _ESCAPES[character]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def print_any_character() -> None:
    r"""Let the standard streams print what their encoding cannot: `→` as `\u2192`, and bytes of file names as they are.

    A training must not end because a terminal has no arrow, or a log is written in an encoding of the country.
    """
    codecs.register_error("asr_lightning", _encodable)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="asr_lightning")


def discard_where_hung_up() -> None:
    """Redirect the standard streams of a closed terminal to /dev/null, since a print there raises an error."""
    for number in (1, 2):
        try:
            os.write(number, b"")
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)
            os.close(null)


def _encodable(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    code = ord(error.object[error.start])
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is no UTF-8
        return bytes([code - 0xDC00]), error.start + 1
    return error.object[error.start].encode("ascii", "backslashreplace").decode("ascii"), error.start + 1


def shown(text: str, most: int = SHOWN) -> str:
    """Return the beginning of a text of a file: a line may have megabytes."""
    return text if len(text) <= most else f"{text[:most]}…"


def reason(error: Exception) -> str:
    """Return the message of a library's error, shortened: some quote everything that they could not read."""
    return printable_lines(shown(str(error), REASON))
