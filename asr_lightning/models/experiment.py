"""Parts of an experiment's YAML, and the number of parameters of its model."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from asr_lightning.errors import InputError
from asr_lightning.files import read_experiment
from asr_lightning.models.checkpoints import build_model


def read_part(path: Path, name: str = "model") -> dict[str, Any]:
    """Return the `model` part of an experiment, or another one.

    Raises:
        InputError: The file cannot be read, is no YAML, or has no such part.
    """
    part = read_experiment(path).get(name)
    if not isinstance(part, dict):
        raise InputError(
            f"expected an experiment with a part `{name}:` that has a class_path and init_args, found none"
        )
    return part


def read_model(path: Path | None) -> dict[str, Any] | None:
    """Return the `model` part of an experiment, for `load_recognizer`; None without a file or without this part.

    Raises:
        InputError: The file cannot be read, or is no YAML.
    """
    if path is None or read_experiment(path).get("model") is None:
        return None
    return read_part(path)


@contextmanager
def parameters_without_memory() -> Iterator[None]:
    """Create parameters of modules on the meta device, without memory; buffers, as filter banks, in memory."""

    def replace(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:  # a shared parameter stays shared
            return None
        return nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)

    hook = register_module_parameter_registration_hook(replace)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()


def count_parameters(model: dict[str, Any]) -> dict[str, int]:
    """Count the trainable parameters of each part of a model, in its order; shared parameters count once.

    Args:
        model: `{"class_path": …, "init_args": {…}}`.

    Raises:
        ValueError: It cannot be built.
    """
    try:
        with parameters_without_memory():
            built = build_model(model, LightningModule)
    except Exception:  # an architecture that reads its weights while it is built, or an error to be raised now
        built = build_model(model, LightningModule)
    parts: Counter[str] = Counter()
    for name, parameter in built.named_parameters():
        if parameter.requires_grad:
            parts[name.partition(".")[0]] += parameter.numel()
    return dict(parts)
