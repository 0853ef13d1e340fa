import math

import pytest
import torch
from torch import Tensor

from asr_lightning.losses.ctc import ctc_loss
from tests.oracles.ctc import all_paths

# frames, tokens; the blank is 0 here
CASES = [
    (5, [1, 2]),
    (3, [2, 2]),  # needs every frame: a blank between the repeats
    (4, [1, 1]),
    (5, [1, 1, 2]),
    (1, [3]),
    (4, []),
    (3, [3, 1, 2]),
]


@pytest.mark.parametrize("blank", [0, 3])
def test_loss_sums_over_all_paths_whatever_is_behind_the_ends(blank: int) -> None:
    moved = {0: blank, blank: 0}
    logits = 2 * torch.randn(len(CASES), 6, 4, generator=torch.Generator().manual_seed(0))
    targets = torch.full((len(CASES), 4), 1)  # a repeat behind the end of the last case but one and others
    for row, (_, tokens) in enumerate(CASES):
        targets[row, : len(tokens)] = torch.tensor([moved.get(token, token) for token in tokens])
    frames = torch.tensor([frames for frames, _ in CASES])
    lengths = torch.tensor([len(tokens) for _, tokens in CASES])
    losses = ctc_loss(logits, targets, frames, lengths, blank)
    log_probs = logits.double().log_softmax(2)
    expected = [
        -all_paths(log_probs[row, :t], targets[row, :u].tolist(), blank)
        for row, (t, u) in enumerate(zip(frames.tolist(), lengths.tolist(), strict=True))
    ]
    torch.testing.assert_close(losses, torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_gradients_in_float64_with_nan_in_the_padding() -> None:
    logits = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits[1, 2:] = math.nan
    targets, frames, lengths = torch.tensor([[1, 1], [2, -1]]), torch.tensor([4, 2]), torch.tensor([2, 1])
    assert ctc_loss(logits, targets, frames, lengths, 0).dtype == torch.float64
    leaf = logits.requires_grad_()
    ctc_loss(leaf, targets, frames, lengths, 0).sum().backward()
    assert leaf.grad is not None and leaf.grad.isfinite().all() and (leaf.grad[1, 2:] == 0).all()
    row = logits.detach()[:1].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ctc_loss(x, targets[:1], frames[:1], lengths[:1], 0), row)


@pytest.mark.parametrize(("batch", "frames"), [(0, 3), (2, 0)])
def test_no_utterance_and_no_frame(batch: int, frames: int) -> None:
    logits = torch.randn(batch, frames, 4, requires_grad=True)
    lengths = torch.tensor([0, 1])[:batch]
    losses = ctc_loss(logits, torch.ones(batch, 1, dtype=torch.int64), torch.zeros_like(lengths), lengths, 0)
    losses.sum().backward()
    assert losses.tolist() == [0.0, math.inf][:batch]


def gradient(rows: list[int], weights: Tensor) -> tuple[Tensor, Tensor]:
    """Losses, and their gradient, of some of: fits, too few frames, fits with its repeat, one frame short of it."""
    logits = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(1))[rows].requires_grad_()
    targets = torch.tensor([[1, 2, 0], [1, 2, 3], [2, 2, 1], [3, 1, 1]])[rows]
    losses = ctc_loss(logits, targets, torch.tensor([3, 2, 4, 3])[rows], torch.tensor([2, 3, 3, 3])[rows], 0)
    (losses[losses.isfinite()] * weights).sum().backward()
    assert logits.grad is not None
    return losses.detach(), logits.grad


def test_an_impossible_utterance_is_infinite_and_changes_no_other() -> None:
    weights = torch.tensor([2.0, -1.0])
    losses, gradients = gradient([0, 1, 2, 3], weights)
    assert [math.isinf(loss) for loss in losses.tolist()] == [False, True, False, True]
    assert (gradients[[1, 3]] == 0).all()
    expected, expected_gradients = gradient([0, 2], weights)
    assert expected_gradients.abs().amax(dim=(1, 2)).min() > 0.1
    torch.testing.assert_close(losses[[0, 2]], expected)
    torch.testing.assert_close(gradients[[0, 2]], expected_gradients)


def test_the_gradient_of_a_sum_with_an_impossible_utterance_is_finite() -> None:
    logits = torch.randn(2, 2, 4, requires_grad=True)
    losses = ctc_loss(logits, torch.tensor([[1, 2], [1, 1]]), torch.tensor([2, 2]), torch.tensor([2, 2]), 0)
    assert losses.isinf().tolist() == [False, True]
    losses.sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all() and (logits.grad[1] == 0).all()


@pytest.mark.parametrize("width", [0, 1])
def test_a_batch_of_empty_transcripts_costs_its_blanks(width: int) -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    targets = torch.zeros(2, width, dtype=torch.int64)
    losses = ctc_loss(logits, targets, torch.tensor([3, 2]), torch.tensor([0, 0]), 0)
    blanks = -logits.log_softmax(2)[:, :, 0]
    torch.testing.assert_close(losses, torch.stack([blanks[0].sum(), blanks[1, :2].sum()]))
