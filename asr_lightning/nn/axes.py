"""What the axes of a parameter mean, so that weights can be selected along them.

An axis of a weight is seldom a plain list of hidden units: an LSTM packs its four gates into one, attention its heads,
a projection after convolutions has channels × frequencies. A module says so in a method

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]

by the names of the parameters and buffers below it; a module's word goes before that of the modules inside it. What
nobody names is plain: hidden units along the first two dimensions of a weight, and taps of a convolution beyond them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Units:
    """Hidden units, channels or heads: any of them can be left out."""

    size: int


@dataclass(frozen=True)
class Fixed:
    """Parts with a meaning of their own, as gates, directions or frequencies: all are needed, in this order."""

    size: int
    name: str


@dataclass(frozen=True)
class Taps:
    """Places of a convolution kernel around its centre."""

    size: int


@dataclass(frozen=True)
class Tokens:
    """Entries of a vocabulary."""

    names: tuple[str, ...]

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self.names)


Factor = Units | Fixed | Taps | Tokens
Product = tuple[Factor, ...]  # a flattened axis: the last factor runs fastest
Axis = tuple[Product, ...]  # products one behind the other, as in a concatenation


def axis(*factors: Factor) -> Axis:
    """Return one axis that is the product of the factors."""
    return (factors,)


def units(size: int) -> Axis:
    """Return a plain axis of hidden units."""
    return axis(Units(size))


def module_axes(module: nn.Module) -> dict[str, tuple[Axis, ...]]:
    """Return the axes of every parameter and buffer of a module, by its name in the state_dict."""
    axes = dict(_declared(module))
    modules = dict(module.named_modules())
    for name, tensor in module.state_dict().items():
        if name not in axes:
            axes[name] = _plain(tensor.shape, modules[name.rpartition(".")[0]])
        sizes = tuple(axis_size(one) for one in axes[name])
        assert sizes == tuple(tensor.shape), f"{name}: declared axes have sizes {sizes}, it is {tuple(tensor.shape)}"
    return axes


def axis_size(one: Axis) -> int:
    """Return how many entries an axis has."""
    total = 0
    for product in one:
        size = 1
        for factor in product:
            size *= factor.size
        total += size
    return total


def _declared(module: nn.Module) -> Iterator[tuple[str, tuple[Axis, ...]]]:
    # Inner modules first: `dict` keeps what comes last, and the outer one knows more.
    for name, part in reversed(list(module.named_modules())):
        own = _lstm_axes(part) if isinstance(part, nn.LSTM) else {}
        if hasattr(part, "parameter_axes"):
            own = part.parameter_axes()
        for parameter, axes in own.items():
            yield (f"{name}.{parameter}" if name else parameter), axes


def _lstm_axes(lstm: nn.LSTM) -> dict[str, tuple[Axis, ...]]:
    """Return the axes of torch's LSTM: four gates packed, deeper layers fed by both directions."""
    gates = axis(Fixed(4, "gates"), Units(lstm.hidden_size))
    directions = 2 if lstm.bidirectional else 1
    output = lstm.proj_size or lstm.hidden_size
    axes: dict[str, tuple[Axis, ...]] = {}
    for layer in range(lstm.num_layers):
        below = units(lstm.input_size) if layer == 0 else axis(Fixed(directions, "directions"), Units(output))
        for suffix in ("", "_reverse")[:directions]:
            axes[f"weight_ih_l{layer}{suffix}"] = (gates, below)
            axes[f"weight_hh_l{layer}{suffix}"] = (gates, units(output))
            axes[f"bias_ih_l{layer}{suffix}"] = (gates,)
            axes[f"bias_hh_l{layer}{suffix}"] = (gates,)
            if lstm.proj_size:
                axes[f"weight_hr_l{layer}{suffix}"] = (units(output), units(lstm.hidden_size))
    return axes


def _plain(shape: tuple[int, ...], owner: nn.Module) -> tuple[Axis, ...]:
    convolution = isinstance(owner, nn.Conv1d | nn.Conv2d)
    return tuple(axis(Taps(size)) if convolution and place >= 2 else units(size) for place, size in enumerate(shape))
