"""The one exception that users are meant to read, and what is made of those of libraries."""

import torch

SHOWN = 80  # characters of what was found
SAID = 400  # characters of what a library says of it


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message says what was expected, what was found, where, and what to do. The command line prints it without a
    stack trace.
    """


def shown(text: str) -> str:
    """Return the beginning of something that was found, so that a line of megabytes makes no message of megabytes."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def reason(error: Exception) -> str:
    """Return what an error of a library says, cut likewise: some quote all that they could not read."""
    said = str(error)
    return said if len(said) <= SAID else f"{said[:SAID]}…"


def is_memory_error(error: BaseException) -> bool:
    """Whether a computation failed for want of memory, of a GPU or of the computer."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)
