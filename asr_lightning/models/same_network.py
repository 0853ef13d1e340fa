"""Comparison of a checkpoint with the network of an experiment; the rules are in `checkpoints.py`."""

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

Difference = tuple[str, Any, Any]  # key, value in the checkpoint, value in the experiment

# Arguments of a model that do not change what its weights compute. All other arguments do, also of users' classes.
STATE = ("optimizer", "scheduler")  # of the training; `fit` compares them in `check_training_state`
FREE = (*STATE, "search", "augment", "label_smoothing", "mmi_weight", "mmi_scale", "transducer_loss", "loss_per_token")
FOLDER = "folder"  # of a hybrid: its states are compared by their checksums, see `Recognizer.fingerprints`
# At any depth: rates of dropout and scheduled sampling; for how many frames GlobalNormalization gathers statistics.
FREE_ANYWHERE = re.compile(r"(^|\.)(\w*dropouts?|sampling|normalization\.frames)$")
# Arguments that an optimizer reads in every step. The others define its state for each weight.
CHANGEABLE = ("lr", "weight_decay", "betas", "eps", "momentum", "dampening", "nesterov", "rho", "alpha", "lr_decay")
DEFAULT_OPTIMIZER = {"class_path": "torch.optim.AdamW"}  # of `Recognizer`
BYTES = "model_base64"  # contains the path where a SentencePiece model was trained; its pieces are compared instead
SHOWN = 20  # differences in a message


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Put the path of the checkpoint at the beginning of messages."""
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
            "expected a checkpoint with the class of its model, found none; train it with `lightning fit`, or build "
            "it with `build_recognizer`"
        )
    try:
        return current_class_paths({"class_path": class_path, "init_args": arguments})
    except RecursionError as error:
        raise InputError("expected the configuration of a model, found one that is nested too deeply") from error


def check_same_network(model: LightningModule, checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Refuse a checkpoint of another network than the model of an experiment.

    Args:
        model: Built from the experiment, after `remember_configuration`.
        checkpoint: The complete checkpoint.
        path: Path of the checkpoint, for messages.

    Raises:
        InputError: They differ in an argument that may not differ; the message names it.
    """
    expected = configuration({"hyper_parameters": model.hparams})
    with naming(path):
        differences = list(_differences(model, expected, configuration(checkpoint)))
    _refuse(
        differences, f"{path} is a checkpoint of another network than the experiment's",
        "Give the experiment the values of the checkpoint, or remove its `model` to use that of the checkpoint; "
        "without --ckpt_path a new network is trained",
    )  # fmt: skip
    check_fingerprints(model, checkpoint, path)
    check_weights(model, checkpoint, path)


def check_fingerprints(model: LightningModule, checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Refuse a checkpoint whose network was made from files that have changed.

    Raises:
        InputError: The files have changed; checkpoints without fingerprints pass.
    """
    expected = model.hparams.get("_fingerprints", {})
    saved = checkpoint.get("hyper_parameters", {}).get("_fingerprints", {})
    _refuse(
        [(key, saved[key], expected[key]) for key in expected if key in saved and expected[key] != saved[key]],
        f"{path}: the network was made from other files than those of the experiment's `{FOLDER}`",
        "Give the folder that it was trained with, or train again",
    )


def check_weights(model: LightningModule, checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Refuse a checkpoint whose weights have other names or shapes than those of a model.

    Raises:
        InputError: Names or shapes differ, or weights are not tensors.
    """
    expected, saved = model.state_dict(), checkpoint["state_dict"]

    def shape(weights: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401 - a shape, or another value
        value = weights.get(name)
        return tuple(value.shape) if isinstance(value, torch.Tensor) else value

    _refuse(
        [
            (str(name), shape(saved, name), shape(expected, name))
            for name in [*expected, *(name for name in saved if name not in expected)]
            if shape(saved, name) != shape(expected, name)
        ],
        f"{path}: the weights do not fit the configuration",
        "Use a checkpoint of the same version of the model's code",
    )


def check_training_state(
    model: LightningModule, checkpoint: Mapping[str, Any], path: str | Path, max_epochs: int | None = None
) -> set[str]:
    """Return the arguments of optimizer and schedule that an experiment has changed since a checkpoint was written.

    Args:
        model: A model with the same network.
        checkpoint: The complete checkpoint.
        path: Path of the checkpoint, for messages.
        max_epochs: Of the trainer; None or -1 for no end.

    Raises:
        InputError: The checkpoint has no training state, or the state does not fit the experiment.
    """
    state = checkpoint.get("optimizer_states")
    if not isinstance(state, list) or not state or not isinstance(checkpoint.get("lr_schedulers"), list):
        raise InputError(
            f"{path}: expected the state of a training to resume, found weights only; use another checkpoint, "
            f"or {_new_run_hint(path)}"
        )
    epoch = checkpoint.get("epoch")
    if max_epochs is not None and max_epochs >= 0 and isinstance(epoch, int) and epoch > max_epochs:
        raise InputError(
            f"{path}: training has reached epoch {epoch}, beyond trainer.max_epochs {max_epochs}: increase it, or "
            "use an earlier checkpoint"
        )
    expected, saved = map(_with_optimizer, ({"hyper_parameters": model.hparams}, checkpoint))
    saved_state = _state_only(saved, expected)
    classes = _class_differences(_flat(saved_state["init_args"]), _flat(expected["init_args"]))
    _refuse(
        classes, f"{path}: the state of the training is of other classes than the experiment's",
        f"Keep the classes, or {_new_run_hint(path)}",
    )  # fmt: skip
    with naming(path):
        complete = [_with_defaults(model, config, expected) for config in (saved_state, expected)]
    changed = [difference for difference in _argument_differences(*complete) if difference[0].startswith(STATE)]
    _refuse(
        [difference for difference in changed if not _can_change(*difference)],
        f"{path}: the state of the training was gathered with other arguments than the experiment's",
        f"Keep these, or {_new_run_hint(path)}",
    )
    if changed and str((expected["init_args"].get("scheduler") or {}).get("class_path")).endswith("ReduceLROnPlateau"):
        _refuse(
            changed, f"{path}: the decisions of ReduceLROnPlateau with other arguments are not known",
            f"Keep these, or {_new_run_hint(path)}",
        )  # fmt: skip
    return {key for key, *_ in changed}


def _with_optimizer(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a checkpoint, with the default optimizer if it has none."""
    config = configuration(checkpoint)
    optimizer = config["init_args"].get("optimizer") or DEFAULT_OPTIMIZER
    return {**config, "init_args": {**config["init_args"], "optimizer": optimizer}}


def _can_change(key: str, saved: Any, expected: Any) -> bool:  # noqa: ANN401 - arguments of any kind
    part, _, name = key.partition(".")
    if part == "scheduler":
        return True
    return name in CHANGEABLE and not (name == "momentum" and (saved == 0) != (expected == 0))


def _new_run_hint(path: str | Path) -> str:
    return (
        "start a new run without --ckpt_path; the callback asr_lightning.callbacks.weight_selection.WeightSelection "
        f"with `teacher: {path}` gives it the weights of a recognizer"
    )


def _differences(model: LightningModule, expected: dict[str, Any], saved: dict[str, Any]) -> Iterator[Difference]:
    """Yield differences that are refused; classes first, since arguments of different classes cannot be compared."""
    if saved["class_path"] != expected["class_path"]:
        yield "model", _ClassPath(saved["class_path"]), _ClassPath(expected["class_path"])
        return
    saved = _network_only(saved, expected)
    classes = list(_class_differences(_flat(saved["init_args"]), _flat(expected["init_args"])))
    if classes:
        yield from classes
        return
    for key, saved_value, expected_value in _argument_differences(_with_defaults(model, saved, expected), expected):
        if key.startswith("tokenizer."):
            continue
        if key != "ctc_weight" or (saved_value > 0) != (expected_value > 0):  # only one of them has the output
            yield key, saved_value, expected_value
    tokenizer, _ = instantiate(saved["init_args"]["tokenizer"], Tokenizer, "a tokenizer", allowed_beside(expected))  # type: ignore[type-abstract]
    yield from _tokens(tokenizer, model.tokenizer)  # type: ignore[arg-type]


def _tokens(saved: Tokenizer, expected: Tokenizer) -> Iterator[Difference]:
    """Yield the first different token of two tokenizers of the same class, or the different arguments."""
    if len(saved) != len(expected):
        yield "tokenizer, number of tokens", len(saved), len(expected)
        return
    for id, (saved_token, expected_token) in enumerate(zip(saved.tokens, expected.tokens, strict=True)):
        if saved_token != expected_token:
            yield f"tokenizer, token {id}", saved_token, expected_token
            return
    for name in ("blank_id", "unk_id", "eos_id"):
        if getattr(saved, name) != getattr(expected, name):
            yield f"tokenizer, {name}", getattr(saved, name), getattr(expected, name)
    arguments = saved.init_args(), expected.init_args()
    for key in sorted({*arguments[0], *arguments[1]} - {BYTES}):
        if arguments[0].get(key) != arguments[1].get(key):
            yield f"tokenizer.{key}", arguments[0].get(key), arguments[1].get(key)


def _network_only(saved: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's configuration, with the experiment's values of all arguments that may differ."""
    return _replace_arguments(saved, expected, [*FREE, FOLDER])


def _state_only(saved: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """Return the experiment's configuration with the checkpoint's optimizer and schedule."""
    return _replace_arguments(expected, saved, STATE)


def _replace_arguments(config: dict[str, Any], other: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    names = set(keys)
    kept = {key: value for key, value in config["init_args"].items() if key not in names}
    replaced = {key: value for key, value in other["init_args"].items() if key in names}
    return {**config, "init_args": {**kept, **replaced}}


def _with_defaults(model: LightningModule, config: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with its defaults, since an older checkpoint may lack arguments; nothing is imported."""
    return with_defaults(config, type(model), "the experiment's model", allowed_beside(expected))


def _argument_differences(saved: dict[str, Any], expected: dict[str, Any]) -> list[Difference]:
    saved_values, expected_values = _flat(saved["init_args"]), _flat(expected["init_args"])
    return [
        (key, saved_values.get(key), expected_values.get(key))
        for key in {**expected_values, **saved_values}
        if saved_values.get(key) != expected_values.get(key) and not FREE_ANYWHERE.search(key)
    ]


def _class_differences(saved: dict[str, Any], expected: dict[str, Any]) -> Iterator[Difference]:
    for key, value in saved.items():
        if isinstance(value, _ClassPath) and value != expected.get(key):
            yield key, value, expected.get(key)
    for key, value in expected.items():
        if isinstance(value, _ClassPath) and key in saved and not isinstance(saved[key], _ClassPath):
            yield key, saved[key], value


class _ClassPath(str):
    """Class path of an argument that is an object."""


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return values by dotted keys; the value of an object is its class, and its arguments have keys below it."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and "class_path" in value:
            flat[name] = _ClassPath(value["class_path"])
            inner = {**(value.get("init_args") or {}), **(value.get("dict_kwargs") or {})}
            flat |= _flat(inner, f"{name}.")
        elif isinstance(value, Mapping):
            flat |= _flat(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def unequal_networks(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """Return the differences of two networks by their `hparams`, both with all defaults.

    Arguments that may differ are left out, and so are tokenizers.
    """
    config, other = ({"init_args": dict(hparams)} for hparams in (first, second))
    return [
        (key, value, other_value)
        for key, value, other_value in _argument_differences(_network_only(config, other), other)
        if not key.startswith("tokenizer.") and (key != "ctc_weight" or (value > 0) != (other_value > 0))
    ]


def _refuse(differences: Iterable[Difference], what: str, advice: str) -> None:
    lines = [
        f"  {key}: {shown(_text(saved_value))} in the checkpoint, {shown(_text(expected_value))} in the experiment"
        for key, saved_value, expected_value in differences
    ]
    if lines:
        more = [f"  … and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        raise InputError("\n".join([f"{what}:", *lines[:SHOWN], *more, f"{advice}."]))


def _text(value: Any) -> str:  # noqa: ANN401 - of a configuration
    return str(value) if isinstance(value, _ClassPath) or not isinstance(value, str) else repr(value)
