from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from asr_lightning.models.deep_speech_2 import ClippedRNN, DeepSpeech2Encoder, RecurrentLayer
from asr_lightning.models.jasper import Jasper
from asr_lightning.nn.axes import units
from asr_lightning.nn.batch_norm import symmetric_product
from asr_lightning.nn.extractors import Convolutions1d, Convolutions2d
from asr_lightning.nn.frame_attention import HeadAttention, TimeAttention
from asr_lightning.nn.recurrent import LSTM

LENGTHS = torch.tensor([8, 5, 1])
GATES = {"vanilla": 1, "gru": 3, "lstm": 4}


def frames(seed: int = 0) -> Tensor:
    return torch.randn(3, 8, 6, generator=torch.Generator().manual_seed(seed)) + 2.0


def real(x: Tensor) -> Tensor:
    return torch.cat([row[:length] for row, length in zip(x, LENGTHS.tolist(), strict=True)])


def make(kind: Any, batch_norm: Any = True, shared_input: bool = False) -> RecurrentLayer:
    torch.manual_seed(1)
    layer = RecurrentLayer(kind, units(6), 4, batch_norm, shared_input)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.5 + ("norm.weight" in name))
    return layer


def reading_gates(rnn: Any, kind: str) -> nn.Module:
    """The same recurrence over what its gates read: its input matrix is the identity."""
    size = GATES[kind] * 4
    make = {"vanilla": ClippedRNN, "gru": partial(nn.GRU, batch_first=True), "lstm": LSTM}[kind]
    plain = make(size, 4)
    state = {**rnn.state_dict(), "weight_ih_l0": torch.eye(size), "bias_ih_l0": torch.zeros(size)}
    plain.load_state_dict(state)
    return plain


@pytest.mark.parametrize("kind", GATES)
def test_batch_norm_is_on_the_input_term_of_all_real_frames(kind: str) -> None:
    """Forward direction: BatchNorm of W x by torch, then the recurrence; outputs, gradients and statistics."""
    layer = make(kind)
    rnn: Any = layer.forward_rnn
    norm: Any = layer.forward_norm
    torch_norm = nn.BatchNorm1d(GATES[kind] * 4)
    with torch.no_grad():
        torch_norm.weight.copy_(norm.weight)
        torch_norm.bias.copy_(rnn.bias_ih_l0)
    plain = reading_gates(rnn, kind)

    def expected(x: Tensor, weight: Tensor) -> Tensor:
        terms = torch_norm(real(x) @ weight.T)
        parts = terms.split(LENGTHS.tolist())
        return torch.cat([plain(part.unsqueeze(0))[0][0] for part in parts])

    for step in range(2):
        x, x_again = frames(step).requires_grad_(), frames(step).requires_grad_()
        weight = rnn.weight_ih_l0.detach().clone().requires_grad_()
        ahead, _ = layer(x, LENGTHS)
        wanted = expected(x_again, weight)
        torch.testing.assert_close(real(ahead), wanted, rtol=1e-4, atol=1e-4)
        cotangent = torch.randn_like(wanted)
        layer.zero_grad()
        real(ahead).backward(cotangent)
        wanted.backward(cotangent)
        torch.testing.assert_close(x.grad, x_again.grad, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(rnn.weight_ih_l0.grad, weight.grad, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(norm.running_mean, torch_norm.running_mean, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(norm.running_variance, torch_norm.running_var, rtol=1e-4, atol=1e-4)
    layer.eval(), torch_norm.eval()
    torch.testing.assert_close(real(layer(frames(9), LENGTHS)[0]), expected(frames(9), rnn.weight_ih_l0))


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("shared_input", [False, True])
def test_kospeech_rectifies_the_normalized_input_of_a_layer(kind: str, shared_input: bool) -> None:
    """ReLU(BatchNorm(x)) by torch over the real frames, then both directions without any norm."""
    layer = make(kind, "input", shared_input)
    plain = make(kind, False, shared_input)
    plain.load_state_dict(layer.state_dict(), strict=False)
    norm: Any = layer.input_norm
    torch_norm = nn.BatchNorm1d(6)
    with torch.no_grad():
        norm.bias.normal_()
        torch_norm.weight.copy_(norm.weight)
        torch_norm.bias.copy_(norm.bias)

    def expected(x: Tensor) -> Tensor:
        parts = torch_norm(real(x)).relu().split(LENGTHS.tolist())
        return torch.cat([torch.cat(plain(part[None], torch.tensor([len(part)])), dim=2)[0] for part in parts])

    for step in range(2):
        x, x_again = frames(step).requires_grad_(), frames(step).requires_grad_()
        y, wanted = real(torch.cat(layer(x, LENGTHS), dim=2)), expected(x_again)
        torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-4)
        cotangent = torch.randn_like(wanted)
        layer.zero_grad(), plain.zero_grad()
        y.backward(cotangent)
        wanted.backward(cotangent)
        torch.testing.assert_close(x.grad, x_again.grad, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(norm.running_mean, torch_norm.running_mean, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(norm.running_variance, torch_norm.running_var, rtol=1e-4, atol=1e-4)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(layer.get_parameter(name).grad, parameter.grad, rtol=1e-3, atol=1e-3)
    layer.eval(), torch_norm.eval()
    torch.testing.assert_close(real(torch.cat(layer(frames(9), LENGTHS), dim=2)), expected(frames(9)))


def equations(layer: RecurrentLayer, x: Tensor, lengths: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Vanilla units of one W and one BatchNorm, by the paper's equations [Amodei et al. 2016, 3.1 and 3.2], row by row.

    h_t = min(max(B(W x_t) + U h_{t-1}, 0), 20) in each direction, with its own U; B is over all real frames.
    """
    ahead, back, norm = layer.forward_rnn, layer.backward_rnn, layer.forward_norm
    assert isinstance(norm, nn.Module)
    terms = torch.cat([row[:length] for row, length in zip(x, lengths.tolist(), strict=True)]) @ ahead.weight_ih_l0.T
    mean, variance = terms.mean(dim=0), terms.var(dim=0, unbiased=False)
    normed = (terms - mean) / (variance + norm.epsilon).sqrt() * norm.weight + ahead.bias_ih_l0
    outputs = []
    for part in normed.split(lengths.tolist()):
        states = []
        for rnn, order in ((ahead, range(len(part))), (back, range(len(part) - 1, -1, -1))):
            h, hidden = torch.zeros(part.shape[1]), [torch.zeros(0)] * len(part)
            for t in order:
                h = (part[t] + rnn.weight_hh_l0 @ h).clamp(0, 20)
                hidden[t] = h
            states.append(torch.stack(hidden))
        outputs.append((states[0], states[1]))
    return outputs


def test_directions_may_share_their_input_as_in_the_paper() -> None:
    layer = make("vanilla", shared_input=True)
    x, x_again = frames().requires_grad_(), frames().requires_grad_()
    y = torch.cat(layer(x, LENGTHS), dim=2)
    wanted = torch.cat([torch.cat(pair, dim=1) for pair in equations(layer, x_again, LENGTHS)])
    torch.testing.assert_close(real(y), wanted, rtol=1e-4, atol=1e-4)
    cotangent = torch.randn_like(wanted)
    gradients = torch.autograd.grad(real(y), [x, *layer.parameters()], cotangent)
    expected_gradients = torch.autograd.grad(wanted, [x_again, *layer.parameters()], cotangent)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", GATES)
def test_a_shared_input_is_two_directions_with_equal_inputs(kind: str) -> None:
    """Outputs, statistics after a step, and the shared matrix's gradient: the sum of both directions'."""
    shared, apart = make(kind, shared_input=True), make(kind)
    state = shared.state_dict()
    state |= {name.replace("forward", "backward"): value for name, value in state.items() if "forward_norm" in name}
    apart.load_state_dict(state)
    for layer in (shared, apart):
        torch.cat(layer(frames(), LENGTHS), dim=2)[0].square().sum().backward()
    torch.testing.assert_close(shared(frames(1), LENGTHS), apart(frames(1), LENGTHS))
    both = [apart.get_parameter(f"{direction}_rnn.weight_ih_l0").grad for direction in ("forward", "backward")]
    assert both[0] is not None and both[1] is not None
    gradient = shared.get_parameter("forward_rnn.weight_ih_l0").grad
    torch.testing.assert_close(gradient, both[0] + both[1], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(shared.forward_norm.state_dict(), apart.forward_norm.state_dict())  # type: ignore[union-attr]
    count = [sum(parameter.numel() for parameter in layer.parameters()) for layer in (shared, apart)]
    rows = GATES[kind] * 4
    assert count[1] - count[0] == rows * 6 + 2 * rows  # W, its bias and the scale of BatchNorm


@pytest.mark.parametrize("dimension", [1, 3, 4, 17])
def test_a_symmetric_product_is_the_whole_of_it(dimension: int) -> None:
    x = torch.randn(9, dimension, dtype=torch.float64)
    scaled = torch.randn(9, 1, dtype=torch.float64) * x
    torch.testing.assert_close(symmetric_product(scaled, x), scaled.T @ x)


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_backward_direction_reads_each_utterance_from_its_own_end(kind: str, batch_norm: bool) -> None:
    layer = make(kind, batch_norm)
    layer.backward_rnn.load_state_dict(layer.forward_rnn.state_dict())
    if layer.forward_norm is not None and layer.backward_norm is not None:
        layer.backward_norm.load_state_dict(layer.forward_norm.state_dict())
    turned = frames()
    for row, length in enumerate(LENGTHS.tolist()):
        turned[row, :length] = turned[row, :length].flip(0)
    ahead, _ = layer(frames(), LENGTHS)
    _, back = layer(turned, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        torch.testing.assert_close(back[row, :length].flip(0), ahead[row, :length])


def test_vanilla_units_are_torchs_until_they_are_clipped() -> None:
    torch.manual_seed(0)
    rnn, torch_rnn = ClippedRNN(6, 4), nn.RNN(6, 4, nonlinearity="relu", batch_first=True)
    torch_rnn.load_state_dict({**rnn.state_dict(), "bias_hh_l0": torch.zeros(4)})
    torch.testing.assert_close(rnn(frames()), (torch_rnn(frames())[0], torch_rnn(frames())[1][0]))
    assert rnn(frames() * 1e4)[0].max().item() == 20.0


def test_directions_are_summed_or_side_by_side() -> None:
    encoders = []
    for directions in ("sum", "concatenate"):
        torch.manual_seed(0)
        encoders.append(DeepSpeech2Encoder(Convolutions1d(6, [5]), 4, 1, directions=directions).eval())  # type: ignore[arg-type]
    for encoder in encoders:
        encoder.layer_norm = nn.Identity()
    (summed, lengths), (beside, _) = (encoder(frames(), LENGTHS) for encoder in encoders)
    torch.testing.assert_close(summed, beside[:, :, :4] + beside[:, :, 4:])
    assert lengths.tolist() == [4, 3, 1]
    assert [encoder.dimension for encoder in encoders] == [4, 8]


@pytest.mark.parametrize(("attention", "blind"), [(HeadAttention, True), (TimeAttention, False)])
def test_the_published_attention_is_blind_inside_the_recognizer_too(attention: Any, blind: bool) -> None:
    """Behind the attention a frame depends on another one only through what is below it."""
    torch.manual_seed(0)
    encoder = DeepSpeech2Encoder(Convolutions2d(6), 8, 1, attention=lambda read: attention(read, heads=2)).eval()
    recorded: list[Tensor] = []
    encoder.attentions[0].register_forward_pre_hook(lambda module, inputs: recorded.append(inputs[0]))
    encoder(torch.randn(1, 8, 6), torch.tensor([8]))
    [x] = recorded
    x = x.detach().requires_grad_()
    encoder.attentions[0](x, torch.tensor([4]))[0, 0].sum().backward()
    assert x.grad is not None
    assert (x.grad[0, 1:].abs().max() == 0) == blind


def count(module: nn.Module, classes: int = 2_001, dimension: int = 0) -> float:
    """Millions of parameters, with an output layer."""
    return (sum(parameter.numel() for parameter in module.parameters()) + (dimension + 1) * classes) / 1e6


def test_the_published_sizes_have_the_published_numbers_of_parameters() -> None:
    """Against KoSpeech's own, by instantiation: 52.37, 111.78 and 334.70 M with 2,001 classes."""
    with torch.device("meta"):
        deep = DeepSpeech2Encoder(Convolutions2d(80), 1024, 3, directions="concatenate")
        assert count(deep, dimension=2048) == pytest.approx(52.37, abs=0.02)
        assert count(Jasper(80, repeats=3, copies=1), dimension=1024) == pytest.approx(111.78, abs=0.01)
        assert count(Jasper(80), dimension=1024) == pytest.approx(334.70, abs=0.01)


def test_kospeechs_network_has_its_parameters_to_the_last_one() -> None:
    """Against the layers that the report on KoSpeech prints, in torch."""
    with torch.device("meta"):
        encoder = DeepSpeech2Encoder(Convolutions2d(80), 1024, 3, directions="concatenate", batch_norm="input")
        reference = nn.ModuleList([
            nn.Conv2d(1, 32, (41, 11), bias=False), nn.BatchNorm2d(32),
            nn.Conv2d(32, 32, (21, 11), bias=False), nn.BatchNorm2d(32),
            nn.BatchNorm1d(640), nn.GRU(640, 1024, bidirectional=True),
            nn.BatchNorm1d(2048), nn.GRU(2048, 1024, bidirectional=True),
            nn.BatchNorm1d(2048), nn.GRU(2048, 1024, bidirectional=True),
            nn.LayerNorm(2048),
        ])  # fmt: skip
    assert count(encoder, classes=0) == count(reference, classes=0)
    assert count(encoder, classes=0) + 2048 * 2001 / 1e6 == pytest.approx(52.37, abs=0.005)


def test_jasper_says_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"odd kernels .* got channels=\[8\], kernels=\[4\]"):
        Jasper(20, channels=[8], kernels=[4], dropouts=[0.1])


class Names(TorchDispatchMode):
    """Collects the names of operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:  # noqa: ANN401
        self.names.add(str(function))
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("kind", ["vanilla", "gru", "lstm"])
def test_evaluation_copies_no_weights_for_each_frame(
    kind: Any, batch_norm: bool, precision: torch.dtype | None
) -> None:
    layer = RecurrentLayer(kind, units(24), 24, batch_norm).eval()
    frames, lengths = torch.randn(3, 40, 24), torch.tensor([40, 30, 20])
    with (
        torch.inference_mode(),
        torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None, cache_enabled=False),
        Names() as called,
    ):
        layer(frames, lengths)
    assert "aten.bmm.default" not in called.names, "which multiplies each frame with a copy of its own"
