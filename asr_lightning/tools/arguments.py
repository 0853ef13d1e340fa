"""Options that several commands have, and numbers that are checked while the command line is read."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path


def add_runs(parser: argparse.ArgumentParser) -> None:
    """Add `RUN …`: folders of runs."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, or with runs under it")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add `--device`."""
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto, a GPU where there is one"
    )


def add_int8(parser: argparse.ArgumentParser) -> None:
    """Add `--int8`."""
    parser.add_argument(
        "--int8", action="store_true",
        help="round the weights of linear layers to 8 bits, on a CPU: less memory, and faster on most processors",
    )  # fmt: skip


def add_config(parser: argparse.ArgumentParser, about: str, required: bool = True) -> None:
    """Add `--config`, the YAML of an experiment."""
    parser.add_argument("--config", type=Path, required=required, metavar="YAML", help=about)


def add_output(parser: argparse.ArgumentParser, files: str) -> None:
    """Add `--output`, the folder that files are written to."""
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help=f"gets {files}")


def add_subsets(parser: argparse.ArgumentParser, about: str) -> None:
    """Add `--subsets` of a corpus."""
    parser.add_argument("--subsets", nargs="+", metavar="SUBSET", help=about)


def whole_number(minimum: int) -> Callable[[str], int]:
    """Return a type for `add_argument`: whole numbers from `minimum` on."""

    def parse(text: str) -> int:
        number = int(text)
        if number < minimum:
            raise ValueError
        return number

    parse.__name__ = f"whole number from {minimum}"  # as argparse names it in messages
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
