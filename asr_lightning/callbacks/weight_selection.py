"""Initialise a student from a larger teacher by selecting weights [seed 002 §II.2; Xu et al. 2024].

The method stands on consistency: the unit that is kept where a hidden axis is written must be the unit that is kept
wherever it is read. So weights are selected along the meaning of their axes (`asr_lightning.nn.axes`):

| axis                                           | what a student takes                                              |
|------------------------------------------------|-------------------------------------------------------------------|
| hidden units, channels, heads                  | those of the element rule, the same wherever the sizes are        |
| gates, directions, GLU halves, frequencies     | all; the element rule works within each of them                   |
| heads × units, channels × frequencies          | the element rule, factor by factor                                |
| taps of a convolution                          | the central ones, so that a tap stays as many frames away         |
| vocabulary                                     | the row of the same token; tokens the teacher lacks keep their own|
| layers (entries of a `ModuleList`)             | those of the layer rule                                           |
"""

from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from asr_lightning.errors import InputError
from asr_lightning.models.checkpoints import load_recognizer
from asr_lightning.nn.axes import Axis, Factor, Fixed, Product, Taps, Tokens, module_axes, units

LayerRule = Literal["first", "uniform", "last"]
ElementRule = Literal["uniform", "consecutive", "random_consistent", "random_inconsistent"]


@dataclass(frozen=True)
class Selected:
    """What one parameter of the student received.

    Attributes:
        name: In the student.
        source: The parameter of the teacher; empty if it has none and the student keeps its own values.
        axes: Per axis, in words, what was taken.
    """

    name: str
    source: str
    axes: tuple[str, ...]

    def __str__(self) -> str:
        if not self.source:
            return f"{self.name}: keeps its own values, the teacher has no such part"
        return f"{self.name} <- {self.source}: {' | '.join(self.axes) or 'a number'}"


def uniform_indices(teacher: int, student: int) -> Tensor:
    """Return `student` places spread evenly over `teacher` places, as the public code of Xu et al. 2024 does."""
    if teacher % student == 0:
        return torch.arange(student) * (teacher // student)
    return torch.round(torch.linspace(0, teacher - 1, student)).long()


def select_weights(
    student: nn.Module,
    teacher: nn.Module,
    layers: LayerRule = "first",
    elements: ElementRule = "uniform",
    axis_aware: bool = True,
    seed: int = 0,
) -> tuple[dict[str, Tensor], list[Selected]]:
    """Select a student's weights from a teacher's; neither is changed.

    Args:
        student: The smaller network.
        teacher: The larger network of the same architecture.
        layers: Which layers: the first (the paper's rule), evenly spread ones, or the last.
        elements: Which units: evenly spread (the paper's rule), the first, random ones that are the same on all axes of
            the same sizes, or random ones drawn for each parameter anew.
        axis_aware: False forgets what axes mean and selects by their sizes alone, as the public code of Xu et al. does.
        seed: Of the random rules.

    Returns:
        A state_dict of the student, and what each entry of it received.

    Raises:
        InputError: The teacher is smaller, shallower, of another structure or features, or shares no token.
    """
    names = _matched_layers(student, teacher, layers)
    axes, teacher_axes = (
        module_axes(network) if axis_aware else _blind_axes(network) for network in (student, teacher)
    )
    weights, source_weights = student.state_dict(), teacher.state_dict()
    chosen: dict[str, Tensor] = {}
    report: list[Selected] = []
    for name, own in weights.items():
        source = names(name)
        if source not in source_weights:
            if name.split(".")[0] in dict(teacher.named_children()):
                raise InputError(f"this teacher cannot be used: it has no {source}, which the student's {name} needs")
            chosen[name] = own.clone()
            report.append(Selected(name, "", ()))
            continue
        if len(axes[name]) != len(teacher_axes[source]):
            raise InputError(
                f"this teacher cannot be used: {name} has {len(axes[name])} axes, but {len(teacher_axes[source])} in "
                "the teacher"
            )
        picks = []
        for place, (axis, teacher_axis) in enumerate(zip(axes[name], teacher_axes[source], strict=True)):
            salt = f"{name}.{place}" if elements == "random_inconsistent" else ""
            picks.append(_select_axis(axis, teacher_axis, _Rule(elements, seed, salt), f"{name}, axis {place}"))
        chosen[name] = _take(own, source_weights[source], [(pick.own, pick.source) for pick in picks])
        report.append(Selected(name, source, tuple(pick.words for pick in picks)))
    return chosen, report


@dataclass(frozen=True)
class _Pick:
    """Places `source` of the teacher's axis go to places `own` of the student's."""

    own: Tensor
    source: Tensor
    words: str


@dataclass(frozen=True)
class _Rule:
    elements: ElementRule
    seed: int
    salt: str  # what is drawn anew for it; empty where axes of the same sizes must agree

    def indices(self, teacher: int, student: int) -> Tensor:
        if self.elements == "uniform" or teacher == student:
            return uniform_indices(teacher, student)
        if self.elements == "consecutive":
            return torch.arange(student)
        key = crc32(f"{self.seed} {self.salt} {teacher} {student}".encode())
        return torch.randperm(teacher, generator=torch.Generator().manual_seed(key))[:student].sort().values


def _select_axis(own: Axis, source: Axis, rule: _Rule, where: str) -> _Pick:
    if len(own) != len(source):
        raise InputError(f"this teacher cannot be used: {where} joins {len(own)} parts, {len(source)} in the teacher")
    picks = [_select_product(*pair, rule, where) for pair in zip(own, source, strict=True)]
    own_places, source_places, own_start, source_start = [], [], 0, 0
    for pick, own_product, source_product in zip(picks, own, source, strict=True):
        own_places.append(pick.own + own_start)
        source_places.append(pick.source + source_start)
        own_start += _size(own_product)
        source_start += _size(source_product)
    return _Pick(torch.cat(own_places), torch.cat(source_places), " and ".join(pick.words for pick in picks))


def _select_product(own: Product, source: Product, rule: _Rule, where: str) -> _Pick:
    if [type(factor) for factor in own] != [type(factor) for factor in source]:
        raise InputError(f"this teacher cannot be used: {where} is {own}, but {source} in the teacher")
    picks = [_select_factor(*pair, rule, where) for pair in zip(own, source, strict=True)]
    own_places = source_places = torch.zeros(1, dtype=torch.int64)
    for pick, own_factor, source_factor in zip(picks, own, source, strict=True):
        own_places = (own_places.unsqueeze(1) * own_factor.size + pick.own).flatten()
        source_places = (source_places.unsqueeze(1) * source_factor.size + pick.source).flatten()
    return _Pick(own_places, source_places, " × ".join(pick.words for pick in picks))


def _select_factor(own: Factor, source: Factor, rule: _Rule, where: str) -> _Pick:
    places = torch.arange(own.size)
    if isinstance(own, Tokens) and isinstance(source, Tokens):
        return _match_tokens(own, source, where)
    if isinstance(own, Fixed):
        if own != source:
            raise InputError(
                f"this teacher cannot be used: {where} has {own.size} {own.name}, but {source.size} in the teacher; "
                "teacher and student need the same features and the same structure"
            )
        return _Pick(places, places, f"all {own.size} {own.name}")
    if source.size < own.size:
        raise InputError(
            f"this teacher cannot be used: {where} has {own.size} entries, but only {source.size} in the teacher; a "
            "teacher must be at least as large as its student everywhere"
        )
    if isinstance(own, Taps):
        if (source.size - own.size) % 2:
            raise InputError(f"this teacher cannot be used: {where} has {own.size} taps and {source.size} in the "
                             "teacher; one kernel must be centred in the other")  # fmt: skip
        return _Pick(places, places + (source.size - own.size) // 2, f"central {own.size} of {source.size} taps")
    return _Pick(places, rule.indices(source.size, own.size), f"{own.size} of {source.size}")


def _match_tokens(own: Tokens, source: Tokens, where: str) -> _Pick:
    ids = {token: number for number, token in enumerate(source.names)}
    shared = [number for number, token in enumerate(own.names) if token in ids]
    if not any(not own.names[number].startswith("<") for number in shared):
        raise InputError(f"this teacher cannot be used: {where}: its tokenizer shares no token with the student's")
    matched = torch.tensor([ids[own.names[number]] for number in shared])
    return _Pick(torch.tensor(shared), matched, f"{len(shared)} of {own.size} tokens by name")


def _take(own: Tensor, source: Tensor, picks: list[tuple[Tensor, Tensor]]) -> Tensor:
    taken = source.detach().cpu()
    for place, (_, indices) in enumerate(picks):
        taken = taken.index_select(place, indices)
    result = own.detach().clone()
    if not picks:
        return result.copy_(taken)
    grid = torch.meshgrid(*[indices for indices, _ in picks], indexing="ij")
    result[tuple(one.to(result.device) for one in grid)] = taken.to(result)
    return result


def _size(product: Product) -> int:
    return reduce(lambda size, factor: size * factor.size, product, 1)


def _blind_axes(module: nn.Module) -> dict[str, tuple[Axis, ...]]:
    return {name: tuple(units(size) for size in tensor.shape) for name, tensor in module.state_dict().items()}


class _matched_layers:  # noqa: N801 - used as a function
    """The teacher's name of a student's parameter, by the layer rule."""

    def __init__(self, student: nn.Module, teacher: nn.Module, rule: LayerRule) -> None:
        self.numbers: dict[str, list[int]] = {}
        parts = dict(teacher.named_modules())
        for name, module in student.named_modules():
            source = parts.get(self(name))
            if isinstance(module, nn.LSTM) and isinstance(source, nn.LSTM) and rule != "first":
                if module.num_layers != source.num_layers:
                    raise InputError(f"layers: {rule} cannot be used with {name}, an LSTM of several layers in one")
            if not isinstance(module, nn.ModuleList) or not isinstance(source, nn.ModuleList):
                continue
            if len(source) < len(module):
                raise InputError(
                    f"this teacher cannot be used: {name} has {len(module)} layers, but only {len(source)} in the "
                    "teacher"
                )
            self.numbers[name] = _layer_numbers(len(source), len(module), rule)

    def __call__(self, name: str) -> str:
        path: list[str] = []
        own: list[str] = []
        for part in name.split("."):
            numbers = self.numbers.get(".".join(own))
            path.append(str(numbers[int(part)]) if numbers is not None else part)
            own.append(part)
        return ".".join(path)


def _layer_numbers(teacher: int, student: int, rule: LayerRule) -> list[int]:
    if rule == "uniform" and student:
        return uniform_indices(teacher, student).tolist()
    start = teacher - student if rule == "last" else 0
    return list(range(start, start + student))


class WeightSelection(Callback):
    """Initialises the recogniser from a teacher's checkpoint when training begins; never when it is resumed.

    Args:
        teacher: Path of the teacher's checkpoint.
        made_by: The command that makes this checkpoint, for the message when it is missing.
        layers: Which layers: `first` (the paper's rule), `uniform` or `last`.
        elements: Which units: `uniform` (the paper's rule), `consecutive`, `random_consistent`, `random_inconsistent`.
        axis_aware: False selects by the sizes of axes alone, whatever they mean: gates and heads are torn apart. For
            comparison with the public code.
        seed: Of the random rules.

    Raises:
        InputError: The checkpoint is missing or cannot be used.
    """

    def __init__(
        self,
        teacher: str,
        made_by: str = "",
        layers: LayerRule = "first",
        elements: ElementRule = "uniform",
        axis_aware: bool = True,
        seed: int = 0,
    ) -> None:
        self.teacher = teacher
        self.made_by = made_by
        self.layers: LayerRule = layers
        self.elements: ElementRule = elements
        self.axis_aware = axis_aware
        self.seed = seed
        self.done = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """See that the teacher is there before any data is prepared."""
        if stage == "fit" and trainer.ckpt_path is None and not Path(self.teacher).is_file():
            advice = f"; make it with `{self.made_by}`" if self.made_by else ""
            raise InputError(f"no teacher's checkpoint at {self.teacher} ({Path(self.teacher).absolute()}){advice}")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Select the weights; every rank arrives at the same ones."""
        if self.done or trainer.ckpt_path is not None:
            return
        teacher = load_recognizer(self.teacher)
        _check_features(pl_module.features, teacher.features)
        weights, report = select_weights(pl_module, teacher, self.layers, self.elements, self.axis_aware, self.seed)
        pl_module.load_state_dict(weights)
        self.done = True
        for line in report:
            rank_zero_info(f"  {line}")
        aware = "along their meaning" if self.axis_aware else "by size alone"
        rank_zero_info(
            f"weight selection: {len(report)} tensors from {self.teacher}, layers {self.layers}, elements "
            f"{self.elements}, axes {aware}"
        )

    def state_dict(self) -> dict[str, Any]:
        """Remember that the selection was made."""
        return {"done": self.done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Learn that the selection was made."""
        self.done = state_dict["done"]


def _check_features(own: Any, source: Any) -> None:  # noqa: ANN401 - Features of either
    for name in ("dimension", "sample_rate", "window_samples", "hop_samples"):
        if type(own) is not type(source) or getattr(own, name) != getattr(source, name):
            raise InputError(
                f"this teacher cannot be used: it hears {type(source).__name__} of {source.dimension} dimensions at "
                f"{source.sample_rate} Hz every {source.hop_samples} samples, the student {type(own).__name__} of "
                f"{own.dimension} at {own.sample_rate} Hz every {own.hop_samples}"
            )
