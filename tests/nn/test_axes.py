import pytest
import torch
from torch import nn

from asr_lightning.errors import InputError
from asr_lightning.nn.axes import Axis, Fixed, Taps, Units, axis, axis_size, module_axes, units


def test_an_axis_is_as_large_as_its_products_together() -> None:
    assert axis_size(axis(Units(3), Fixed(5, "frequencies"))) == 15
    assert axis_size(((Units(3),), (Fixed(2, "directions"), Units(4)))) == 11


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_layers_of_torch_pack_gates_and_directions(kind: type[nn.RNNBase], gates: int) -> None:
    axes = module_axes(kind(5, 3, num_layers=2, bidirectional=True))
    packed = axis(Fixed(gates, "gates"), Units(3))
    assert axes["weight_ih_l0_reverse"] == (packed, units(5))
    assert axes["weight_ih_l1"] == (packed, axis(Fixed(2, "directions"), Units(3)))
    assert axes["weight_hh_l1"] == (packed, units(3))
    assert axes["bias_hh_l1_reverse"] == (packed,)


def test_a_projected_lstm_reads_its_projection() -> None:
    axes = module_axes(nn.LSTM(5, 4, num_layers=2, proj_size=3, bias=False))
    packed = axis(Fixed(4, "gates"), Units(4))
    assert axes["weight_hh_l0"] == (packed, units(3))
    assert axes["weight_hr_l0"] == (units(3), units(4))
    assert axes["weight_ih_l1"] == (packed, axis(Fixed(1, "directions"), Units(3)))
    assert "bias_ih_l0" not in axes


def test_only_a_centered_convolution_has_a_center() -> None:
    layers = nn.ModuleDict(
        {
            "centered": nn.Conv1d(2, 3, 5, padding=2),
            "dilated": nn.Conv1d(2, 3, 5, padding=4, dilation=2),
            "same": nn.Conv1d(2, 3, 5, padding="same"),
            "causal": nn.Conv1d(2, 3, 5),
            "flat": nn.Conv2d(2, 3, (3, 5), padding=(1, 0)),
        }
    )
    axes = module_axes(layers)
    for name in ("centered", "dilated", "same"):
        assert axes[f"{name}.weight"] == (units(3), units(2), axis(Taps(5)))
    assert axes["causal.weight"][2] == axis(Fixed(5, "taps"))
    assert axes["flat.weight"][2:] == (axis(Taps(3)), axis(Fixed(5, "taps")))
    assert axes["flat.bias"] == (units(3),)


def test_a_grouped_convolution_writes_its_groups_one_behind_the_other() -> None:
    axes = module_axes(
        nn.ModuleDict({"grouped": nn.Conv1d(6, 9, 1, groups=3), "depthwise": nn.Conv1d(6, 6, 1, groups=6)})
    )
    grouped = axis(Units(3), Units(3))
    assert axes["grouped.weight"][:2] == (grouped, units(2))
    assert axes["grouped.bias"] == (grouped,)
    assert axes["depthwise.weight"][:2] == (units(6), units(1))


def test_what_torch_packs_is_not_taken_for_plain_units() -> None:
    attention = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
    with pytest.raises(
        InputError, match=r"attention\.in_proj_weight is of torch's MultiheadAttention, .* `parameter_axes`"
    ):
        module_axes(attention)


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        return {
            "linear.weight": (axis(Fixed(2, "inner"), Units(2)), units(6)),
            "linear.bias": (axis(Fixed(4, "inner")),),
        }


class Outer(nn.Module):
    def __init__(self, declared: dict[str, tuple[Axis, ...]]) -> None:
        super().__init__()
        self.inner = Inner()
        self.declared = declared

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        return self.declared


def test_the_outer_modules_word_goes_first() -> None:
    outer = (units(4), axis(Units(2), Fixed(3, "outer")))
    axes = module_axes(Outer({"inner.linear.weight": outer}))
    assert axes["inner.linear.weight"] == outer
    assert axes["inner.linear.bias"] == (axis(Fixed(4, "inner")),)


@pytest.mark.parametrize("declared", [{"inner.linear.bias": (units(5),)}, {"inner.linear.bias": (units(4), units(1))}])
def test_declared_axes_of_another_size_are_caught(declared: dict[str, tuple[Axis, ...]]) -> None:
    with pytest.raises(AssertionError, match=r"inner\.linear\.bias: declared axes have sizes .* it is \(4,\)"):
        module_axes(Outer(declared))


def test_axes_of_what_is_not_there_are_caught() -> None:
    with pytest.raises(AssertionError, match=r"unknown parameters.*inner\.liner\.bias"):
        module_axes(Outer({"inner.liner.bias": (units(4),)}))


def test_shared_modules_and_numbers_have_axes_under_each_name() -> None:
    norm = nn.BatchNorm1d(3)
    axes = module_axes(nn.ModuleDict({"a": norm, "b": norm}))
    assert axes["a.num_batches_tracked"] == axes["b.num_batches_tracked"] == ()
    assert axes["b.running_var"] == (units(3),)
    assert torch.equal(norm.num_batches_tracked, torch.tensor(0))
