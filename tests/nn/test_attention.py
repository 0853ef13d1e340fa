import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from asr_lightning.nn.attention import RelativeSelfAttention, _shift, attend
from asr_lightning.nn.dropout import Dropout


def random_attention(dimension: int, heads: int, head_dimension: int | None = None) -> RelativeSelfAttention:
    """Weights and biases that matter, also those that begin as zeros."""
    torch.manual_seed(0)
    attention = RelativeSelfAttention(dimension, heads, head_dimension).double()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_(std=0.7)
    return attention


def sinusoid(distance: int, dimension: int) -> Tensor:
    values = []
    for column in range(dimension):
        angle = distance / 10_000 ** (2 * (column // 2) / dimension)
        values.append(math.cos(angle) if column % 2 else math.sin(angle))
    return torch.tensor(values, dtype=torch.float64)


@torch.no_grad()
def written_out(attention: RelativeSelfAttention, x: Tensor, length: int) -> Tensor:
    """The formula, score by score, of one utterance x (T, D): (length, D)."""
    d = attention.head_dimension
    heads = []
    for head in range(attention.heads):
        columns = slice(head * d, (head + 1) * d)
        query, key, value = (part(x)[:, columns] for part in (attention.query, attention.key, attention.value))
        rows = []
        for i in range(length):
            scores = []
            for j in range(length):
                position = attention.position.weight[columns] @ sinusoid(i - j, attention.dimension)
                by_content = (query[i] + attention.content_bias[head]) @ key[j]
                by_position = (query[i] + attention.position_bias[head]) @ position
                scores.append((by_content + by_position) / math.sqrt(d))
            weights = torch.stack(scores).softmax(0)
            rows.append(sum(weight * value[j] for j, weight in enumerate(weights)))
        heads.append(torch.stack(rows))
    return attention.output(torch.cat(heads, dim=1))


@pytest.mark.parametrize(("dimension", "heads", "head_dimension"), [(8, 2, None), (6, 3, 5), (6, 1, None)])
def test_attention_is_the_formula_within_each_length(dimension: int, heads: int, head_dimension: int | None) -> None:
    attention = random_attention(dimension, heads, head_dimension)
    lengths = [6, 1, 4]
    x = torch.randn(3, 6, dimension, dtype=torch.float64)
    attended = attention(x, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        # relative_sinusoids are float32
        torch.testing.assert_close(attended[row, :length], written_out(attention, x[row], length), rtol=1e-5, atol=1e-5)


def test_a_row_without_frames_is_finite_and_so_is_its_gradient() -> None:
    attention = random_attention(4, 2)
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    attended = attention(x, torch.tensor([0, 3]))
    attended.sum().backward()
    assert attended.isfinite().all() and x.grad is not None and x.grad.isfinite().all()


@pytest.mark.parametrize("size", [1, 2, 5])
def test_shift_brings_each_distance_to_its_frames(size: int) -> None:
    distances = torch.arange(size, -size, -1).expand(2, 3, size, 2 * size)  # what each column is the score of
    frames = torch.arange(size)
    expected = (frames.unsqueeze(1) - frames).expand(2, 3, size, size)
    assert torch.equal(_shift(distances.contiguous()), expected)
    rows = frames.view(size, 1).expand(2, 3, size, 2 * size)
    assert torch.equal(_shift(rows.contiguous()), frames.view(size, 1).expand(2, 3, size, size))


def test_weights_are_dropped_in_training_only() -> None:
    attention = RelativeSelfAttention(4, 2, dropout=0.5)
    x, lengths = torch.randn(1, 5, 4), torch.tensor([5])
    assert not torch.equal(attention(x, lengths), attention(x, lengths))
    attention.eval()
    assert torch.equal(attention(x, lengths), attention(x, lengths))


def test_heads_that_do_not_divide_the_dimension_are_refused() -> None:
    with pytest.raises(ValueError, match="got 6 and 4 heads"):
        RelativeSelfAttention(6, 4)


@pytest.mark.parametrize(("dimension", "heads"), [(7, 1), (8, 3)])
def test_dimensions_that_do_not_fit_are_refused(dimension: int, heads: int) -> None:
    with pytest.raises(ValueError, match=f"got {dimension} and {heads} heads"):
        RelativeSelfAttention(dimension, heads)


MASKS = {
    "where to look": torch.rand(3, 1, 5, 7, generator=torch.Generator().manual_seed(1)) < 0.6,
    "what is added": torch.randn(3, 2, 5, 7, generator=torch.Generator().manual_seed(1)),
}
MASKS["where to look"][..., 0] = True


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_training_attends_as_torch_does(mask: Tensor) -> None:
    torch.manual_seed(1)
    query, key, value = (torch.randn(3, 2, size, 4, requires_grad=True) for size in (5, 7, 7))
    expected = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    nearly_none = Dropout(1e-9)  # rounded to no dropout, but computed as with dropout
    attended = attend(query, key, value, mask, nearly_none)
    torch.testing.assert_close(attended, expected)
    torch.testing.assert_close(attend(query, key, value, mask, Dropout(0.5).eval()), expected)
    gradient = torch.randn_like(expected)
    gradients, expected_gradients = (
        torch.autograd.grad(output, (query, key, value), gradient) for output in (attended, expected)
    )
    torch.testing.assert_close(gradients, expected_gradients)


def test_attention_weights_are_dropped() -> None:
    torch.manual_seed(1)
    query, key, value = torch.zeros(2, 3, 40, 4), torch.zeros(2, 3, 50, 4), torch.eye(50).expand(2, 3, -1, -1)
    weights = attend(query, key, value, torch.ones(40, 50, dtype=torch.bool), Dropout(0.25))  # (2, 3, 40, 50)
    torch.testing.assert_close(weights[weights != 0].unique(), torch.tensor([1 / 50 / 0.75]))
    assert abs(float((weights == 0).double().mean()) - 0.25) < 0.02
