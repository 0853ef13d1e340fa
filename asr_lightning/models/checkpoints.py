"""Recognisers from configurations and from checkpoints."""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser

from asr_lightning.errors import InputError
from asr_lightning.models.recognizer import Recognizer


def build_recognizer(config: dict[str, Any]) -> Recognizer:
    """Make a recogniser from `{"class_path": …, "init_args": {…}}`, the `model` part of an experiment.

    Raises:
        InputError: The configuration names what does not exist, or arguments that do not fit.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Recognizer, "model", required=True)
    try:
        parsed = parser.parse_object({"model": config})
        recognizer: Recognizer = parser.instantiate(parsed).model
    except (ArgumentError, TypeError, ValueError) as error:
        raise input_error(error) or InputError(f"this is no configuration of a recogniser: {error}") from error
    remember_configuration(recognizer, json.loads(parser.dump(parsed, format="json", skip_unset=False))["model"])
    return recognizer


def input_error(error: BaseException | None) -> InputError | None:
    """Return what a constructor said to the user, if that is what jsonargparse's own error wraps."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__
    return error


def remember_configuration(recognizer: Recognizer, config: dict[str, Any]) -> None:
    """Let checkpoints of this recogniser say how to build it, without any file beside them.

    Args:
        recognizer: As it was built.
        config: `{"class_path": …, "init_args": {…}}`, whole, as the parser dumps it.
    """
    tokenizer = {**config["init_args"]["tokenizer"], "init_args": recognizer.tokenizer.init_args()}
    arguments = {**config["init_args"], "tokenizer": tokenizer}
    recognizer.save_hyperparameters({"_class_path": config["class_path"], **arguments}, logger=False)


def load_recognizer(path: str | Path) -> Recognizer:
    """Return the recogniser of a checkpoint, on the CPU, in evaluation mode.

    Raises:
        InputError: No such file, a file that is no whole checkpoint, or one of something else.
    """
    checkpoint = read_checkpoint(path)
    arguments = dict(checkpoint.get("hyper_parameters", {}))
    class_path = arguments.pop("_class_path", None)
    if class_path is None:
        raise InputError(f"{path}: expected a checkpoint that names its recogniser's class, found none; train it with "
                         "`lightning fit`, or build it with `build_recognizer`")  # fmt: skip
    recognizer = build_recognizer({"class_path": class_path, "init_args": arguments})
    try:
        recognizer.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise InputError(f"{path}: the weights do not fit the configuration beside them: {error}") from error
    return recognizer.eval()


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint without running any code that it may hold.

    Raises:
        InputError: No such file, or a file that is no whole checkpoint.
    """
    if not Path(path).is_file():
        raise InputError(f"no checkpoint at {path} (looked for {Path(path).absolute()})")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile, OSError, ValueError) as error:
        raise InputError(f"{path} is no whole checkpoint ({type(error).__name__}: {str(error)[:200]}); "
                         "use another one, as an earlier step's") from error  # fmt: skip
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise InputError(f"{path} holds no checkpoint of Lightning: expected a `state_dict` in it")
    return checkpoint
