"""Counts the parameters of experiments, without their data.

Example: python -m asr_lightning.tools.parameters experiments/*.yaml
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from asr_lightning.models.experiment import count_parameters, read_part


def name_of(path: Path) -> str:
    """Return an experiment's path below the folder `experiments`, or its file's name elsewhere, without the suffix."""
    parts = Path(os.path.abspath(path)).with_suffix("").parts
    folders = [place for place, part in enumerate(parts[:-1]) if part == "experiments"]
    return "/".join(parts[folders[-1] + 1 :]) if folders else parts[-1]


def print_counts(experiments: Sequence[Path]) -> bool:
    """Print the counts of experiments, name bad ones on stderr, and say whether all were good."""
    good = True
    for path in experiments:
        try:
            parts = count_parameters(read_part(path))
        except ValueError as error:
            print(f"{path}: {error}", file=sys.stderr, flush=True)
            good = False
            continue
        lines = [f"{name_of(path)}\t{sum(parts.values())}", *(f"  {part}\t{count}" for part, count in parts.items())]
        print("\n".join(lines), flush=True)
    return good


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 1 where an experiment cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m asr_lightning.tools.parameters",
        description="Count trainable parameters: a line `name<TAB>number` per experiment, then its parts, indented.",
        epilog="Only the `model` part is read, no data is needed, and the weights take no memory. An experiment that "
        "cannot be used is named on stderr, and the rest goes on; the exit status is then 1.",
    )
    parser.add_argument("experiments", nargs="+", type=Path, metavar="YAML", help="as experiments/*.yaml")
    try:
        return 0 if print_counts(parser.parse_args(arguments).experiments) else 1
    except BrokenPipeError:  # as by `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
