"""Count trainable parameters: a line `name<TAB>number` per experiment, then its parts, indented.

Example:
    asr parameters experiments/*.yaml

Only the `model` part is read, no data is needed, and the weights take no memory. An experiment that cannot be used is
named on stderr, and the rest goes on; the exit status is then 1.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from asr_lightning.asr import main


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("experiments", nargs="+", type=Path, metavar="YAML", help="as experiments/*.yaml")


def run(options: argparse.Namespace) -> int:
    """Count; return the exit status."""
    return 0 if print_counts(options.experiments) else 1


def print_counts(experiments: Sequence[Path]) -> bool:
    """Print the counts of experiments, name bad ones on stderr, and return whether all were good."""
    from asr_lightning.models.experiment import count_parameters, read_part

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


def name_of(path: Path) -> str:
    """Return an experiment's path below the folder `experiments`, or its file's name elsewhere, without the suffix."""
    parts = Path(os.path.abspath(path)).with_suffix("").parts
    folders = [index for index, part in enumerate(parts[:-1]) if part == "experiments"]
    return "/".join(parts[folders[-1] + 1 :]) if folders else parts[-1]


if __name__ == "__main__":
    sys.exit(main(["parameters", *sys.argv[1:]]))
