"""Whether a checkpoint is of the network that an experiment describes; the rule is in `checkpoints.py`."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule

from asr_lightning.errors import InputError, shown
from asr_lightning.models.class_paths import allowed_beside
from asr_lightning.models.instantiation import instantiate, with_defaults
from asr_lightning.renamed import current_class_paths
from asr_lightning.text.tokenizers import Tokenizer

Difference = tuple[str, Any, Any]  # what differs, in the checkpoint, in the experiment

# Arguments of a model that change nothing in what its weights compute. Any other one does, also of others' classes.
STATE = ("optimizer", "scheduler")  # of the training: in `fit` see `_check_state`
FREE = (*STATE, "search", "augment", "label_smoothing", "mmi_weight", "mmi_scale", "transducer_loss", "loss_per_token")
FOLDER = "folder"  # of a hybrid: its states are compared by what they are, see `Recognizer.fingerprints`
# At any depth: rates of dropout and scheduled sampling; how long GlobalNormalization gathers statistics.
FREE_ANYWHERE = re.compile(r"(^|\.)(\w*dropouts?|sampling|normalization\.frames)$")
# What an optimizer reads in every step. The others say what it keeps for each weight, or where.
CHANGEABLE = ("lr", "weight_decay", "betas", "eps", "momentum", "dampening", "nesterov", "rho", "alpha", "lr_decay")
DEFAULT_OPTIMIZER = {"class_path": "torch.optim.AdamW"}  # of `Recognizer`
BYTES = "model_base64"  # holds the path that a SentencePiece model was trained at; its pieces are compared instead
SHOWN = 20  # differences in a message


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Let a message begin with the path of the checkpoint that it is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def configuration(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return `{"class_path": …, "init_args": {…}}` of a checkpoint, with the current names of classes, unchecked.

    Raises:
        InputError: The checkpoint does not say how its model is made, or not in any readable depth.
    """
    arguments = dict(checkpoint.get("hyper_parameters", {}))
    class_path = arguments.pop("_class_path", None)
    arguments.pop("_fingerprints", None)
    if not isinstance(class_path, str):
        raise InputError(
            "expected a checkpoint that names its model's class, found none; train it with `lightning fit`, or build "
            "it with `build_recognizer`"
        )
    try:
        return current_class_paths({"class_path": class_path, "init_args": arguments})
    except RecursionError as error:
        raise InputError("expected the configuration of a model, found one that is nested too deeply") from error


def check_same_network(model: LightningModule, checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Refuse a checkpoint of another network than a model that was built from an experiment.

    Args:
        model: As `remember_configuration` has left it.
        checkpoint: Whole.
        path: Of the checkpoint, for messages.

    Raises:
        InputError: They differ in something that may not differ; the message names it.
    """
    mine = configuration({"hyper_parameters": model.hparams})
    with naming(path):
        found = list(_differences(model, mine, configuration(checkpoint)))
    _refuse(
        found, f"{path} is a checkpoint of another network than the experiment's",
        "Give the experiment what the checkpoint has, or leave its `model` out, and the checkpoint's own is taken; "
        "without --ckpt_path a new network is trained",
    )  # fmt: skip
    check_fingerprints(model, checkpoint, path)
    check_weights(model, checkpoint, path)


def check_fingerprints(model: LightningModule, checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Refuse a checkpoint whose network was made from files that hold something else now.

    Raises:
        InputError: They do; checkpoints without fingerprints pass.
    """
    mine = model.hparams.get("_fingerprints", {})
    theirs = checkpoint.get("hyper_parameters", {}).get("_fingerprints", {})
    _refuse(
        [(key, theirs[key], mine[key]) for key in mine if key in theirs and mine[key] != theirs[key]],
        f"{path}: the network was made from other files than those of the experiment's `{FOLDER}`",
        "Give the folder that it was trained with, or train anew",
    )


def check_weights(model: LightningModule, checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Refuse a checkpoint whose weights have other names or shapes than those of a model.

    Raises:
        InputError: They have, or are no tensors.
    """
    expected, found = model.state_dict(), checkpoint["state_dict"]

    def shape(weights: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401 - a shape, or what stands in its place
        value = weights.get(name)
        return tuple(value.shape) if isinstance(value, torch.Tensor) else value

    _refuse(
        [
            (str(name), shape(found, name), shape(expected, name))
            for name in [*expected, *(name for name in found if name not in expected)]
            if shape(found, name) != shape(expected, name)
        ],
        f"{path}: the weights do not fit the configuration",
        "Take a checkpoint of the same version of the model's code",
    )


def check_training_state(
    model: LightningModule, checkpoint: Mapping[str, Any], path: str | Path, max_epochs: int | None = None
) -> set[str]:
    """Return which arguments of optimizer and schedule an experiment has changed since a checkpoint was written.

    Args:
        model: Of the same network.
        checkpoint: Whole.
        path: Of the checkpoint, for messages.
        max_epochs: Of the trainer; None or -1 for no end.

    Raises:
        InputError: The checkpoint has no state of a training, or the state does not fit the experiment.
    """
    state = checkpoint.get("optimizer_states")
    if not isinstance(state, list) or not state or not isinstance(checkpoint.get("lr_schedulers"), list):
        raise InputError(
            f"{path}: expected the state of a training to go on with, found weights only; take another checkpoint, "
            f"or {_new_run(path)}"
        )
    epoch = checkpoint.get("epoch")
    if max_epochs is not None and max_epochs >= 0 and isinstance(epoch, int) and epoch > max_epochs:
        raise InputError(
            f"{path}: training has come to epoch {epoch}, beyond trainer.max_epochs {max_epochs}: set it higher, or "
            "take an earlier checkpoint"
        )
    mine, theirs = (configuration(one) for one in ({"hyper_parameters": model.hparams}, checkpoint))
    mine, theirs = (
        {**one, "init_args": {**one["init_args"], "optimizer": one["init_args"].get("optimizer") or DEFAULT_OPTIMIZER}}
        for one in (mine, theirs)
    )
    only = _state_only(theirs, mine)
    classes = _class_differences(_flat(only["init_args"]), _flat(mine["init_args"]))
    _refuse(
        classes, f"{path}: the state of the training is of other classes than the experiment's",
        f"Keep the classes, or {_new_run(path)}",
    )  # fmt: skip
    with naming(path):
        both = [_whole(model, one, mine) for one in (only, mine)]
    changed = [one for one in _unequal(*both) if one[0].startswith(STATE)]
    _refuse(
        [one for one in changed if not _takes_effect(*one)],
        f"{path}: the state of the training was gathered with other arguments than the experiment's",
        f"Keep these, or {_new_run(path)}",
    )
    if changed and str((mine["init_args"].get("scheduler") or {}).get("class_path")).endswith("ReduceLROnPlateau"):
        _refuse(
            changed, f"{path}: what ReduceLROnPlateau would have done with other arguments cannot be known",
            f"Keep these, or {_new_run(path)}",
        )  # fmt: skip
    return {key for key, *_ in changed}


def _takes_effect(key: str, theirs: Any, mine: Any) -> bool:  # noqa: ANN401 - arguments of any kind
    part, _, name = key.partition(".")
    if part == "scheduler":
        return True
    return name in CHANGEABLE and not (name == "momentum" and (theirs == 0) != (mine == 0))


def _new_run(path: str | Path) -> str:
    return (
        "begin a new run without --ckpt_path; the callback asr_lightning.callbacks.weight_selection.WeightSelection "
        f"with `teacher: {path}` gives it the weights of a recognizer"
    )


def _differences(model: LightningModule, mine: dict[str, Any], theirs: dict[str, Any]) -> Iterator[Difference]:
    """Give what differs and may not; classes first, since arguments of different classes cannot be compared."""
    if theirs["class_path"] != mine["class_path"]:
        yield "model", _ClassPath(theirs["class_path"]), _ClassPath(mine["class_path"])
        return
    theirs = _network_only(theirs, mine)
    classes = list(_class_differences(_flat(theirs["init_args"]), _flat(mine["init_args"])))
    if classes:
        yield from classes
        return
    for key, there, here in _unequal(_whole(model, theirs, mine), mine):
        if key.startswith("tokenizer."):
            continue
        if key != "ctc_weight" or (there > 0) != (here > 0):  # the output is there, or is not
            yield key, there, here
    tokenizer, _ = instantiate(theirs["init_args"]["tokenizer"], Tokenizer, "a tokenizer", allowed_beside(mine))  # type: ignore[type-abstract]
    yield from _tokens(tokenizer, model.tokenizer)  # type: ignore[arg-type]


def _tokens(theirs: Tokenizer, mine: Tokenizer) -> Iterator[Difference]:
    """Give the first difference of two tokenizers of one class, or those of their other arguments."""
    if len(theirs) != len(mine):
        yield "tokenizer, number of tokens", len(theirs), len(mine)
        return
    for number, (there, here) in enumerate(zip(theirs.tokens, mine.tokens, strict=True)):
        if there != here:
            yield f"tokenizer, token {number}", there, here
            return
    for name in ("blank_id", "unk_id", "eos_id"):
        if getattr(theirs, name) != getattr(mine, name):
            yield f"tokenizer, {name}", getattr(theirs, name), getattr(mine, name)
    arguments = theirs.init_args(), mine.init_args()
    for key in sorted({*arguments[0], *arguments[1]} - {BYTES}):
        if arguments[0].get(key) != arguments[1].get(key):
            yield f"tokenizer.{key}", arguments[0].get(key), arguments[1].get(key)


def _network_only(theirs: dict[str, Any], mine: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's configuration with what may differ as the experiment has it."""
    return _replaced(theirs, mine, [*FREE, FOLDER])


def _state_only(theirs: dict[str, Any], mine: dict[str, Any]) -> dict[str, Any]:
    """Return the experiment's configuration with the checkpoint's optimizer and schedule."""
    return _replaced(mine, theirs, STATE)


def _replaced(one: dict[str, Any], other: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    names = set(keys)
    kept = {key: value for key, value in one["init_args"].items() if key not in names}
    taken = {key: value for key, value in other["init_args"].items() if key in names}
    return {**one, "init_args": {**kept, **taken}}


def _whole(model: LightningModule, config: dict[str, Any], mine: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with its defaults: an older checkpoint may lack arguments. It imports nothing new."""
    return with_defaults(config, type(model), "the experiment's model", allowed_beside(mine))


def _unequal(theirs: dict[str, Any], mine: dict[str, Any]) -> list[Difference]:
    there, here = _flat(theirs["init_args"]), _flat(mine["init_args"])
    return [
        (key, there.get(key), here.get(key))
        for key in {**here, **there}
        if there.get(key) != here.get(key) and not FREE_ANYWHERE.search(key)
    ]


def _class_differences(theirs: dict[str, Any], mine: dict[str, Any]) -> Iterator[Difference]:
    for key, value in theirs.items():
        if isinstance(value, _ClassPath) and value != mine.get(key):
            yield key, value, mine.get(key)
    for key, value in mine.items():
        if isinstance(value, _ClassPath) and key in theirs and not isinstance(theirs[key], _ClassPath):
            yield key, theirs[key], value


class _ClassPath(str):
    """The value of a part that is an object."""


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return values by dotted keys; that of a part with a class is the class, and its arguments stand below it."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and "class_path" in value:
            found[name] = _ClassPath(value["class_path"])
            inner = {**(value.get("init_args") or {}), **(value.get("dict_kwargs") or {})}
            found |= _flat(inner, f"{name}.")
        elif isinstance(value, Mapping):
            found |= _flat(value, f"{name}.")
        else:
            found[name] = value
    return found


def unequal_networks(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """Return what differs in the networks of two models by their `hparams`, both with all defaults.

    What may differ is left out, and so are tokenizers.
    """
    one, other = ({"init_args": dict(hparams)} for hparams in (first, second))
    return [
        (key, there, here)
        for key, there, here in _unequal(_network_only(one, other), other)
        if not key.startswith("tokenizer.") and (key != "ctc_weight" or (there > 0) != (here > 0))
    ]


def _refuse(differences: Iterable[Difference], what: str, advice: str) -> None:
    lines = [
        f"  {key}: {shown(_text(there))} in the checkpoint, {shown(_text(here))} in the experiment"
        for key, there, here in differences
    ]
    if lines:
        more = [f"  … and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        raise InputError("\n".join([f"{what}:", *lines[:SHOWN], *more, f"{advice}."]))


def _text(value: Any) -> str:  # noqa: ANN401 - of a configuration
    return str(value) if isinstance(value, _ClassPath) or not isinstance(value, str) else repr(value)
