"""Numbers on command lines, refused by argparse with a message that says what was expected."""

import math
from collections.abc import Callable


def whole_number(least: int) -> Callable[[str], int]:
    """Return a type for `add_argument`: whole numbers from `least` on."""

    def parse(text: str) -> int:
        number = int(text)
        if number < least:
            raise ValueError
        return number

    parse.__name__ = f"whole number from {least}"  # as argparse names it in messages
    return parse


def above_zero(kind: Callable[[str], float]) -> Callable[[str], float]:
    """Return a type for `add_argument`: finite numbers above 0, of `int` or `float`."""

    def parse(text: str) -> float:
        number = kind(text)
        if not 0 < number < math.inf:
            raise ValueError
        return number

    parse.__name__ = "whole number above 0" if kind is int else "number above 0"  # as argparse names it in messages
    return parse
