"""The recognizer of a checkpoint, ready to transcribe."""

from pathlib import Path
from typing import Any

import torch

from asr_lightning.errors import InputError
from asr_lightning.models.checkpoints import load_recognizer
from asr_lightning.models.experiment import read_model
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.nn.int8 import use_int8


def prepare_recognizer(
    checkpoint: Path, device: str, beam: int | None, config: Path | None = None, int8: bool = False
) -> Recognizer:
    """Return the recognizer of a checkpoint, ready to transcribe.

    Args:
        checkpoint: As `lightning fit` saves it.
        device: `auto`, `cpu` or `cuda`.
        beam: Replaces its beam, where it has one.
        config: An experiment, which decides everything but the weights, as in `lightning test`. None, or one without a
            model: the checkpoint's own configuration is taken.
        int8: Whether the weights of linear layers are rounded to 8 bits, on a CPU.

    Raises:
        InputError: The checkpoint or the experiment cannot be used, they are of different networks, there is no such
            device, it has no layers of 8 bits, or the recognizer has no beam.
    """
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise InputError("--device cuda: torch finds no GPU here; use --device cpu")
    if device == "cuda" and int8:
        raise InputError("--int8: expected --device cpu, whose linear layers have weights of 8 bits, got cuda")
    try:
        experiment = read_model(config)
    except InputError as error:
        raise InputError(f"{config}: {error}") from error
    try:
        recognizer = load_recognizer(checkpoint, experiment)
    except ValueError as error:  # its parts have their own
        raise InputError(str(error)) from error
    if beam is not None:
        search: Any = getattr(recognizer, "search", None)
        if not hasattr(search, "beam"):
            raise InputError(f"--beam: a {type(recognizer).__name__} has no beam; leave the option out")
        search.beam = beam
    if int8:
        use_int8(recognizer)
    return recognizer.to("cuda" if available and device != "cpu" and not int8 else "cpu")


def keep_hypotheses(recognizer: Recognizer, number: int) -> None:
    """Widen a search to at least so many hypotheses.

    Raises:
        InputError: It cannot find more than one.
    """
    search: Any = getattr(recognizer, "search", None)
    name = "hypotheses" if hasattr(search, "hypotheses") else "beam"
    if not hasattr(search, name):
        raise InputError(f"--n-best: a {type(recognizer).__name__} has no beam; leave the option out")
    setattr(search, name, max(number, getattr(search, name)))
