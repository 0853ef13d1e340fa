"""Initialize a student from a larger teacher by selecting weights [Han et al. 2024 §II.2; Xu et al. 2024].

The method needs consistency: the units of a hidden axis that are kept where a layer writes it must be those that are
kept wherever a layer reads it. So weights are selected along the meaning of their axes (`asr_lightning.nn.axes`):

| axis                                           | what a student takes                                              |
|------------------------------------------------|-------------------------------------------------------------------|
| hidden units, channels, heads                  | those of the element rule, the same wherever the sizes are        |
| gates, directions, GLU halves, frequencies     | all; the element rule works within each of them                   |
| heads × units, channels × frequencies          | the element rule, factor by factor                                |
| taps of a centered convolution                  | the central ones, so that a tap stays as many frames away         |
| vocabulary                                     | the row of the same token; tokens the teacher lacks keep their own|
| layers (entries of a `ModuleList`)             | those of the layer rule                                           |
"""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal
from zlib import crc32

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from asr_lightning.audio.features import Features
from asr_lightning.callbacks.initialization import FirstWeights
from asr_lightning.errors import InputError
from asr_lightning.models.checkpoints import load_recognizer
from asr_lightning.nn.axes import Axis, Factor, Fixed, Product, Taps, Tokens, axis_size, module_axes, units

LayerRule = Literal["first", "uniform", "last"]
ElementRule = Literal["uniform", "consecutive", "random_consistent", "random_inconsistent"]


@dataclass(frozen=True)
class Selected:
    """The weights that one parameter of the student received.

    Attributes:
        name: In the student.
        source: The parameter of the teacher; empty if it has none and the student keeps its own values.
        axes: Per axis, in words, what was taken.
        share: Of its values that are the teacher's, from 0 to 1.
    """

    name: str
    source: str
    axes: tuple[str, ...]
    share: float

    def __str__(self) -> str:
        if not self.source:
            return f"{self.name:56}  its own values: the teacher has no such part"
        elsewhere = f"  from {self.source}" if self.source != self.name else ""
        return f"{self.name:56}  {' | '.join(self.axes) or 'its value'}{elsewhere}"


def uniform_indices(teacher: int, student: int) -> Tensor:
    """Return `student` indices spread evenly over `teacher` indices, as the public code of Xu et al. 2024 does."""
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
            the same sizes, or random ones drawn for each axis of each parameter anew.
        axis_aware: False ignores what axes mean and selects by their sizes alone, as the public code of Xu et al. does.
        seed: Of the random rules.

    Returns:
        A state_dict of the student, and what each entry of it received.

    Raises:
        InputError: The teacher is smaller, shallower, of another structure or features, or shares no token.
    """
    modules = teacher_modules(student, teacher, layers)
    axes_of = module_axes if axis_aware else _plain_axes
    axes, teacher_axes, teacher_weights = axes_of(student), axes_of(teacher), teacher.state_dict()
    parts = dict(teacher.named_children())
    weights: dict[str, Tensor] = {}
    report: list[Selected] = []
    for name, tensor in student.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        source = f"{modules[owner]}.{leaf}".strip(".")
        if source not in teacher_weights and name.split(".")[0] not in parts:
            weights[name] = tensor.detach().clone()
            report.append(Selected(name, "", (), 0.0))
            continue
        if len(axes[name]) != len(teacher_axes.get(source, ())):
            raise _teacher_error(f"it has no {source} like the student's {name}")
        picks = []
        for axis, pair in enumerate(zip(axes[name], teacher_axes[source], strict=True)):
            salt = f"{seed} {name}.{axis}" if elements == "random_inconsistent" else f"{seed} "
            try:
                picks.append(pick_axis(*pair, partial(_indices, elements, salt)))
            except InputError as error:
                raise _teacher_error(f"axis {axis} of {name} {error}") from None
        weights[name] = take(tensor.detach(), teacher_weights[source].detach(), [pick.indices for pick in picks])
        share = math.prod(float((pick.indices >= 0).double().mean()) for pick in picks)
        report.append(Selected(name, source, tuple(pick.words for pick in picks), share))
    return weights, report


def _teacher_error(reason: str) -> InputError:
    return InputError(f"this teacher cannot be used: {reason}")


def teacher_modules(student: nn.Module, teacher: nn.Module, rule: LayerRule) -> dict[str, str]:
    """Return the teacher's name of each of the student's modules, by the layer rule.

    Raises:
        InputError: The teacher has fewer layers, or a part of another class.
    """
    modules = dict(teacher.named_modules(remove_duplicate=False))
    names = {"": ""}
    layers: dict[str, Tensor] = {}  # by the name of a ModuleList, which of the teacher's its entries are
    for name, module in student.named_modules(remove_duplicate=False):
        parent, _, leaf = name.rpartition(".")
        names[name] = f"{names[parent]}.{layers[parent][int(leaf)] if parent in layers else leaf}".strip(".")
        source = modules.get(names[name])
        if source is None or not module.state_dict():
            continue
        if not isinstance(module, type(source)) and not isinstance(source, type(module)):
            student_class, teacher_class = type(module).__name__, type(source).__name__
            raise _teacher_error(
                f"{name or 'the recognizer'} is of class {student_class}, but {teacher_class} in the teacher"
            )
        if isinstance(module, nn.ModuleList):
            if len(source) < len(module):
                raise _teacher_error(f"{name} has {len(module)} layers, but only {len(source)} in the teacher")
            layers[name] = {
                "first": torch.arange(len(module)),
                "uniform": uniform_indices(len(source), len(module)),
                "last": torch.arange(len(source) - len(module), len(source)),
            }[rule]
        if isinstance(module, nn.RNNBase) and rule != "first" and module.num_layers != source.num_layers:
            raise _teacher_error(f"{name} has all its layers in one module, of which `layers: {rule}` cannot choose")
    return names


IndexRule = Callable[[int, int], Tensor]  # (teacher's size, student's size) -> indices, rising


def _indices(elements: ElementRule, salt: str, teacher: int, student: int) -> Tensor:
    if teacher < student:
        raise InputError(f"has {student} entries, but only {teacher} in the teacher: a teacher must be at least as "
                         "large as its student everywhere")  # fmt: skip
    if elements == "uniform":
        return uniform_indices(teacher, student)
    if elements == "consecutive":
        return torch.arange(student)
    generator = torch.Generator().manual_seed(crc32(f"{salt} {teacher} {student}".encode()))
    return torch.randperm(teacher, generator=generator)[:student].sort().values


@dataclass(frozen=True)
class AxisSelection:
    """Index of the source for each index of an axis, -1 where it keeps its own value; and the same in words."""

    indices: Tensor
    words: str


def pick_axis(own: Axis, source: Axis, rule: IndexRule) -> AxisSelection:
    """Return the selection for an axis from the same axis of another network.

    Args:
        own: The meaning of the axis.
        source: The meaning of the other network's axis.
        rule: Chooses among units where the sizes differ, from `(source's size, own size)`.

    Raises:
        InputError: The axes mean different things, or the rule refuses their sizes.
    """
    if len(own) != len(source):
        raise InputError(f"joins {len(own)} parts, but {len(source)} in the checkpoint")
    indices, words, start = [], [], 0
    for product, source_product in zip(own, source, strict=True):
        pick = _pick_product(product, source_product, rule)
        indices.append(torch.where(pick.indices < 0, -1, pick.indices + start))
        words.append(pick.words)
        start += axis_size((source_product,))
    return AxisSelection(torch.cat(indices), " and ".join(words))


def _pick_product(own: Product, source: Product, rule: IndexRule) -> AxisSelection:
    if [type(factor) for factor in own] != [type(factor) for factor in source]:
        raise InputError(f"is {own}, but {source} in the checkpoint")
    indices, words = torch.zeros(1, dtype=torch.int64), []
    for factor, source_factor in zip(own, source, strict=True):
        pick = _pick_factor(factor, source_factor, rule)
        outer, inner = indices.unsqueeze(1), pick.indices
        indices = torch.where((outer < 0) | (inner < 0), -1, outer * source_factor.size + inner).flatten()
        words.append(pick.words)
    return AxisSelection(indices, " × ".join(words))


def _pick_factor(own: Factor, source: Factor, rule: IndexRule) -> AxisSelection:
    sizes = f"{own.size} of {source.size}"
    if isinstance(own, Tokens) and isinstance(source, Tokens):
        return _pick_tokens(own.names, source.names)
    if isinstance(own, Fixed) and isinstance(source, Fixed):
        if own != source:
            raise InputError(f"has {own.size} {own.name}, but {source.size} {source.name} in the checkpoint: both need "
                             "the same features and the same structure")  # fmt: skip
        return AxisSelection(torch.arange(own.size), f"all {own.size} {own.name}")
    if source.size == own.size:
        return AxisSelection(torch.arange(own.size), f"all {own.size}")
    indices = rule(source.size, own.size)
    if isinstance(own, Taps):
        offset, odd = divmod(source.size - own.size, 2)
        if odd:
            raise InputError(f"has {own.size} taps, but {source.size} in the checkpoint: both need to be odd, or both "
                             "even, for one to be centered in the other")  # fmt: skip
        indices = torch.arange(own.size) + offset
        return AxisSelection(
            torch.where((indices < 0) | (indices >= source.size), -1, indices), f"central {sizes} taps"
        )
    return AxisSelection(indices, sizes)


def _pick_tokens(own: tuple[str, ...], source: tuple[str, ...]) -> AxisSelection:
    ids = {token: number for number, token in enumerate(source)}
    shared = [token for token in own if token in ids]
    if all(token.startswith("<") for token in shared):  # <blank>, <unk> and <eos> are in every vocabulary
        raise InputError(f"has a row for each of {len(own)} tokens, {len(source)} in the checkpoint, but the "
                         "tokenizers share none")  # fmt: skip
    return AxisSelection(
        torch.tensor([ids.get(token, -1) for token in own]), f"{len(shared)} of {len(own)} tokens by name"
    )


def take(own: Tensor, source: Tensor, axes: list[Tensor]) -> Tensor:
    """Return `own` with the values of `source` at the indices of each axis; -1 keeps the own value."""
    selected = torch.ones((), dtype=torch.bool)
    values = source.cpu()
    for axis, indices in enumerate(axes):
        values = values.index_select(axis, indices.clamp(min=0))
        selected = selected.unsqueeze(-1) & (indices >= 0)
    return torch.where(selected.to(own.device), values.to(own), own)


def _plain_axes(module: nn.Module) -> dict[str, tuple[Axis, ...]]:
    return {name: tuple(units(size) for size in tensor.shape) for name, tensor in module.state_dict().items()}


class WeightSelection(FirstWeights):
    """Initializes the recognizer from a teacher's checkpoint when training begins; never when it is resumed.

    Args:
        teacher: Path of the teacher's checkpoint; None leaves the weights as they are.
        made_by: The command that makes this checkpoint, for the message when it is missing.
        layers: Which layers: `first` (the paper's rule), `uniform` or `last`.
        elements: Which units: `uniform` (the paper's rule), `consecutive`, `random_consistent`, `random_inconsistent`.
        axis_aware: False selects by the sizes of axes alone, whatever they mean: gates and heads are mixed. For
            comparison with the public code.
        seed: Of the random rules.

    Raises:
        InputError: The checkpoint is missing or cannot be used.
    """

    def __init__(
        self,
        teacher: str | None = None,
        made_by: str = "",
        layers: LayerRule = "first",
        elements: ElementRule = "uniform",
        axis_aware: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.teacher = teacher
        self.made_by = made_by
        self.layers: LayerRule = layers
        self.elements: ElementRule = elements
        self.axis_aware = axis_aware
        self.seed = seed

    @property
    def is_set_up(self) -> bool:
        """Whether there is a teacher."""
        return self.teacher is not None

    def set_weights(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Select the weights, and print the source of each parameter; all ranks read the same file."""
        assert self.teacher is not None
        if not Path(self.teacher).is_file():
            advice = f"; make it with `{self.made_by}`" if self.made_by else ""
            raise InputError(f"no teacher's checkpoint at {self.teacher} ({Path(self.teacher).absolute()}){advice}")
        teacher = load_recognizer(self.teacher)
        check_features(pl_module.features, teacher.features)  # type: ignore[arg-type] # of any recognizer
        weights, report = select_weights(pl_module, teacher, self.layers, self.elements, self.axis_aware, self.seed)
        pl_module.load_state_dict(weights)
        aware = "along their meaning" if self.axis_aware else "by their sizes alone"
        title = f"weight selection from {self.teacher}: layers {self.layers}, elements {self.elements}, axes {aware};"
        title += " each parameter is from the teacher's of the same name unless another is named"
        rank_zero_info("\n  ".join([title, *map(str, report)]))


def check_features(own: Features, source: Features) -> None:
    """Refuse features that compute something else from the same audio, with the same statistics.

    Args:
        own: Of the model.
        source: Of the checkpoint that its weights are from.

    Raises:
        InputError: They do.
    """
    both = [deepcopy(features).cpu().eval() for features in (own, source)]
    rates = [features.sample_rate for features in both]
    shapes = [{name: tensor.shape for name, tensor in features.state_dict().items()} for features in both]
    same = rates[0] == rates[1] and shapes[0] == shapes[1]
    if same:
        both[0].load_state_dict(source.state_dict())
        audio = torch.randn(1, rates[0], generator=torch.Generator().manual_seed(0)) / 10
        computed, expected = (features(audio, torch.tensor(rates[:1]))[0] for features in both)
        same = computed.shape == expected.shape and torch.allclose(computed, expected, rtol=1e-3, atol=1e-3)
    if not same:
        words = [
            f"{type(features).__name__} of {features.dimension} dimensions, {features.window_samples} samples every "
            f"{features.hop_samples} at {features.sample_rate} Hz, then {type(features.normalization).__name__}"
            for features in both
        ]
        raise InputError(
            f"the checkpoint was trained on other features, {words[1]}; the model's are {words[0]}: train with "
            "those of the checkpoint"
        )
