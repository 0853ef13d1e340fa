from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._python_dispatch import TorchDispatchMode

from asr_lightning.errors import InputError
from asr_lightning.models.deep_speech_2 import Kind, RecurrentLayer
from asr_lightning.nn import recurrent
from asr_lightning.nn.axes import module_axes, units
from asr_lightning.nn.recurrent import (
    LSTM,
    BidirectionalLSTM,
    ProjectedLSTMEncoder,
    PyramidalLSTMEncoder,
    weights_cast_once,
)


def test_it_is_the_bidirectional_lstm_of_packed_sequences() -> None:
    torch.manual_seed(0)
    ours, reference = BidirectionalLSTM(3, 4), nn.LSTM(3, 4, batch_first=True, bidirectional=True)
    with torch.no_grad():
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            getattr(reference, name).copy_(getattr(ours.forward_lstm, name))
            getattr(reference, f"{name}_reverse").copy_(getattr(ours.backward_lstm, name))
    lengths = torch.tensor([2, 6, 1, 5])
    x = torch.randn(4, 8, 3, requires_grad=True)  # random behind the ends, and longer than the longest
    packed, _ = reference(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    expected, _ = pad_packed_sequence(packed, batch_first=True)
    y = ours(x, lengths)
    assert y.shape == (4, 8, 8)
    is_frame = torch.arange(6) < lengths.unsqueeze(1)
    torch.testing.assert_close(y[:, :6][is_frame], expected[is_frame])

    cotangent = torch.randn_like(expected[is_frame])
    [gradient] = torch.autograd.grad(y[:, :6][is_frame], x, cotangent)
    [expected_gradient] = torch.autograd.grad(expected[is_frame], x, cotangent)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("computes", [True, False])
def test_autocast_is_left_where_the_processor_has_no_such_lstm(
    dtype: torch.dtype, computes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if computes and not recurrent.computes_lstm(dtype):
        pytest.skip(f"this processor has no LSTM in {dtype}")
    monkeypatch.setattr(recurrent, "computes_lstm", lambda _: computes)
    lstm, x = LSTM(3, 4), torch.randn(2, 5, 3, requires_grad=True)
    state = (torch.randn(1, 2, 4), torch.randn(1, 2, 4))
    expected, (hidden, cell) = lstm(x, state)
    with torch.autocast("cpu", dtype):
        y, new_state = lstm(x.to(dtype), (state[0].to(dtype), state[1].to(dtype)))
        assert torch.is_autocast_enabled("cpu")
    assert y.dtype == (dtype if computes else torch.float32)
    for value, reference in ((y, expected), (new_state[0], hidden), (new_state[1], cell)):
        torch.testing.assert_close(value.float(), reference, rtol=0.05, atol=0.02)
    y.float().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


class Casts(TorchDispatchMode):
    """Counts casts of weights."""

    def __init__(self, weights: list[torch.Tensor]) -> None:
        super().__init__()
        self.shapes, self.count = {tuple(weight.shape) for weight in weights}, 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:  # noqa: ANN401
        name = str(function)
        self.count += name == "aten._to_copy.default" and tuple(arguments[0].shape) in self.shapes
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("kind", ["gru", "vanilla"])
def test_weights_of_a_recurrence_are_cast_once_as_lightning_casts(kind: Kind, batch_norm: bool) -> None:
    torch.manual_seed(0)
    layer = RecurrentLayer(kind, units(5), 3, batch_norm=batch_norm)
    x, lengths = torch.randn(2, 9, 5), torch.tensor([9, 7])
    weights = [weight for weight in layer.parameters() if weight.dim() == 2]
    gradients = []
    for cache in (False, True):  # Lightning switches it off
        with Casts(weights) as casts, torch.autocast("cpu", torch.bfloat16, cache_enabled=cache):
            y = torch.cat(layer(x, lengths), dim=2)
        assert casts.count <= 2 * len(weights), "in forward, and where BatchNorm is folded in, of what is folded"
        gradients.append(torch.autograd.grad(y.float().sum(), weights))
    for uncached, cached in zip(*gradients, strict=True):
        torch.testing.assert_close(uncached, cached, rtol=0, atol=0)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("kind", ["gru", "vanilla"])
def test_weights_are_cast_once_in_inference_mode(kind: Kind, batch_norm: bool) -> None:
    """Lightning validates in inference mode, in which autocast caches nothing."""
    torch.manual_seed(0)
    layer = RecurrentLayer(kind, units(5), 3, batch_norm=batch_norm).eval()
    x, lengths = torch.randn(2, 9, 5), torch.tensor([9, 7])
    weights = [weight for weight in layer.parameters() if weight.dim() == 2]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = torch.cat(layer(x, lengths), dim=2)
    for cache in (False, True):
        with (
            torch.inference_mode(),
            Casts(weights) as casts,
            torch.autocast("cpu", torch.bfloat16, cache_enabled=cache),
            weights_cast_once(x.device),
        ):
            assert not torch.is_grad_enabled()
            y = torch.cat(layer(x, lengths), dim=2)
        assert casts.count == len(weights) and torch.equal(y, expected)


def test_what_is_cast_without_gradients_gets_gradients_later() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        with torch.no_grad(), weights_cast_once(weight.device):
            weight @ weight
        (weight @ torch.ones(2, 2)).sum().backward()
    assert weight.grad is not None and weight.grad.eq(2).all()


def test_the_processor_is_asked_without_random_numbers() -> None:
    recurrent.computes_lstm.cache_clear()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    recurrent.computes_lstm(torch.bfloat16)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_a_step_of_a_search_is_a_frame_of_the_layer(rows: int) -> None:
    torch.manual_seed(0)
    layer = LSTM(6, 4)
    x, state = torch.randn(rows, 3, 6), (torch.randn(1, rows, 4), torch.randn(1, rows, 4))
    expected, last = layer(x, state)
    outputs = []
    with torch.no_grad():
        for frame in range(3):
            assert layer._is_quick_step(x[:, frame : frame + 1])
            output, state = layer(x[:, frame : frame + 1], state)
            outputs.append(output)
    torch.testing.assert_close((torch.cat(outputs, dim=1), *state), (expected, *last))


def test_a_row_without_frames_changes_no_other() -> None:
    torch.manual_seed(0)
    lstm, x = BidirectionalLSTM(3, 4), torch.randn(2, 5, 3)
    y = lstm(x, torch.tensor([0, 5]))
    assert y.isfinite().all()
    torch.testing.assert_close(y[1:], lstm(x[1:], torch.tensor([5])))


def test_the_pyramid_reads_pairs() -> None:
    encoder = PyramidalLSTMEncoder(3, hidden=4, layers=2, plain_layers=1).eval()
    x = torch.randn(1, 7, 3)
    below = encoder.plain[0](x, torch.tensor([7]))  # 7 frames, so that the last pair of each layer has one frame only
    for layer, pairs in zip(encoder.pyramid, (4, 2), strict=True):
        frames = torch.cat([below, torch.zeros(1, below.shape[1] % 2, 8)], dim=1)
        joined = torch.stack([torch.cat([frames[0, 2 * i], frames[0, 2 * i + 1]]) for i in range(pairs)]).unsqueeze(0)
        below = layer(joined, torch.tensor([pairs]))
    encoded, lengths = encoder(x, torch.tensor([7]))
    assert lengths.tolist() == [2] and encoded.shape == (1, 2, encoder.dimension)
    torch.testing.assert_close(encoded, below)


@pytest.mark.parametrize("frames", [1, 7, 8, 9, 16, 17])
def test_three_pyramidal_layers_make_eight_times_fewer_frames(frames: int) -> None:
    encoded, lengths = PyramidalLSTMEncoder(3, hidden=2)(torch.randn(2, frames, 3), torch.tensor([frames, 1]))
    assert lengths.tolist() == [-(-frames // 8), 1] and encoded.shape[1] == lengths[0]


@pytest.mark.parametrize("last_tanh", [True, False])
def test_projected_layers_pass_every_few_frames_on(last_tanh: bool) -> None:
    encoder = ProjectedLSTMEncoder(3, hidden=4, layers=3, projection=5, subsampling=[2, 3], last_tanh=last_tanh).eval()
    x, count = torch.randn(1, 11, 3), 11
    below = x
    for layer, projection, step in zip(encoder.layers, encoder.projections, (2, 3, 1), strict=True):
        out = layer(below, torch.tensor([count]))
        projected = [projection(out[0, frame]) for frame in range(0, count, step)]
        linear = layer is encoder.layers[2] and not last_tanh
        below, count = torch.stack(projected if linear else [frame.tanh() for frame in projected])[None], len(projected)
    encoded, lengths = encoder(x, torch.tensor([11]))
    assert lengths.tolist() == [2] == [count]
    torch.testing.assert_close(encoded, below)


def test_layers_1_and_2_halve_the_frames_where_nothing_else_is_said() -> None:
    encoder, frame_counts = ProjectedLSTMEncoder(3, hidden=4, layers=4, projection=5), []
    for projection in encoder.projections:
        projection.register_forward_hook(lambda _, inputs, output: frame_counts.append(output.shape[1]))
    encoder(torch.randn(1, 11, 3), torch.tensor([11]))
    assert frame_counts == [6, 3, 3, 3]


def test_without_a_pyramid_all_frames_are_left() -> None:
    encoder, x = PyramidalLSTMEncoder(3, hidden=4, layers=0, plain_layers=2).eval(), torch.randn(1, 7, 3)
    encoded, lengths = encoder(x, torch.tensor([7]))
    assert lengths.tolist() == [7]
    torch.testing.assert_close(encoded, encoder.plain[1](encoder.plain[0](x, lengths), lengths))
    assert set(module_axes(encoder)) == set(encoder.state_dict())


def test_an_encoder_without_layers_is_refused() -> None:
    with pytest.raises(InputError, match="at least one of layers and plain_layers, got layers=0, plain_layers=0"):
        PyramidalLSTMEncoder(3, hidden=4, layers=0)


@pytest.mark.parametrize("subsampling", [[1, 2, 2], [2, 0]])
def test_steps_that_do_not_fit_the_layers_are_refused(subsampling: list[int]) -> None:
    with pytest.raises(ValueError, match="at most 2 numbers"):
        ProjectedLSTMEncoder(3, hidden=4, layers=2, projection=5, subsampling=subsampling)


@pytest.mark.parametrize(
    "encoder",
    [PyramidalLSTMEncoder(3, 4, plain_layers=1), ProjectedLSTMEncoder(3, 4, 3, 5)],
    ids=["pyramid", "projected"],
)
def test_every_axis_of_the_encoders_is_known(encoder: nn.Module) -> None:
    assert set(module_axes(encoder)) == set(encoder.state_dict())
