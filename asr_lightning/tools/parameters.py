"""Counts the parameters of experiments, without their data.

Example: python -m asr_lightning.tools.parameters experiments/*.yaml
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import LightningModule
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from asr_lightning.errors import InputError
from asr_lightning.models.checkpoints import build_model


def read_part(path: Path, name: str = "model") -> dict[str, Any]:
    """Return the `model` part of an experiment, or another one.

    Raises:
        InputError: The file cannot be read, is no YAML, or has no such part.
    """
    try:
        experiment = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(error.strerror or str(error)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"this is no YAML: {error}") from error
    part = experiment.get(name) if isinstance(experiment, dict) else None
    if not isinstance(part, dict):
        raise InputError(
            f"expected an experiment with a part `{name}:` that has a class_path and init_args, found none"
        )
    return part


@contextmanager
def parameters_without_memory() -> Iterator[None]:
    """Put every parameter that a module gets on the meta device; buffers, as filter banks, stay what they are."""

    def replace(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:  # a shared parameter remains one
            return None
        return nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)

    hook = register_module_parameter_registration_hook(replace)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()


def count_parameters(model: dict[str, Any]) -> dict[str, int]:
    """Count the trainable parameters of each part of a model, in its order; shared ones count once.

    Args:
        model: `{"class_path": …, "init_args": {…}}`.

    Raises:
        ValueError: It cannot be built.
    """
    try:
        with parameters_without_memory():
            built = build_model(model, LightningModule)
    except Exception:  # an architecture that looks at its weights while it is built, or a mistake that is told now
        built = build_model(model, LightningModule)
    parts: Counter[str] = Counter()
    for name, parameter in built.named_parameters():
        if parameter.requires_grad:
            parts[name.partition(".")[0]] += parameter.numel()
    return dict(parts)


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
