"""Recognizers and language models from configurations and from checkpoints; atomic writes of checkpoints.

A checkpoint beside an experiment, in `lightning fit|validate|test|predict --ckpt_path` and in every tool that takes a
checkpoint and `--config`:

* The experiment decides everything, and the checkpoint gives the weights; in `fit` also the state of the training.
  Nothing is merged. An experiment without a `model` gets the complete configuration of the checkpoint.
* Everything that changes what a network computes must be equal in both; a difference is refused by its name before any
  weights are loaded: the class of the model, the tokens and their order, features, every argument of encoder and
  decoder, whether there is a CTC output, the tied states of a hybrid (`same_network.py` lists what may differ).
* `search`, `augment`, `optimizer`, `scheduler`, rates of dropout and scheduled sampling, and the weights of losses may
  differ: those of the experiment are used. Without `search` the default search is used, not the checkpoint's.
* `fit` resumes with an optimizer and a schedule of the same classes, and refuses others; changed arguments are used
  from the first step on, as if they had been used from the beginning (`callbacks/changed_optimizer.py`).

An experiment is code of its author, a checkpoint is not: `class_paths.py` defines which classes it may name. It may
also name files, as the folder of a hybrid or the checkpoint of a language model; reading these runs no code either.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import lightning
import torch
from jsonargparse import Namespace
from lightning import LightningModule
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from asr_lightning.errors import InputError, shown
from asr_lightning.files import replacing
from asr_lightning.models.class_paths import TRUSTED, allowed_by_user
from asr_lightning.models.instantiation import LONG_REASON, instantiate, parsed_strictly
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.models.same_network import check_fingerprints, check_same_network, configuration, naming
from asr_lightning.renamed import current_state_key
from asr_lightning.text.tokenizers import Tokenizer

Model = TypeVar("Model", bound=LightningModule)


def build_recognizer(config: dict[str, Any]) -> Recognizer:
    """Build a recognizer from `{"class_path": …, "init_args": {…}}`, the `model` part of an experiment.

    Raises:
        InputError: The configuration names what does not exist, or arguments that do not fit.
    """
    return build_model(config, Recognizer)  # type: ignore[type-abstract]


def build_model(config: dict[str, Any], kind: type[Model], allowed: Iterable[str] | None = None) -> Model:
    """Build a model from `{"class_path": …, "init_args": {…}}`, the `model` part of an experiment.

    Args:
        config: Class path and arguments of the model.
        kind: The required class, or a base class of it.
        allowed: Names that the configuration of a checkpoint may import; None for an experiment.

    Raises:
        InputError: The configuration names what does not exist or is of another kind, or arguments that do not fit.
    """
    expected = "a recognizer" if kind is Recognizer else f"a model of class {kind.__name__}"
    model, complete = instantiate(config, kind, expected, allowed)
    remember_configuration(model, complete)
    return model


def remember_configuration(model: LightningModule, config: dict[str, Any]) -> None:
    """Save the configuration of a model in its checkpoints, so that they can be loaded without other files.

    Args:
        model: The model as it was built.
        config: `{"class_path": …, "init_args": {…}}`, complete, as the parser dumps it.

    Raises:
        InputError: The model has no tokenizer, so it is neither a recognizer nor a language model.
    """
    if not isinstance(vocabulary := getattr(model, "tokenizer", None), Tokenizer):
        raise InputError(
            "this is no configuration of a recognizer, nor of a language model, which both have a `tokenizer`: "
            f"{config['class_path']}"
        )
    tokenizer = {**config["init_args"]["tokenizer"], "init_args": vocabulary.init_args()}
    arguments = {**config["init_args"], "tokenizer": tokenizer}
    fingerprints = model.fingerprints() if isinstance(model, Recognizer) else {}
    if fingerprints:
        arguments["_fingerprints"] = fingerprints
    model.save_hyperparameters({"_class_path": config["class_path"], **arguments}, logger=False)


def load_recognizer(path: str | Path, experiment: dict[str, Any] | None = None) -> Recognizer:
    """Return the recognizer of a checkpoint, on the CPU, in evaluation mode; arguments as of `load_model`.

    Raises:
        InputError: As `load_model`.
    """
    return load_model(path, Recognizer, experiment)  # type: ignore[type-abstract]


def load_model(path: str | Path, kind: type[Model], experiment: dict[str, Any] | None = None) -> Model:
    """Return the model of a checkpoint, on the CPU, in evaluation mode.

    Args:
        path: Path of the checkpoint.
        kind: The required class of the model, or a base class of it.
        experiment: The `model` part of an experiment, which defines everything but the weights. None: the
            configuration of the checkpoint is used.

    Raises:
        InputError: The file is missing or not a complete checkpoint, its model is not of class `kind`, or it is of
            another network than the experiment's.
    """
    checkpoint = read_checkpoint(path)
    if experiment is not None:
        model = build_model(experiment, kind)
        check_same_network(model, checkpoint, path)
    else:
        with naming(path):
            model = build_model(configuration(checkpoint), kind, allowed=(*TRUSTED, *allowed_by_user()))
        check_fingerprints(model, checkpoint, path)
    try:
        model.load_state_dict(checkpoint["state_dict"])
    except (RuntimeError, TypeError, AttributeError) as error:  # the latter of values that are not tensors
        raise InputError(
            f"{path}: the weights do not fit the configuration beside them: {shown(str(error), LONG_REASON)}"
        ) from error
    return model.eval()


def checkpoint_model(path: str | Path) -> Namespace:
    """Return the model configuration of a checkpoint, parsed as that of an experiment on the command line.

    Raises:
        InputError: As `read_checkpoint`; or it has no configuration, or one that names a class it may not name.
    """
    checkpoint, allowed = read_checkpoint(path), (*TRUSTED, *allowed_by_user())
    with naming(path):
        return parsed_strictly(configuration(checkpoint), LightningModule, "a model", allowed)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint, without running code that a pickle may contain.

    Raises:
        InputError: The file is missing or not a complete checkpoint.
    """
    if not Path(path).is_file():
        raise InputError(f"no checkpoint at {path} (looked for {Path(path).absolute()})")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling damaged bytes raises errors of any class
        raise InputError(f"{path} is not a complete checkpoint ({type(error).__name__}: {str(error)[:200]}); "
                         "use another one, as an earlier step's") from error  # fmt: skip
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise InputError(f"{path} is not a checkpoint of Lightning: expected a `state_dict` in it")
    if not isinstance(checkpoint["state_dict"], Mapping) or not isinstance(
        checkpoint.get("hyper_parameters", {}), Mapping
    ):
        raise InputError(f"{path} is not a checkpoint of Lightning: expected names and values as `state_dict` and "
                         "`hyper_parameters`")  # fmt: skip
    if isinstance(states := checkpoint.get("callbacks"), dict):
        checkpoint["callbacks"] = {current_state_key(str(key)): state for key, state in states.items()}
    return checkpoint


def newest_readable_checkpoint(paths: Iterable[Path]) -> Path | None:
    """Return the newest checkpoint that can be read, and warn of newer ones that cannot; None without checkpoints.

    Raises:
        InputError: None of the checkpoints can be read.
    """
    damaged = []
    for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            read_checkpoint(path)
        except InputError as error:
            damaged.append(str(error))
            continue
        if damaged:
            rank_zero_warn("\n".join([*damaged, f"An earlier one is used: {path}"]))
        return path
    if damaged:
        raise InputError("\n".join([*damaged, "No other checkpoint is left: remove them to begin again."]))
    return None


class CheckpointFiles(TorchCheckpointIO):
    """Atomic writes of checkpoints: to a temporary file beside the path, which is renamed when it is complete.

    Lightning writes to the system's folder for temporary files first. If that is on another file system, the move is a
    copy over the old checkpoint, which is damaged if the disk is full or the process is killed.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:  # noqa: ANN401 - Lightning's own signature
        """Write a checkpoint.

        Raises:
            InputError: It cannot be written; an older file at `path` is unchanged.
        """
        path = Path(path)
        try:
            for abandoned in path.parent.glob(f".{path.name}.*"):  # by a process that was killed
                abandoned.unlink(missing_ok=True)
            with replacing(path) as unfinished, unfinished.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"the checkpoint {path} cannot be written: {error}. Expected space on the disk, and permission to "
                "write there. Free space, and resume from the last complete checkpoint with --ckpt_path last."
            ) from error

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:  # noqa: ANN401 - as above
        """Read a checkpoint to the CPU, without running code; other arguments of Lightning are ignored.

        Raises:
            InputError: It is not a complete checkpoint.
        """
        checkpoint = read_checkpoint(path)
        checkpoint.setdefault("pytorch-lightning_version", lightning.__version__)  # which imported ones lack
        if "loops" in checkpoint:  # Lightning shows callbacks only checkpoints that have states of callbacks
            checkpoint.setdefault("callbacks", {})  # also those of weights alone, of which they read the epoch
        return checkpoint
