import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from asr_lightning.errors import InputError
from asr_lightning.nn.axes import module_axes, units
from asr_lightning.nn.mechanisms import (
    AdditiveAttention,
    Attention,
    DotAttention,
    FixedContext,
    LocationAwareAttention,
    MultiHeadAttention,
    ScaledDotAttention,
)

QUERY, MEMORY = units(6), units(10)
MECHANISMS: dict[str, Callable[[], Attention]] = {
    "dot": lambda: DotAttention(QUERY, MEMORY, 7),
    "additive": lambda: AdditiveAttention(QUERY, MEMORY, 7),
    "location": lambda: LocationAwareAttention(QUERY, MEMORY, 7, channels=3, filter_frames=2),
    "window": lambda: LocationAwareAttention(QUERY, MEMORY, 7, channels=3, filter_frames=2, window=2),
    "multi-head": lambda: MultiHeadAttention(QUERY, MEMORY, 8, heads=2),
    "scaled dot": lambda: ScaledDotAttention(QUERY, MEMORY, 7),
    "fixed": lambda: FixedContext(QUERY, MEMORY),
    "sharpened": lambda: LocationAwareAttention(QUERY, MEMORY, 7, channels=3, filter_frames=2, sharpening=2.0),
}
SHARPENED: dict[str, Callable[[float], Attention]] = {
    "dot": lambda sharpening: DotAttention(QUERY, MEMORY, 7, sharpening=sharpening),
    "additive": lambda sharpening: AdditiveAttention(QUERY, MEMORY, 7, sharpening=sharpening),
    "location": lambda sharpening: LocationAwareAttention(
        QUERY, MEMORY, 7, channels=3, filter_frames=2, sharpening=sharpening
    ),
    "multi-head": lambda sharpening: MultiHeadAttention(QUERY, MEMORY, 8, heads=2, sharpening=sharpening),
    "scaled dot": lambda sharpening: ScaledDotAttention(QUERY, MEMORY, 7, sharpening=sharpening),
}


@pytest.fixture(params=MECHANISMS)
def attention(request: pytest.FixtureRequest) -> Attention:
    return MECHANISMS[request.param]()


def look_twice(attention: Attention, encoded: Tensor, lengths: Tensor, queries: Tensor) -> list[Tensor]:
    """Contexts and weights of two queries (2, N, 6) in turn, the second knowing where the first looked."""
    memory = attention.remember(encoded, lengths)
    beam = queries.shape[1] // len(encoded)
    weights = attention.initial_weights(memory).repeat_interleave(beam, dim=0)
    first, weights = attention(queries[0], weights, memory)
    second, later = attention(queries[1], weights, memory)
    return [first, weights, second, later]


def test_weights_are_a_share_of_each_real_frame(attention: Attention) -> None:
    encoded, lengths = torch.randn(3, 9, 10), torch.tensor([9, 4, 0])
    first, weights, second, later = look_twice(attention, encoded, lengths, torch.randn(2, 3, 6))
    assert first.shape == second.shape == (3, sum(math.prod(f.size for f in p) for p in attention.output_axis()))
    for step_weights in (weights, later):
        assert step_weights.shape == (3, attention.heads, 9)
        torch.testing.assert_close(step_weights.sum(dim=2), torch.ones(3, attention.heads))
        assert (step_weights[1, :, 4:] == 0).all() and (step_weights >= 0).all()
    assert first.isfinite().all()


def test_neither_company_nor_padding_matters(attention: Attention) -> None:
    encoded, lengths, queries = torch.randn(2, 9, 10), torch.tensor([9, 5]), torch.randn(2, 2, 6)
    together = look_twice(attention, encoded, lengths, queries)
    louder = encoded.clone()
    louder[1, 5:] = 100.0
    alone = look_twice(attention, encoded[1:, :5], lengths[1:], queries[:, 1:])
    for output, louder_output, alone_output in zip(
        together, look_twice(attention, louder, lengths, queries), alone, strict=True
    ):
        torch.testing.assert_close(output, louder_output)
        torch.testing.assert_close(output[1, ..., : alone_output.shape[-1]], alone_output[0])


def test_several_queries_of_an_utterance_are_as_each_alone(attention: Attention) -> None:
    encoded, lengths, queries = torch.randn(2, 9, 10), torch.tensor([9, 5]), torch.randn(2, 6, 6)
    together = look_twice(attention, encoded, lengths, queries)
    for hypothesis in range(3):
        alone = look_twice(attention, encoded, lengths, queries[:, hypothesis::3])
        for output, alone_output in zip(together, alone, strict=True):
            torch.testing.assert_close(output[hypothesis::3], alone_output)


def test_every_axis_is_known(attention: Attention) -> None:
    axes = module_axes(attention)
    assert set(axes) == set(attention.state_dict())


def energies_by_definition(attention: Attention, query: Tensor, frame: Tensor) -> Tensor:
    """Energies of one query (6,) and one frame (10,), per head."""
    if isinstance(attention, DotAttention):
        return (attention.phi(query) * attention.psi(frame)).sum().unsqueeze(0)
    if isinstance(attention, AdditiveAttention):
        w, v, b = attention.query.weight, attention.key.weight, attention.key.bias
        return (attention.energy.weight[0] * torch.tanh(w @ query + v @ frame + b)).sum().unsqueeze(0)
    assert isinstance(attention, MultiHeadAttention)
    q, k = attention.query(query).view(attention.heads, -1), attention.key(frame).view(attention.heads, -1)
    return (q * k).sum(dim=1) / math.sqrt(q.shape[1])


@pytest.mark.parametrize("name", ["dot", "additive", "multi-head", "scaled dot"])
def test_the_first_weights_are_those_of_the_definition(name: str) -> None:
    attention = MECHANISMS[name]()
    encoded, query = torch.randn(1, 4, 10), torch.randn(1, 6)
    memory = attention.remember(encoded, torch.tensor([4]))
    context, weights = attention(query, attention.initial_weights(memory), memory)
    energies = torch.stack([energies_by_definition(attention, query[0], frame) for frame in encoded[0]], dim=1)
    torch.testing.assert_close(weights[0], energies.softmax(dim=1))  # (H, T)
    values = attention.values(encoded)[0]  # (H, T, D)
    expected = torch.cat([weights[0, head] @ values[head if len(values) > 1 else 0] for head in range(attention.heads)])
    torch.testing.assert_close(context[0], expected)


def test_the_scale_is_that_of_a_head() -> None:
    attention = MultiHeadAttention(QUERY, MEMORY, 8, heads=2)
    assert attention.keys(torch.randn(1, 3, 10)).shape == (1, 2, 3, 4)
    query, keys = torch.randn(1, 1, 6), torch.randn(1, 2, 3, 4)
    projected = attention.query(query).view(2, 4)
    expected = torch.stack([keys[0, head] @ projected[head] for head in range(2)]) / 2.0  # √4
    torch.testing.assert_close(attention.energies(query, keys, torch.zeros(1, 1, 2, 3))[0, 0], expected)


def test_location_aware_attention_sees_where_it_looked_and_how_far_away() -> None:
    attention = LocationAwareAttention(QUERY, MEMORY, 7, channels=3, filter_frames=2)
    memory = attention.remember(torch.zeros(1, 9, 10), torch.tensor([9]))
    query, previous = torch.randn(1, 6), torch.zeros(1, 1, 9)
    previous[0, 0, 4] = 1.0
    _, weights = attention(query, previous, memory)
    _, fresh = attention(query, attention.initial_weights(memory), memory)
    torch.testing.assert_close(fresh[0, 0], torch.full((9,), 1 / 9))  # all frames are the same
    moved = (weights[0, 0] / weights[0, 0, 0] - 1).abs() > 1e-6
    assert moved.tolist() == [False, False, True, True, True, True, True, False, False]
    # By hand: the convolution at a frame reads the previous weights around it.
    kernel = attention.convolution.weight[:, 0]  # (3, 5)
    location = [kernel[:, 4 - frame + 2] if abs(frame - 4) <= 2 else torch.zeros(3) for frame in range(9)]
    base = attention.query.weight @ query[0] + attention.key.bias
    energies = torch.stack(
        [attention.energy.weight[0] @ torch.tanh(base + attention.location.weight @ filtered) for filtered in location]
    )
    torch.testing.assert_close(weights[0, 0], energies.softmax(dim=0))


def test_the_window_lies_around_the_median() -> None:
    attention = LocationAwareAttention(QUERY, MEMORY, 7, channels=3, filter_frames=2, window=1)
    memory = attention.remember(torch.randn(1, 9, 10), torch.tensor([7]))
    previous = torch.tensor([[[0.1, 0.0, 0.3, 0.15, 0.0, 0.45, 0.0, 0.0, 0.0]]])  # half is reached in frame 3
    _, weights = attention(torch.randn(1, 6), previous, memory)
    assert (weights[0, 0] > 0).tolist() == [False, False, True, True, True, False, False, False, False]
    _, first = attention(torch.randn(1, 6), attention.initial_weights(memory), memory)
    assert (first[0, 0] > 0).tolist() == [True] * 7 + [False] * 2


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="got 7 and 2 heads"):
        MultiHeadAttention(QUERY, MEMORY, 7, heads=2)


@pytest.mark.parametrize("name", SHARPENED)
def test_sharpening_raises_weights_to_a_power(name: str) -> None:
    plain, sharp = SHARPENED[name](1.0), SHARPENED[name](2.5)
    sharp.load_state_dict(plain.state_dict())
    encoded, query = torch.randn(2, 5, 10), torch.randn(2, 6)
    memory = plain.remember(encoded, torch.tensor([5, 3]))
    _, weights = plain(query, plain.initial_weights(memory), memory)
    _, sharpened = sharp(query, sharp.initial_weights(memory), memory)
    powers = weights**2.5  # softmax(β e) is softmax(e) to the power β, normalized again
    torch.testing.assert_close(sharpened, powers / powers.sum(dim=2, keepdim=True))
    assert (sharpened.amax(dim=2) > weights.amax(dim=2) + 1e-4).all()


@pytest.mark.parametrize("sharpening", [0.0, -1.0, math.nan])
def test_a_sharpening_that_turns_weights_round_is_refused(sharpening: float) -> None:
    with pytest.raises(InputError, match="AdditiveAttention needs sharpening > 0, got"):
        SHARPENED["additive"](sharpening)


def test_a_fixed_context_is_the_mean_of_the_real_frames_at_every_step() -> None:
    attention = FixedContext(QUERY, MEMORY)
    encoded, lengths = torch.randn(2, 9, 10), torch.tensor([9, 4])
    first, weights, second, later = look_twice(attention, encoded, lengths, torch.randn(2, 4, 6))
    expected = torch.stack([encoded[0].mean(dim=0)] * 2 + [encoded[1, :4].mean(dim=0)] * 2)
    torch.testing.assert_close(first, expected)
    torch.testing.assert_close(second, expected)
    torch.testing.assert_close(weights, later)
    assert not list(attention.parameters())
