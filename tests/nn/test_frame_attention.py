import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from asr_lightning.nn import frame_attention
from asr_lightning.nn.axes import units
from asr_lightning.nn.frame_attention import AdditiveTimeAttention, FrameAttention, HeadAttention, TimeAttention

LENGTHS = torch.tensor([9, 4, 1, 0])
READ = units(12)
OVER_TIME = {
    "one head": lambda: TimeAttention(READ, heads=1),
    "heads": lambda: TimeAttention(READ, heads=3),
    "positions": lambda: TimeAttention(READ, heads=2, positions=True),
    "decay": lambda: TimeAttention(READ, heads=2, decay=True),
    "additive": lambda: AdditiveTimeAttention(READ, hidden=5),
    "location": lambda: AdditiveTimeAttention(READ, hidden=5, location=True, channels=3, filter_frames=2),
}


def frames(seed: int = 0) -> Tensor:
    return torch.randn(4, 9, 12, generator=torch.Generator().manual_seed(seed))


def influence(attention: FrameAttention, row: int, frame: int) -> list[int]:
    """The frames of a row whose output changes when one frame of its input does."""
    x, changed = frames(), frames()
    changed[row, frame] = frames(seed=1)[row, frame]
    difference = (attention(changed, LENGTHS) - attention(x, LENGTHS)).abs().amax(dim=2)
    assert float(difference.sum()) == pytest.approx(float(difference[row].sum()))
    return (difference[row] > 1e-6).nonzero().flatten().tolist()


def test_the_published_attention_is_blind_to_other_frames() -> None:
    attention = HeadAttention(READ, heads=3).eval()
    for frame in range(9):
        assert influence(attention, 0, frame) == [frame]


def test_the_published_attention_is_what_was_published() -> None:
    torch.manual_seed(0)
    attention, x = HeadAttention(READ, heads=3).eval(), frames()
    expected = torch.zeros_like(x)
    for row in range(4):
        for frame in range(9):
            q, k, v = (part(x[row, frame]).view(3, 4) for part in (attention.query, attention.key, attention.value))
            weights = (q @ k.T / 4**0.5).softmax(dim=1)  # (heads, heads)
            expected[row, frame] = attention.output((weights @ v).flatten())
    torch.testing.assert_close(attention(x, LENGTHS), expected)


@pytest.mark.parametrize("kind", OVER_TIME)
def test_attention_over_time_uses_all_real_frames_and_no_padding(kind: str) -> None:
    torch.manual_seed(0)
    attention = OVER_TIME[kind]().eval()
    assert influence(attention, 0, 8) == list(range(9))
    assert influence(attention, 1, 2)[:4] == [0, 1, 2, 3]
    assert min(influence(attention, 1, 6)) == 6  # padding is seen by padding only
    assert attention(frames(), LENGTHS).isfinite().all()


def test_time_attention_is_torchs_with_a_norm_before_and_a_residual() -> None:
    torch.manual_seed(0)
    attention, reference = TimeAttention(READ, heads=3).eval(), nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        parts = (attention.query, attention.key, attention.value)
        reference.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        reference.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        reference.out_proj.load_state_dict(attention.output.state_dict())
    x = frames()[:3]
    normed = functional.layer_norm(x, (12,))
    padding = torch.arange(9) >= LENGTHS[:3].unsqueeze(1)
    expected, _ = reference(normed, normed, normed, key_padding_mask=padding)
    torch.testing.assert_close(attention(x, LENGTHS[:3]), x + expected)


def weights_of(attention: TimeAttention) -> Tensor:
    """Weights (H, T, T) of one row of 12 frames, read by using one-hot frames as values."""
    with torch.no_grad():
        attention.value.weight.zero_()
        attention.value.bias.zero_()
        attention.output.weight.copy_(torch.eye(12))
        attention.output.bias.zero_()
    x = torch.randn(1, 12, 12, generator=torch.Generator().manual_seed(2))
    weights: list[Tensor] = []
    plain = functional.scaled_dot_product_attention

    def look(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor, dropout_p: float) -> Tensor:
        identity = torch.eye(12).expand(1, attention.heads, 12, 12)
        weights.append(plain(query, key, identity, attn_mask=attn_mask)[0])
        return value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "scaled_dot_product_attention", look)
        attention(x, torch.tensor([12]))
    return weights[0]


def test_decay_divides_weights_by_the_distance() -> None:
    torch.manual_seed(0)
    decaying, plain = TimeAttention(READ, heads=2, decay=True).eval(), TimeAttention(READ, heads=2).eval()
    plain.load_state_dict(decaying.state_dict(), strict=False)
    assert decaying.decay is not None
    with torch.no_grad():
        decaying.decay.copy_(torch.tensor([0.5, -2.0]))
    plain_weights, decayed_weights = weights_of(plain).log(), weights_of(decaying).log()
    positions = torch.arange(12)
    for head, raw in enumerate([0.5, -2.0]):
        loss = math.log1p(math.exp(raw)) * (positions.unsqueeze(1) - positions).abs()
        torch.testing.assert_close(
            decayed_weights[head], (plain_weights[head] - loss).log_softmax(dim=1), rtol=1e-4, atol=1e-4
        )


def test_positions_tell_equal_frames_apart() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 1, 12).expand(1, 12, 12)
    for positions in (False, True):
        attention = TimeAttention(READ, heads=2, positions=positions).eval()
        y = attention(x, torch.tensor([12]))
        assert torch.allclose(y, y[:, :1], atol=1e-5) or positions
    weights = weights_of(TimeAttention(READ, heads=2, positions=True).eval())
    assert (weights[:, 0] - weights[:, 5]).abs().max() > 0.01


def written_out(attention: AdditiveTimeAttention, x: Tensor, length: int) -> Tensor:
    """The output for one row (T, D), by loops."""
    normed = attention.norm(x)
    query, key, value = attention.query(normed), attention.key(normed), attention.value(normed)
    weights, rows = torch.zeros(length), []
    for frame in range(length):
        extra = torch.zeros(length, key.shape[1])
        if attention.convolution is not None and attention.location is not None:  # of the weights of the frame before
            size = attention.convolution.kernel_size[0] // 2
            padded = functional.pad(weights, (size, size))
            windows = torch.stack([padded[t : t + 2 * size + 1] for t in range(length)])  # (T, taps)
            extra = attention.location(windows @ attention.convolution.weight[:, 0].T)
        energies = [attention.energy(torch.tanh(query[frame] + key[t] + extra[t])) for t in range(length)]
        weights = torch.cat(energies).softmax(dim=0)
        rows.append(x[frame] + attention.output(weights @ value[:length]))
    return torch.stack(rows)


def test_location_follows_the_weights_of_all_frames_before() -> None:
    """A change of the first frame's weights alone reaches the last frame's."""
    torch.manual_seed(0)
    attention = OVER_TIME["location"]()
    assert isinstance(attention, AdditiveTimeAttention)
    queries, keys, values = torch.randn(1, 6, 5), torch.randn(1, 9, 5), torch.eye(9).unsqueeze(0)
    mask = torch.ones(1, 1, 9, dtype=torch.bool)
    previous = torch.zeros(1, 1, 9).requires_grad_()
    weights, _ = attention.eval()._attend(queries, keys, values, mask, previous)
    (reached,) = torch.autograd.grad(weights[0, -1, 0], previous)
    assert reached.abs().max() > 0


@pytest.mark.parametrize("kind", ["additive", "location"])
@pytest.mark.parametrize("block", [1 << 22, 1, 400])
def test_additive_attention_is_that_of_loops_in_blocks_of_any_size(
    kind: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    attention = OVER_TIME[kind]().eval()
    assert isinstance(attention, AdditiveTimeAttention)
    monkeypatch.setattr(frame_attention, "BLOCK", block)
    x = frames().requires_grad_()
    y = attention(x, LENGTHS)
    cotangent = torch.randn_like(y)
    (y * cotangent)[:2].sum().backward()
    assert x.grad is not None
    for row, length in enumerate([9, 4]):
        alone = frames()[row].requires_grad_()
        expected = written_out(attention, alone, length)
        torch.testing.assert_close(y[row, :length], expected, rtol=1e-4, atol=1e-5)
        if length == 9:
            (expected * cotangent[row]).sum().backward()
            torch.testing.assert_close(x.grad[row], alone.grad, rtol=1e-3, atol=1e-4)


def test_heads_that_do_not_divide_are_refused() -> None:
    for kind in (HeadAttention, TimeAttention):
        with pytest.raises(ValueError, match="got 5 heads and 12"):
            kind(READ, heads=5)
