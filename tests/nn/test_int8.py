"""Linear layers of 8 bits. `tests/models/test_contract.py` has them in every architecture."""

import pytest
import torch
from torch import nn

from asr_lightning.errors import InputError
from asr_lightning.nn.int8 import Int8Linear, use_int8


def test_weights_are_rounded_to_a_255th_of_each_output() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(40, 6)
    with torch.no_grad():
        linear.weight *= torch.logspace(-3, 3, 6).unsqueeze(1)
        linear.weight[2] = 0.0
    rounded = Int8Linear(linear)
    steps = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
    assert bool(((rounded.weight - linear.weight).abs() <= steps / 2 * 1.0001).all())
    assert bool((rounded.weight[2] == 0.0).all())
    assert rounded.bias is not None and torch.equal(rounded.bias, linear.bias)


@pytest.mark.parametrize("bias", [True, False])
def test_outputs_are_those_of_rounded_inputs_and_weights(bias: bool) -> None:
    """By hand: inputs of 7 bits between their extremes, 0 exact, times the rounded weights."""
    torch.manual_seed(1)
    linear = nn.Linear(24, 5, bias=bias)
    rounded = Int8Linear(linear)
    x = torch.randn(2, 3, 24) * 3 + 1
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    step = (high - low) / 127
    zero = round(-low / step)
    inputs = ((x / step).round() + zero).clamp(0, 127).sub(zero) * step
    expected = inputs @ rounded.weight.T + (linear.bias.detach() if bias else 0.0)
    outputs = rounded(x)
    assert outputs.shape == (2, 3, 5)
    # An input between two steps may be rounded to either of them.
    torch.testing.assert_close(outputs, expected, atol=2 * step * float(rounded.weight.abs().max()), rtol=0)
    torch.testing.assert_close(outputs, linear(x).detach(), atol=0.25, rtol=0)


def test_layers_of_other_classes_and_small_ones_stay() -> None:
    network = nn.Sequential(nn.Linear(128, 128), nn.Linear(127, 129), nn.LSTM(128, 128), nn.Bilinear(128, 128, 2))
    others = [*network[1:]]
    assert use_int8(network) == 1
    assert isinstance(network[0], Int8Linear) and [*network[1:]] == others
    with pytest.raises(InputError, match="LSTM has no linear layers of 16,384 weights or more"):
        use_int8(nn.LSTM(128, 128))
