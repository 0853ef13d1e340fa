"""Recognizers and language models from configurations and from checkpoints.

A checkpoint beside an experiment, in `lightning fit|validate|test|predict --ckpt_path` and in every tool that takes a
checkpoint and `--config`:

* The experiment decides everything, and the checkpoint gives the weights; in `fit` also the state of the training.
  Nothing is merged. Where no experiment gives a `model`, the checkpoint's configuration is taken as a whole.
* What makes a network compute something else must be equal in both, and is refused by its name where it is not, before
  any weights are loaded: the class of the model, the tokens and their order, features, every argument of encoder and
  decoder, whether there is a CTC output, the tied states of a hybrid (`same_network.py`, which lists what may differ).
* `search`, `augment`, `optimizer`, `scheduler`, rates of dropout and scheduled sampling, and the weights of losses may
  differ: the experiment's hold. `search` left out is the default search, not the checkpoint's.
* `fit` goes on with an optimizer and a schedule of the same class, otherwise it refuses; their changed arguments hold
  from the first step on, as if they had held from the beginning (`callbacks/changed_optimizer.py`).

An experiment is code by its author, a checkpoint is not: `class_paths.py` says which classes a checkpoint may name. It
may also name files, as the folder of a hybrid or the checkpoint of a language model; their readers run nothing either.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from jsonargparse import Namespace
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_warn

from asr_lightning.errors import InputError, shown
from asr_lightning.models.class_paths import TRUSTED, allowed_by_user
from asr_lightning.models.instantiation import SAID, instantiate, parsed_strictly
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.models.same_network import check_fingerprints, check_same_network, configuration, naming
from asr_lightning.renamed import current_state_key
from asr_lightning.text.tokenizers import Tokenizer

Model = TypeVar("Model", bound=LightningModule)


def build_recognizer(config: dict[str, Any]) -> Recognizer:
    """Make a recogniser from `{"class_path": …, "init_args": {…}}`, the `model` part of an experiment.

    Raises:
        InputError: The configuration names what does not exist, or arguments that do not fit.
    """
    return build_model(config, Recognizer)  # type: ignore[type-abstract]


def build_model(config: dict[str, Any], kind: type[Model], allowed: Iterable[str] | None = None) -> Model:
    """Make a model from `{"class_path": …, "init_args": {…}}`, the `model` part of an experiment.

    Args:
        config: What to make.
        kind: The class that it must be of, or a base class of it.
        allowed: For the configuration of a checkpoint, names that it may import; None for that of an experiment.

    Raises:
        InputError: The configuration names what does not exist or is of another kind, or arguments that do not fit.
    """
    wanted = "a recogniser" if kind is Recognizer else f"a model of class {kind.__name__}"
    model, whole = instantiate(config, kind, wanted, allowed)
    remember_configuration(model, whole)
    return model


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
        path: Of the checkpoint.
        kind: The class that the model must be of, or a base class of it.
        experiment: The `model` part of an experiment, which decides everything but the weights. None: the checkpoint's
            configuration is taken.

    Raises:
        InputError: No such file, a file that is no whole checkpoint, one of something else than `kind`, or of another
            network than the experiment's.
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
    except (RuntimeError, TypeError, AttributeError) as error:  # the latter of what are no tensors
        raise InputError(
            f"{path}: the weights do not fit the configuration beside them: {shown(str(error), SAID)}"
        ) from error
    return model.eval()


def checkpoint_model(path: str | Path) -> Namespace:
    """Return the model of a checkpoint as Lightning's command line has that of an experiment.

    Raises:
        InputError: As `read_checkpoint`; or it does not say how its model is made, or names what it may not.
    """
    checkpoint, allowed = read_checkpoint(path), (*TRUSTED, *allowed_by_user())
    with naming(path):
        return parsed_strictly(configuration(checkpoint), LightningModule, "a model", allowed)


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
    if isinstance(states := checkpoint.get("callbacks"), dict):
        checkpoint["callbacks"] = {current_state_key(str(key)): state for key, state in states.items()}
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
