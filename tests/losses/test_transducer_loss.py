import math

import pytest
import torch
from torch import Tensor

from asr_lightning.losses.transducer.logits import torchaudio_loss, transducer_loss
from tests.oracles.transducer import all_paths, forward_recursion


def random_case(seed: int, blank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unequal rows, one with an empty transcript, one with a single frame."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(5, 4, 4, 5, generator=generator)
    others = torch.tensor([token for token in range(5) if token != blank])
    targets = others[torch.randint(4, (5, 3), generator=generator)]
    return logits, targets, torch.tensor([4, 2, 3, 1, 4]), torch.tensor([3, 3, 0, 2, 1])


@pytest.mark.parametrize("blank", [0, 4])
@pytest.mark.parametrize("seed", range(3))
def test_loss_sums_over_all_alignments(seed: int, blank: int) -> None:
    logits, targets, frames, tokens = random_case(seed, blank)
    losses = transducer_loss(logits, targets, frames, tokens, blank)
    log_probs = logits.double().log_softmax(-1)
    expected = [
        -all_paths(log_probs[row, :t, : u + 1], targets[row, :u].tolist(), blank)
        for row, (t, u) in enumerate(zip(frames.tolist(), tokens.tolist(), strict=True))
    ]
    torch.testing.assert_close(losses, torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_gradient_is_that_of_the_forward_recursion_in_double() -> None:
    logits, targets, frames, tokens = random_case(7, 0)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.5])
    ours = logits.clone().requires_grad_()
    (transducer_loss(ours, targets, frames, tokens, 0) * weights).sum().backward()
    exact = logits.double().requires_grad_()
    losses = [
        forward_recursion(exact[row, :t, : u + 1], targets[row, :u].tolist(), 0)
        for row, (t, u) in enumerate(zip(frames.tolist(), tokens.tolist(), strict=True))
    ]
    (torch.stack(losses) * weights).sum().backward()
    assert exact.grad is not None and exact.grad.abs().max() > 0.1
    torch.testing.assert_close(ours.grad, exact.grad.float(), rtol=1e-4, atol=1e-5)


def test_padding_of_any_content_and_size_changes_nothing() -> None:
    logits, targets, frames, tokens = random_case(1, 0)
    expected = transducer_loss(logits, targets, frames, tokens, 0)
    padded = torch.full((5, 7, 6, 5), float("nan"))
    padded_targets = torch.full((5, 5), -100)
    for row, (t, u) in enumerate(zip(frames.tolist(), tokens.tolist(), strict=True)):
        padded[row, :t, : u + 1] = logits[row, :t, : u + 1]
        padded_targets[row, :u] = targets[row, :u]
    padded.requires_grad_()
    losses = transducer_loss(padded, padded_targets, frames, tokens, 0)
    torch.testing.assert_close(losses, expected, rtol=0, atol=0)
    losses.sum().backward()
    assert padded.grad is not None and padded.grad.isfinite().all()


def test_a_batch_of_empty_transcripts_costs_its_blanks() -> None:
    logits = torch.randn(2, 3, 1, 4, generator=torch.Generator().manual_seed(0))
    losses = transducer_loss(
        logits, torch.zeros(2, 0, dtype=torch.int64), torch.tensor([3, 2]), torch.zeros(2).long(), 1
    )
    blanks = -logits.log_softmax(-1)[:, :, 0, 1]  # (B, T)
    torch.testing.assert_close(losses, torch.stack([blanks[0].sum(), blanks[1, :2].sum()]))


def test_a_row_without_frames_is_infinite_and_alone_in_it() -> None:
    logits, targets, frames, tokens = random_case(2, 0)
    expected = transducer_loss(logits, targets, frames, tokens, 0)
    broken = logits.clone()
    broken[1] = float("nan")  # what attention over nothing gives
    broken.requires_grad_()
    losses = transducer_loss(broken, targets, torch.tensor([4, 0, 3, 1, 4]), tokens, 0)
    assert losses[1] == math.inf
    others = [0, 2, 3, 4]
    torch.testing.assert_close(losses[others], expected[others])
    losses[others].sum().backward()
    assert broken.grad is not None and (broken.grad[1] == 0).all() and broken.grad[0].abs().max() > 0


def test_only_rows_without_frames_and_no_rows_at_all() -> None:
    nothing = torch.zeros(2, dtype=torch.int64)
    losses = transducer_loss(torch.randn(2, 3, 2, 4), torch.ones(2, 1).long(), nothing, nothing + 1, 0)
    assert losses.tolist() == [math.inf, math.inf]
    losses = transducer_loss(torch.randn(2, 0, 2, 4), torch.ones(2, 1).long(), nothing, nothing + 1, 0)
    assert losses.tolist() == [math.inf, math.inf]
    for loss in (transducer_loss, torchaudio_loss):
        assert loss(torch.randn(0, 3, 2, 4), torch.ones(0, 1).long(), nothing[:0], nothing[:0], 0).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(dtype: torch.dtype) -> None:
    logits, targets, frames, tokens = random_case(3, 0)
    coarse = logits.to(dtype).requires_grad_()
    losses = transducer_loss(coarse, targets, frames, tokens, 0)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, transducer_loss(coarse.detach().float(), targets, frames, tokens, 0))
    losses.sum().backward()
    assert coarse.grad is not None and coarse.grad.dtype == dtype


def test_logits_shorter_than_the_lengths_are_refused() -> None:
    logits, targets, frames, tokens = random_case(4, 0)
    with pytest.raises(ValueError, match=r"4 frames and 3 tokens .* got \(5, 4, 3, 5\)"):
        transducer_loss(logits[:, :, :3], targets, frames, tokens, 0)
    with pytest.raises(ValueError, match=r"got \(5, 3, 4, 5\)"):
        transducer_loss(logits[:, :3], targets, frames, tokens, 0)
