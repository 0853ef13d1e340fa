"""Files of weights that others have published."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asr_lightning.errors import InputError, reason
from asr_lightning.files import regular
from asr_lightning.models.recognizer import Recognizer


def load_tensors(path: Path, expected: str) -> Mapping[Any, Any]:
    """Return the mapping in a file of torch.

    Args:
        path: The file.
        expected: What it should be, for messages.

    Raises:
        InputError: It cannot be read, or holds something else.
    """
    try:
        content = torch.load(regular(path), map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler of damaged bytes has no class of errors in common
        raise InputError(f"{path}: expected {expected}: {reason(error)}") from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: expected {expected}, found {type(content).__name__}")
    return content


def check_weights(path: Path, content: Mapping[Any, Any]) -> None:
    """Check that all values are tensors of finite numbers.

    Raises:
        InputError: One is not.
    """
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(f"{path}: expected weights by name, found {type(value).__name__} as {name}")
        if not value.isfinite().all():
            raise InputError(f"{path}: expected finite weights, found others in {name}")


def load_weights(recognizer: Recognizer, state: Mapping[str, Tensor], path: Path) -> Recognizer:
    """Load weights of all parts but the features, whose buffers the recognizer has, and set it to evaluation.

    Raises:
        InputError: They are of another network.
    """
    own = recognizer.state_dict()
    state = {**{name: value for name, value in own.items() if name.startswith("features.")}, **state}
    differences = [f"found none that become {name}" for name in own if name not in state]
    differences += [f"{name} has no place" for name in state if name not in own]
    differences += [
        f"{name} is of {tuple(state[name].shape)}, expected {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    if differences:
        more = f", and {len(differences) - 1} more" if len(differences) > 1 else ""
        raise InputError(f"{path}: the weights are of another network: {differences[0]}{more}")
    recognizer.load_state_dict(state)
    return recognizer.eval()


def count_layers(state: Mapping[str, Tensor], pattern: str) -> int:
    """Return how many names of a state_dict match a pattern."""
    return sum(re.fullmatch(pattern, name) is not None for name in state)
