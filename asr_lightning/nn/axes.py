"""Meaning of the axes of parameters, for the selection of weights along them.

An axis of a weight is seldom a plain list of hidden units: an LSTM packs its four gates into one axis, attention its
heads, a projection after convolutions has channels × frequencies. A module defines this in a method

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]

by the names of the parameters and buffers below it; the definition of an outer module overrides those of inner ones.
Other axes are those of torch's modules (gates of recurrent layers, taps and groups of convolutions) or plain hidden
units. Modules of torch that pack other things into one axis, as `nn.MultiheadAttention`, need a definition.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from torch import nn

from asr_lightning.errors import InputError

PLAIN = (  # modules of torch that pack nothing into an axis
    nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.BatchNorm1d,
    nn.BatchNorm2d, nn.PReLU, nn.ParameterList, nn.ParameterDict,
)  # fmt: skip


@dataclass(frozen=True)
class Units:
    """Hidden units, channels or heads, of which any can be left out."""

    size: int


@dataclass(frozen=True)
class Fixed:
    """Parts with a fixed meaning, as gates, directions or frequencies: all are needed, in this order."""

    size: int
    name: str


@dataclass(frozen=True)
class Taps:
    """Positions of a convolution kernel around its center."""

    size: int


@dataclass(frozen=True)
class Tokens:
    """Entries of a vocabulary."""

    names: tuple[str, ...]

    @property
    def size(self) -> int:
        """Number of tokens."""
        return len(self.names)


Factor = Units | Fixed | Taps | Tokens
Product = tuple[Factor, ...]  # a flattened axis: the last factor varies fastest
Axis = tuple[Product, ...]  # a concatenation of products


def axis(*factors: Factor) -> Axis:
    """Return one axis that is the product of the factors."""
    return (factors,)


def units(size: int) -> Axis:
    """Return a plain axis of hidden units."""
    return axis(Units(size))


def module_axes(module: nn.Module) -> dict[str, tuple[Axis, ...]]:
    """Return the axes of every parameter and buffer of a module, by its name in the state_dict.

    Raises:
        InputError: A module of torch has axes that are not known.
    """
    axes = dict(_declared(module))
    modules = dict(module.named_modules(remove_duplicate=False))
    tensors = module.state_dict()
    assert not (unknown := axes.keys() - tensors.keys()), f"axes of unknown parameters: {unknown}"
    for name, tensor in tensors.items():
        if name not in axes:
            axes[name] = _plain(name, tensor.shape, modules[name.rpartition(".")[0]])
        sizes = tuple(map(axis_size, axes[name]))
        assert sizes == tuple(tensor.shape), f"{name}: declared axes have sizes {sizes}, it is {tuple(tensor.shape)}"
    return axes


def axis_size(axis: Axis) -> int:
    """Return the number of entries of an axis."""
    return sum(prod(factor.size for factor in product) for product in axis)


def _declared(module: nn.Module) -> Iterator[tuple[str, tuple[Axis, ...]]]:
    # Inner modules first: `dict` keeps the last value of a name, which is that of the outer module.
    for name, part in reversed(list(module.named_modules(remove_duplicate=False))):
        declared = _recurrent_axes(part) if isinstance(part, nn.RNNBase) else {}
        if isinstance(part, nn.RNNCellBase):
            declared = _cell_axes(part)
        if hasattr(part, "parameter_axes"):
            declared = part.parameter_axes()
        for parameter, axes in declared.items():
            yield (f"{name}.{parameter}" if name else parameter), axes


def _recurrent_axes(part: nn.RNNBase) -> dict[str, tuple[Axis, ...]]:
    """Return the axes of torch's LSTM, GRU or RNN: gates are packed, deeper layers read both directions."""
    hidden, output = part.hidden_size, part.proj_size or part.hidden_size
    gates = axis(Fixed(part.state_dict()["weight_ih_l0"].shape[0] // hidden, "gates"), Units(hidden))
    below = axis(Fixed(2 if part.bidirectional else 1, "directions"), Units(output))
    axes: dict[str, tuple[Axis, ...]] = {}
    for name, _ in part.named_parameters():
        if name.startswith("weight_ih"):
            axes[name] = (gates, units(part.input_size) if "_l0" in name else below)
        elif name.startswith("weight_hh"):
            axes[name] = (gates, units(output))
        elif name.startswith("weight_hr"):
            axes[name] = (units(output), units(hidden))
        else:
            axes[name] = (gates,)
    return axes


def _cell_axes(part: nn.RNNCellBase) -> dict[str, tuple[Axis, ...]]:
    """Return the axes of torch's LSTMCell, GRUCell or RNNCell."""
    gates = axis(Fixed(part.weight_hh.shape[0] // part.hidden_size, "gates"), Units(part.hidden_size))
    weights = {"weight_ih": (gates, units(part.input_size)), "weight_hh": (gates, units(part.hidden_size))}
    return {**weights, **{name: (gates,) for name in ("bias_ih", "bias_hh") if part.bias}}


def _plain(name: str, shape: tuple[int, ...], owner: nn.Module) -> tuple[Axis, ...]:
    if type(owner).__module__.startswith("torch.nn.") and not isinstance(owner, PLAIN):
        raise InputError(
            f"{name} is of torch's {type(owner).__name__}, which may pack several parts into one axis: expected "
            "`parameter_axes` of a module around it that names them"
        )
    axes = [units(size) for size in shape]
    if isinstance(owner, nn.Conv1d | nn.Conv2d) and 1 < owner.groups < owner.out_channels:
        axes[0] = axis(Units(owner.groups), Units(owner.out_channels // owner.groups))
    if isinstance(owner, nn.Conv1d | nn.Conv2d) and len(shape) > 1:
        for dimension, size in enumerate(shape[2:]):
            centered = owner.padding == "same" or owner.padding[dimension] * 2 == owner.dilation[dimension] * (size - 1)
            # A kernel with another padding has no center, so a smaller kernel cannot be selected from it.
            axes[dimension + 2] = axis(Taps(size) if centered else Fixed(size, "taps"))
    return tuple(axes)
