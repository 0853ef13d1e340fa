from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from asr_lightning.callbacks.weight_selection import select_weights
from asr_lightning.nn.axes import Fixed, Units, axis, axis_size, module_axes
from asr_lightning.nn.projected_lstm import (
    BidirectionalRecurrentProjectionLSTM,
    RecurrentProjectionEncoder,
    RecurrentProjectionLSTM,
    stack_neighbours,
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def random_lstm(*sizes: int) -> RecurrentProjectionLSTM:
    """Weights large enough that a wrong recurrence cannot hide."""
    lstm = RecurrentProjectionLSTM(*sizes).double()
    with torch.no_grad():
        for parameter in lstm.parameters():
            parameter.normal_(std=0.7)
    return lstm


def gradients(y: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad((y * torch.arange(1, y.numel() + 1).view_as(y).cos()).sum(), inputs)


@pytest.mark.parametrize("projection", [0, 3])
@pytest.mark.parametrize(("rows", "frames"), [(3, 7), (1, 7), (3, 1), (1, 1)])
def test_it_is_torchs_projected_lstm_that_reads_no_p(rows: int, frames: int, projection: int) -> None:
    ours = random_lstm(4, 6, 2, projection)
    reference = nn.LSTM(4, 6, proj_size=2 + projection, batch_first=True).double()
    padded = torch.cat([ours.weight_hh, ours.weight_hh.new_zeros(24, projection)], dim=1)
    weights = {
        "weight_ih_l0": ours.weight_ih,
        "weight_hh_l0": padded,
        "weight_hr_l0": ours.weight_hr,
        "bias_ih_l0": ours.bias,
        "bias_hh_l0": torch.zeros_like(ours.bias),
    }
    x = torch.randn(rows, frames, 4, dtype=torch.float64, requires_grad=True)
    inputs = [x, *ours.parameters()]
    y = ours(x)
    expected, _ = torch.func.functional_call(reference, weights, (x,))
    assert y.shape == (rows, frames, 2 + projection)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(gradients(y, inputs), gradients(expected, inputs))


def by_formula(lstm: RecurrentProjectionLSTM, x: Tensor) -> Iterator[Tensor]:
    """[r_t, p_t] of the frames of one utterance x (T, D)."""
    recurrent, plain = lstm.weight_hr.split([lstm.recurrent_projection, lstm.projection])
    r, c = x.new_zeros(lstm.recurrent_projection), x.new_zeros(lstm.hidden)
    for frame in x:
        i, f, g, o = (lstm.weight_ih @ frame + lstm.weight_hh @ r + lstm.bias).chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        m = o.sigmoid() * c.tanh()
        r = recurrent @ m
        yield torch.cat([r, plain @ m])


@pytest.mark.parametrize("sizes", [(4, 6, 2, 3), (4, 5, 3, 2), (2, 3, 4, 2)], ids=["fewer", "as many", "more"])
def test_it_follows_the_formulas_with_any_number_of_projections(sizes: tuple[int, ...]) -> None:
    lstm = random_lstm(*sizes)
    x = torch.randn(2, 9, sizes[0], dtype=torch.float64)
    expected = torch.stack([torch.stack(list(by_formula(lstm, row))) for row in x])
    torch.testing.assert_close(lstm(x), expected)


def test_gradients_are_those_of_finite_differences() -> None:
    lstm = random_lstm(2, 3, 2, 1)
    x = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in lstm.named_parameters()]

    def run(x: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(lstm, dict(zip(names, weights, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *lstm.parameters()))


def test_single_precision_takes_the_fast_kernel_and_agrees() -> None:
    exact = random_lstm(4, 8, 3, 2)
    x = torch.randn(3, 20, 4, dtype=torch.float64)
    fast = RecurrentProjectionLSTM(4, 8, 3, 2)
    fast.load_state_dict(exact.state_dict())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        y = fast(x.float())
    if torch.backends.mkldnn.is_available():
        assert "aten::mkldnn_rnn_layer" in {event.key for event in profile.key_averages()}
    torch.testing.assert_close(y.double(), exact(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        [gradient.double() for gradient in gradients(y, list(fast.parameters()))],
        list(gradients(exact(x), list(exact.parameters()))),
        rtol=1e-3,
        atol=1e-3,
    )


def test_kernels_of_training_and_of_inference_agree() -> None:
    lstm, x = RecurrentProjectionLSTM(4, 8, 3, 2), torch.randn(2, 5, 4)
    expected = lstm.train()(x)
    with torch.no_grad():
        torch.testing.assert_close(lstm.eval()(x), expected)


def test_half_precision_is_near() -> None:
    encoder = RecurrentProjectionEncoder(4, 8, 2, 3, 2, context=1)
    x, lengths = torch.randn(3, 12, 4), torch.tensor([12, 1, 7])
    expected, _ = encoder(x, lengths)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, _ = encoder(x, lengths)
    inputs = list(encoder.parameters())
    for gradient, expected_gradient in zip(gradients(mixed.float(), inputs), gradients(expected, inputs), strict=True):
        assert (
            gradient.dtype == torch.float32 and (gradient - expected_gradient).norm() < 0.05 * expected_gradient.norm()
        )
    half, _ = encoder.bfloat16()(x.bfloat16(), lengths)
    assert half.dtype == torch.bfloat16
    for y in (mixed, half):
        torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.01)


def test_each_direction_begins_at_its_own_end() -> None:
    layer = BidirectionalRecurrentProjectionLSTM(3, 5, 2, 1)
    x = torch.randn(3, 8, 3)
    y = layer(x, torch.tensor([8, 5, 1]))
    for row, length in enumerate((8, 5, 1)):
        alone = x[row : row + 1, :length]
        ahead, back = layer.forward_lstm(alone), layer.backward_lstm(alone.flip(1)).flip(1)
        torch.testing.assert_close(y[row : row + 1, :length], torch.cat([ahead, back], dim=2))


@pytest.mark.parametrize(("context", "subsampling"), [(0, 1), (2, 1), (0, 2), (2, 3)])
@torch.no_grad()
def test_an_utterance_is_the_same_alone_in_company_and_with_padding(context: int, subsampling: int) -> None:
    encoder = RecurrentProjectionEncoder(3, 6, 2, 2, 3, dropout=0.5, context=context, subsampling=subsampling).eval()
    lengths = torch.tensor([1, 5, 12, 7])
    x = torch.randn(4, 12, 3)
    alone = [encoder(x[row : row + 1, :length], lengths[row : row + 1]) for row, length in enumerate(lengths.tolist())]
    for company in (x, torch.cat([x, torch.randn(4, 5, 3)], dim=1)):  # random behind the ends
        encoded, encoded_lengths = encoder(company, lengths)
        for row, (expected, [length]) in enumerate(alone):
            assert encoded_lengths[row] == length == expected.shape[1] == -(-int(lengths[row]) // subsampling)
            torch.testing.assert_close(encoded[row : row + 1, :length], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("frames", [1, 6, 7, 8])
@pytest.mark.parametrize(("context", "step"), [(0, 1), (2, 1), (1, 3), (3, 2)])
def test_frames_are_stacked_with_their_neighbours_in_order(frames: int, context: int, step: int) -> None:
    x = torch.randn(2, frames, 3)
    stacked = stack_neighbours(x, context, step)
    assert stacked.shape == (2, -(-frames // step), 3 * (2 * context + 1))
    for index in range(stacked.shape[1]):
        around = range(index * step - context, index * step + context + 1)
        expected = [x[:, frame] if 0 <= frame < frames else torch.zeros(2, 3) for frame in around]
        torch.testing.assert_close(stacked[:, index], torch.cat(expected, dim=1), rtol=0.0, atol=0.0)


def test_layers_can_be_watched() -> None:
    encoder = RecurrentProjectionEncoder(3, 6, 3, 2, 3, subsampling=2)
    watched: list[Tensor] = []
    for layer in encoder.layers:
        layer.register_forward_hook(lambda _module, _read, output: watched.append(output))
    y, _ = encoder(torch.randn(2, 9, 3), torch.tensor([9, 4]))
    assert [output.shape for output in watched] == [(2, 5, 10)] * 3
    torch.testing.assert_close(watched[-1], y)


def test_the_papers_layers_put_out_1024_dimensions() -> None:
    with torch.device("meta"):
        encoder = RecurrentProjectionEncoder(40, 1024, 3, 256, 256)
    assert encoder.dimension == 1024 == axis_size(encoder.output_axis())
    cells = 1024 * (256 + 256)
    gates = [4 * 1024 * (size + 256 + 1) for size in (40, 1024, 1024)]
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 2 * (sum(gates) + 3 * cells)


@pytest.mark.parametrize(
    "wrong", [{"recurrent_projection": 0}, {"projection": -1}, {"layers": 0}, {"context": -1}, {"subsampling": 0}]
)
def test_sizes_that_make_no_network_are_refused(wrong: dict[str, int]) -> None:
    [(name, value)] = wrong.items()
    sizes = {"hidden": 4, "layers": 1, "recurrent_projection": 2, "projection": 2, **wrong}
    with pytest.raises(ValueError, match=f"at least.*{name}={value}"):
        RecurrentProjectionEncoder(3, **sizes)


def test_every_axis_is_known() -> None:
    encoder = RecurrentProjectionEncoder(3, 4, 2, 2, 1, context=1)
    axes = module_axes(encoder)
    gates, output = axis(Fixed(4, "gates"), Units(4)), ((Units(2),), (Units(1),), (Units(2),), (Units(1),))
    assert set(axes) == set(encoder.state_dict())
    assert encoder.output_axis() == output
    assert axes["layers.0.backward_lstm.weight_ih"] == (gates, axis(Fixed(3, "frames"), Fixed(3, "features")))
    assert axes["layers.1.forward_lstm.weight_ih"] == (gates, output)
    assert axes["layers.1.forward_lstm.weight_hh"] == (gates, axis(Units(2)))
    assert axes["layers.0.forward_lstm.weight_hr"] == (output[:2], axis(Units(4)))
    assert RecurrentProjectionEncoder(3, 4, 1, 2, 0).output_axis() == ((Units(2),), (Units(2),))


def evenly(*sizes: int) -> Tensor:
    """Every other index of axes of twice these sizes, joined."""
    starts = [2 * sum(sizes[:number]) for number in range(len(sizes))]
    return torch.cat([start + 2 * torch.arange(size) for start, size in zip(starts, sizes, strict=True)])


@torch.no_grad()
def test_a_student_planted_among_a_teachers_units_is_selected() -> None:
    cells, recurrent, plain = 4, 3, 2
    student = RecurrentProjectionEncoder(3, cells, 2, recurrent, plain, context=1)
    teacher = RecurrentProjectionEncoder(3, 2 * cells, 2, 2 * recurrent, 2 * plain, context=1)
    gates, output = evenly(*[cells] * 4), evenly(recurrent, plain)
    both = evenly(recurrent, plain, recurrent, plain)
    for name, weight in student.named_parameters():
        reads = {"weight_hh": evenly(recurrent), "weight_hr": evenly(cells)}.get(name.rpartition(".")[2], both)
        writes = output if name.endswith("weight_hr") else gates
        rows = weight.clone()
        if weight.dim() == 2 and not name.startswith("layers.0") or name.endswith(("hh", "hr")):
            rows = weight.new_zeros(len(weight), 2 * weight.shape[1])  # what is not the student's is not read
            rows[:, reads] = weight
        teacher.get_parameter(name)[writes] = rows
    x, lengths = torch.randn(2, 6, 3), torch.tensor([6, 4])
    torch.testing.assert_close(teacher(x, lengths)[0][..., both], student(x, lengths)[0])
    selected, _ = select_weights(RecurrentProjectionEncoder(3, cells, 2, recurrent, plain, context=1), teacher)
    torch.testing.assert_close(selected, dict(student.state_dict()), rtol=0.0, atol=0.0)
