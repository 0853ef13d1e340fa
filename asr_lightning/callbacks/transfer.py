"""Weights of a checkpoint as the beginning of another training: other sizes, other tokens, other outputs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from asr_lightning.callbacks.initialization import FirstWeights
from asr_lightning.callbacks.weight_selection import check_features, pick_axis, take
from asr_lightning.errors import InputError
from asr_lightning.models.checkpoints import load_model
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.nn.axes import module_axes

SHOWN = 8  # differences in a message


@dataclass(frozen=True)
class Transferred:
    """The values that one entry of a `state_dict` received.

    Attributes:
        name: Of the entry.
        kind: `taken`, where all values are the checkpoint's; `cut`, where the sizes or tokens differ and some are;
            `random`, where none is.
        note: What was taken along each axis, or why nothing was.
    """

    name: str
    kind: str
    note: str

    def __str__(self) -> str:
        return f"{self.name:56}  {self.kind:6}  {self.note}"


def transfer_weights(
    model: nn.Module, source: nn.Module, skip: Iterable[str] = (), rename: Mapping[str, str] | None = None
) -> tuple[dict[str, Tensor], list[Transferred]]:
    """Take the weights of a network from another one, as far as both have the same parts; neither is changed.

    An entry takes the values of the source's entry of the same name. Where an axis has another size, it takes the first
    units, those of each gate, head and direction by themselves, the central taps of a convolution, and the rows of the
    same tokens; what the source lacks keeps its own values.

    Args:
        model: The network.
        source: The other network.
        skip: Paths of modules and parameters that keep their own values.
        rename: Paths in the source by the paths in the network, where they differ: `{"output": "ctc"}`.

    Returns:
        A `state_dict` of the network, and what each entry of it received, in its order.

    Raises:
        InputError: A path does not exist; parts of the same name are of different classes or structures, or share no
            token; or no entry could be taken.
    """
    skip, rename = tuple(skip), dict(rename or {})
    _check_known("skip", skip, model)
    _check_known("rename", rename, model)
    _check_known("rename", rename.values(), source)
    axes, source_axes, source_weights = module_axes(model), module_axes(source), source.state_dict()
    weights: dict[str, Tensor] = {}
    report: list[Transferred] = []
    different = _class_differences(model, source, skip, rename)
    for name, tensor in model.state_dict().items():
        source_name = _source_name(name, rename)
        weights[name] = tensor.detach().clone()
        if _is_below(name, skip):
            report.append(Transferred(name, "random", "skipped"))
        elif source_name not in source_weights:
            report.append(Transferred(name, "random", f"the checkpoint has no {source_name}"))
        elif len(axes[name]) != len(source_axes[source_name]):
            different.setdefault(
                name, f"{len(axes[name])} axes here, {len(source_axes[source_name])} in the checkpoint"
            )
        elif not _is_below(name, different):
            try:
                picks = [
                    pick_axis(*pair, _first_indices) for pair in zip(axes[name], source_axes[source_name], strict=True)
                ]
            except InputError as error:
                different[name] = f"an axis {error}"
                continue
            weights[name] = take(
                tensor.detach(), source_weights[source_name].detach(), [pick.indices for pick in picks]
            )
            exact = tensor.shape == source_weights[source_name].shape and all(
                torch.equal(pick.indices, torch.arange(len(pick.indices))) for pick in picks
            )
            elsewhere = f"from {source_name}: " if source_name != name else ""
            note = elsewhere + (" | ".join(pick.words for pick in picks) or "its value")
            report.append(Transferred(name, "taken" if exact else "cut", note))
    if different:
        _refuse(different)
    if not any(entry.kind != "random" for entry in report):
        raise InputError(
            f"expected a checkpoint with parts of this network, which has {', '.join(_children(model))}, found "
            f"{', '.join(_children(source))}: name the parts that are the same by `rename`"
        )
    return weights, report


def _refuse(different: Mapping[str, str]) -> None:
    lines = [f"  {name}: {why}" for name, why in different.items()]
    more = [f"  … and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    raise InputError(
        "\n".join(["the checkpoint has parts of the same name that are different:", *lines[:SHOWN], *more])
        + f"\nTrain these from random weights by initialize_from.skip: [{', '.join(different)}], or make them the same"
    )


def _first_indices(source_size: int, size: int) -> Tensor:
    """Return the indices of the first units of an axis, and -1 for units that the source lacks."""
    indices = torch.arange(size)
    return torch.where(indices < source_size, indices, -1)


def _is_below(name: str, paths: Iterable[str]) -> bool:
    return any(name == path or name.startswith(f"{path}.") for path in paths)


def _source_name(name: str, rename: Mapping[str, str]) -> str:
    for path in sorted(rename, key=len, reverse=True):
        if _is_below(name, [path]):
            return rename[path] + name[len(path) :]
    return name


def _class_differences(
    model: nn.Module, source: nn.Module, skip: Iterable[str], rename: Mapping[str, str]
) -> dict[str, str]:
    """Return the outermost modules with weights that are of another class in the source, and both classes."""
    modules = dict(source.named_modules())
    different: dict[str, str] = {}
    for path, module in model.named_modules():
        other = modules.get(_source_name(path, rename))
        if not path or other is None or type(module) is type(other) or _is_below(path, [*skip, *different]):
            continue
        if module.state_dict() and other.state_dict():
            different[path] = f"{type(module).__name__} here, {type(other).__name__} in the checkpoint"
    return different


def _check_known(key: str, paths: Iterable[str], module: nn.Module) -> None:
    names = {*dict(module.named_modules()), *module.state_dict()} - {""}
    if unknown := [path for path in paths if path not in names]:
        raise InputError(
            f"initialize_from.{key}: expected paths of modules or parameters, found {', '.join(unknown)}; at the top "
            f"there are {', '.join(_children(module))}"
        )


def _children(module: nn.Module) -> list[str]:
    return [name for name, child in module.named_children() if child.state_dict()]


class InitializeFrom(FirstWeights):
    """Initializes the model from a checkpoint when training begins; never when it is resumed.

    For the rules see `transfer_weights`. The experiment decides everything but these values: tokens, sizes, optimizer,
    schedule and the step that training begins at, which is 0. What each parameter received is printed.

    Args:
        checkpoint: Path of the checkpoint; None leaves the weights as they are.
        skip: Paths of modules and parameters that keep their random values, as an output for other units.
        rename: Paths in the checkpoint by the paths in the model, where they differ, as `{output: ctc}`.

    Raises:
        InputError: The checkpoint is missing, or was trained on other features or with other parts.
    """

    def __init__(
        self, checkpoint: str | None = None, skip: list[str] | None = None, rename: dict[str, str] | None = None
    ) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self.skip = list(skip or [])
        self.rename = dict(rename or {})

    @property
    def is_set_up(self) -> bool:
        """Whether there is a checkpoint."""
        return self.checkpoint is not None

    def set_weights(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the weights, and print what each parameter received; all ranks read the same file."""
        assert self.checkpoint is not None
        source = load_model(self.checkpoint, LightningModule)
        if isinstance(pl_module, Recognizer) and isinstance(source, Recognizer) and "encoder" not in self.skip:
            check_features(pl_module.features, source.features)
        weights, report = transfer_weights(pl_module, source, self.skip, self.rename)
        pl_module.load_state_dict(weights)
        counts = {kind: sum(entry.kind == kind for entry in report) for kind in ("taken", "cut", "random")}
        unused = [
            name
            for name in _children(source)
            if not any(entry.note and _uses(entry, name, self.rename) for entry in report)
        ]
        title = f"initialized from {self.checkpoint}: " + ", ".join(
            f"{number} {kind}" for kind, number in counts.items()
        )
        unused_line = [f"not used of the checkpoint: {', '.join(unused)}"] if unused else []
        rank_zero_info("\n  ".join([title, *map(str, report), *unused_line]))


def _uses(entry: Transferred, part: str, rename: Mapping[str, str]) -> bool:
    return entry.kind != "random" and _is_below(_source_name(entry.name, rename), [part])
