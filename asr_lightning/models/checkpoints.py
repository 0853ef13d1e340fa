"""Recognisers and language models from configurations and from checkpoints."""

import inspect
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from asr_lightning.errors import InputError, shown
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.text.tokenizers import Tokenizer

# Class paths come with checkpoints of strangers. None that an experiment needs is Python's own; and where a parameter
# has no type, as those of some optimisers, a class path would be called without a look at what it names.
set_parsing_settings(instantiate_subclass_spec_in_any=False, import_path_denylist=sorted(sys.stdlib_module_names))

Model = TypeVar("Model", bound=LightningModule)
Made = TypeVar("Made")

MOST_PARAMETERS = 10_000  # tensors; a Transformer of 100 blocks has some 2,000
SAID = 2_000  # characters of what is told of a configuration: what matters stands last


def build_recognizer(config: dict[str, Any]) -> Recognizer:
    """Make a recogniser from `{"class_path": …, "init_args": {…}}`, the `model` part of an experiment.

    Raises:
        InputError: The configuration names what does not exist, or arguments that do not fit.
    """
    return build_model(config, Recognizer)  # type: ignore[type-abstract]


def build_model(config: dict[str, Any], kind: type[Model]) -> Model:
    """Make a model from `{"class_path": …, "init_args": {…}}`, the `model` part of an experiment.

    Args:
        config: What to make.
        kind: The class that it must be of, or a base class of it.

    Raises:
        InputError: The configuration names what does not exist or is of another kind, or arguments that do not fit.
    """
    model, whole = instantiate(
        config, kind, "a recogniser" if kind is Recognizer else f"a model of class {kind.__name__}"
    )
    remember_configuration(model, whole)
    return model


def instantiate(config: dict[str, Any], kind: type[Made], wanted: str) -> tuple[Made, dict[str, Any]]:
    """Make an object of `{"class_path": …, "init_args": {…}}`, and return this with all its defaults too.

    Args:
        config: What to make.
        kind: The class that it must be of, or a base class of it.
        wanted: What users call it.

    Raises:
        InputError: The configuration names what does not exist or is of another kind, or arguments that do not fit.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, "made", required=True)
    try:
        parsed = parser.parse_object({"made": config})
        _require_class(parsed.made, wanted)
        with within_memory():
            made: Made = parser.instantiate(parsed).made
    except (ArgumentError, TypeError, ValueError, ImportError, AttributeError, RuntimeError, MemoryError) as error:
        said = shown(str(error), SAID)
        raise input_error(error) or InputError(f"this is no configuration of {wanted}: {said}") from error
    return made, json.loads(parser.dump(parsed, format="json", skip_unset=False))["made"]


@contextmanager
def within_memory() -> Iterator[None]:
    """Refuse modules that no machine could hold, before they are filled: a mistaken number would take hours to end."""
    tensors, bytes_ = 0, 0
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal tensors, bytes_
        if parameter is None:
            return
        tensors += 1
        bytes_ += 0 if parameter.is_meta else parameter.nbytes
        if tensors > MOST_PARAMETERS or bytes_ > most:
            raise InputError(
                f"the model has more than {MOST_PARAMETERS:,} weights and biases, or they take more than the "
                f"{most / 2**30:.0f} GB of this machine; {type(module).__name__}.{name} has {parameter.numel():,} "
                "numbers: expected fewer layers, or smaller ones"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _require_class(parsed: Any, wanted: str) -> None:  # noqa: ANN401 - jsonargparse's namespace
    """See that a class path, which was imported to check it, is of a class: jsonargparse takes functions too."""
    module, _, name = str(parsed.class_path).rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    if found is not None and not inspect.isclass(found):
        raise InputError(f"this is no configuration of {wanted}: {parsed.class_path} is no class")


def input_error(error: BaseException | None) -> InputError | None:
    """Return what a constructor said to the user, if that is what jsonargparse's own error wraps."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__
    return error


def remember_configuration(model: LightningModule, config: dict[str, Any]) -> None:
    """Let checkpoints of this model say how to build it, without any file beside them.

    Args:
        model: As it was built.
        config: `{"class_path": …, "init_args": {…}}`, whole, as the parser dumps it.

    Raises:
        InputError: The model has no tokenizer, so it is neither a recogniser nor a language model.
    """
    if not isinstance(own := getattr(model, "tokenizer", None), Tokenizer):
        raise InputError(
            "this is no configuration of a recogniser, nor of a language model, which both have a `tokenizer`: "
            f"{config['class_path']}"
        )
    tokenizer = {**config["init_args"]["tokenizer"], "init_args": own.init_args()}
    arguments = {**config["init_args"], "tokenizer": tokenizer}
    model.save_hyperparameters({"_class_path": config["class_path"], **arguments}, logger=False)


def load_recognizer(path: str | Path) -> Recognizer:
    """Return the recogniser of a checkpoint, on the CPU, in evaluation mode.

    Raises:
        InputError: No such file, a file that is no whole checkpoint, or one of something else.
    """
    return load_model(path, Recognizer)  # type: ignore[type-abstract]


def load_model(path: str | Path, kind: type[Model]) -> Model:
    """Return the model of a checkpoint, on the CPU, in evaluation mode.

    Args:
        path: Of the checkpoint.
        kind: The class that the model must be of, or a base class of it.

    Raises:
        InputError: No such file, a file that is no whole checkpoint, or one of something else.
    """
    checkpoint = read_checkpoint(path)
    arguments = dict(checkpoint.get("hyper_parameters", {}))
    class_path = arguments.pop("_class_path", None)
    if not isinstance(class_path, str):
        raise InputError(f"{path}: expected a checkpoint that names its model's class, found none; train it with "
                         "`lightning fit`, or build it with `build_recognizer`")  # fmt: skip
    try:
        model = build_model({"class_path": class_path, "init_args": arguments}, kind)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    try:
        model.load_state_dict(checkpoint["state_dict"])
    except (RuntimeError, TypeError, AttributeError) as error:  # the latter of what are no tensors
        raise InputError(
            f"{path}: the weights do not fit the configuration beside them: {shown(str(error), SAID)}"
        ) from error
    return model.eval()


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint without running any code that it may hold.

    Raises:
        InputError: No such file, or a file that is no whole checkpoint.
    """
    if not Path(path).is_file():
        raise InputError(f"no checkpoint at {path} (looked for {Path(path).absolute()})")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler of damaged bytes has no class of errors in common
        raise InputError(f"{path} is no whole checkpoint ({type(error).__name__}: {str(error)[:200]}); "
                         "use another one, as an earlier step's") from error  # fmt: skip
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise InputError(f"{path} holds no checkpoint of Lightning: expected a `state_dict` in it")
    if not isinstance(checkpoint["state_dict"], Mapping) or not isinstance(
        checkpoint.get("hyper_parameters", {}), Mapping
    ):
        raise InputError(f"{path} holds no checkpoint of Lightning: expected names and values as `state_dict` and "
                         "`hyper_parameters`")  # fmt: skip
    return checkpoint


def newest_whole_checkpoint(paths: Iterable[Path]) -> Path | None:
    """Return the newest of some checkpoints that can be read, and warn of newer ones that cannot; None without any.

    Raises:
        InputError: There are checkpoints, but none of them is whole.
    """
    damaged = []
    for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            read_checkpoint(path)
        except InputError as error:
            damaged.append(str(error))
            continue
        if damaged:
            rank_zero_warn("\n".join([*damaged, f"The one before is taken: {path}"]))
        return path
    if damaged:
        raise InputError("\n".join([*damaged, "No other is left: remove them to begin anew."]))
    return None
