"""The one exception that users are meant to read."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message says what was expected, what was found, where, and what to do. The command line prints it without a
    stack trace.
    """
