"""The one exception that users are meant to read, and what is made of texts of files and of libraries in messages."""

import re

SHOWN = 80  # characters of what was found
SAID = 400  # characters of what a library says of it

# What a terminal obeys instead of showing it, or what changes the order or the number of the lines that are seen:
# controls, line and paragraph separators, directions of writing, byte order marks, tags, and halves of characters.
# Joiners stay: Persian, Indic scripts and emoji need them.
_OBEYED = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_ESCAPES = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message says what was expected, what was found, where, and what to do. The command line prints it without a
    stack trace.
    """

    def __str__(self) -> str:
        """Return the message with its lines, but without anything else that a terminal would obey."""
        return printable_lines(super().__str__())


def printable(text: str) -> str:
    r"""Write a name or transcript that comes from a file as it may be printed, or put into a table of text.

    Whatever a terminal, an editor or a table would obey is written as Python writes it: a tab as `\t`, an escape as
    `\x1b`, the right-to-left override as `\u202e`. Doing it twice changes nothing.
    """
    return _OBEYED.sub(_escape, text)


def printable_lines(text: str) -> str:
    """Write a message of several lines likewise, where the lines are meant."""
    return "\n".join(map(printable, text.split("\n")))


def _escape(match: re.Match[str]) -> str:
    character, code = match[0], ord(match[0])
    if character in _ESCAPES:
        return _ESCAPES[character]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def shown(text: str, most: int = SHOWN) -> str:
    """Return the beginning of something that was found, so that a line of megabytes makes no message of megabytes."""
    return text if len(text) <= most else f"{text[:most]}…"


def reason(error: Exception) -> str:
    """Return what an error of a library says, cut likewise: some quote all that they could not read."""
    return printable_lines(shown(str(error), SAID))
