import math

import pytest
import torch

from asr_lightning.losses.cross_entropy import cross_entropy_loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_it_is_the_sum_over_real_tokens_of_smoothed_targets(smoothing: float) -> None:
    logits, targets = torch.randn(2, 4, 5), torch.randint(5, (2, 4))
    lengths = torch.tensor([4, 2])
    expected = []
    for row in range(2):
        total = 0.0
        for position in range(int(lengths[row])):
            log_probs = logits[row, position].log_softmax(dim=0)
            distribution = torch.full((5,), smoothing / 5)
            distribution[targets[row, position]] += 1 - smoothing
            total -= float((distribution * log_probs).sum())
        expected.append(total)
    torch.testing.assert_close(cross_entropy_loss(logits, targets, lengths, smoothing), torch.tensor(expected))


def test_half_precision_logits_are_summed_in_full() -> None:
    logits, targets, lengths = torch.randn(1, 300, 5), torch.randint(5, (1, 300)), torch.tensor([300])
    loss = cross_entropy_loss(logits.bfloat16(), targets, lengths)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, cross_entropy_loss(logits.bfloat16().float(), targets, lengths))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_padding_of_any_content_changes_nothing_in_float64(smoothing: float) -> None:
    logits = torch.randn(2, 3, 4, dtype=torch.float64)
    targets, lengths = torch.tensor([[1, 3, 0], [2, -100, 4]]), torch.tensor([3, 1])
    expected = cross_entropy_loss(logits, targets.clamp(0, 3), lengths, smoothing)
    logits[1, 1:] = math.nan
    logits.requires_grad_()
    losses = cross_entropy_loss(logits, targets.int(), lengths, smoothing)
    torch.testing.assert_close(losses, expected, rtol=1e-14, atol=0)
    losses.sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all() and (logits.grad[1, 1:] == 0).all()
