"""The one exception that users are meant to read, and what is made of those of libraries."""

SHOWN = 80  # characters of what was found
SAID = 400  # characters of what a library says of it


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message says what was expected, what was found, where, and what to do. The command line prints it without a
    stack trace.
    """


def shown(text: str, most: int = SHOWN) -> str:
    """Return the beginning of something that was found, so that a line of megabytes makes no message of megabytes."""
    return text if len(text) <= most else f"{text[:most]}…"


def reason(error: Exception) -> str:
    """Return what an error of a library says, cut likewise: some quote all that they could not read."""
    return shown(str(error), SAID)
