"""The RNN transducer's loss [Graves 2012, "Sequence transduction with recurrent neural networks", section 2.4]."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torchaudio.functional import rnnt_loss

from asr_lightning.nn.masks import real_frames


def transducer_loss(
    logits: Tensor, targets: Tensor, encoder_lengths: Tensor, target_lengths: Tensor, blank_id: int
) -> Tensor:
    """Return the negative log likelihood of each utterance, summed over all its alignments.

    An alignment is a walk from frame 0 with no token emitted: at (t, u) it emits token u + 1 and stays in the frame,
    or a blank and goes on to the next frame; the last frame ends with a blank after all tokens. With y the emission
    and b the blank probabilities, the probability of being at (t, u) is

        alpha(t, u) = alpha(t - 1, u) b(t - 1, u) + alpha(t, u - 1) y(t, u - 1),    alpha(0, 0) = 1

    and the loss is -log(alpha(T - 1, U) b(T - 1, U)). A CPU takes our own recursion, which is the faster one there
    (`benchmarks/transducer_loss.py`), a GPU torchaudio's kernel.

    Args:
        logits: (B, T, U + 1, V), not normalised, in any floating type; may be padded beyond the longest row.
        targets: (B, U) token ids; what lies beyond the lengths is ignored.
        encoder_lengths: (B,) real frames.
        target_lengths: (B,) real tokens; 0 is an empty transcript, whose only alignment is blanks.
        blank_id: The blank's token id.

    Returns:
        (B,) float32 losses; infinite, with a gradient of zero, where an utterance has no frame.

    Raises:
        ValueError: The logits or targets are shorter than the lengths say.
    """
    possible = encoder_lengths > 0  # neither recursion has a place to end where there is no frame
    if not bool(possible.all()) or not len(logits):
        losses = logits.new_full((len(logits),), float("inf"), dtype=torch.float32)
        if not bool(possible.any()):
            return losses
        rows = possible.nonzero().squeeze(1)
        sound = transducer_loss(logits[rows], targets[rows], encoder_lengths[rows], target_lengths[rows], blank_id)
        return losses.index_copy(0, rows, sound)

    frames, tokens = int(encoder_lengths.max()), int(target_lengths.max())
    if logits.shape[1] < frames or logits.shape[2] < tokens + 1 or targets.shape[1] < tokens:
        raise ValueError(
            f"{frames} frames and {tokens} tokens need logits of at least (B, {frames}, {tokens + 1}, V) and targets "
            f"of (B, {tokens}), got {tuple(logits.shape)} and {tuple(targets.shape)}"
        )
    logits = logits[:, :frames, : tokens + 1].float()
    targets = targets[:, :tokens].masked_fill(~real_frames(target_lengths, tokens), blank_id)
    if logits.device.type == "cpu":
        return _Lattice.apply(logits, targets, encoder_lengths, target_lengths, blank_id)
    return rnnt_loss(
        logits.contiguous(),
        targets.int().contiguous(),
        encoder_lengths.int(),
        target_lengths.int(),
        blank=blank_id,
        reduction="none",
        fused_log_softmax=True,
    )


class _Lattice(Function):
    """The recursions over a whole batch, a frame at a time, in float64; the gradient comes from the occupancies."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        logits: Tensor,
        targets: Tensor,
        encoder_lengths: Tensor,
        target_lengths: Tensor,
        blank_id: int,
    ) -> Tensor:
        real = real_frames(encoder_lengths, logits.shape[1]).unsqueeze(2)
        real = real & real_frames(target_lengths + 1, logits.shape[2]).unsqueeze(1)  # (B, T, U + 1)
        normaliser = logits.logsumexp(dim=3)  # (B, T, U + 1)
        tokens = targets[:, None, :, None].expand(-1, logits.shape[1], -1, 1)
        blank = (logits[..., blank_id] - normaliser).masked_fill(~real, 0.0).double()
        label = logits[:, :, :-1].gather(3, tokens).squeeze(3) - normaliser[:, :, :-1]  # (B, T, U)
        label = label.masked_fill(~real[:, :, 1:], 0.0).double()
        # Of tokens 0 to u - 1: what it costs to have emitted them all in frame t.
        emitted = torch.nn.functional.pad(label.cumsum(dim=2), (1, 0))  # (B, T, U + 1)
        alpha = forward_probabilities(blank, emitted)
        beta = backward_probabilities(blank, emitted, encoder_lengths, target_lengths)  # (B, T + 1, U + 1)
        losses = -beta[:, 0, 0]
        left = (alpha + losses[:, None, None]).masked_fill(~real, float("-inf"))
        by_blank = (left + blank + beta[:, 1:]).exp().float()  # how probable it is that an alignment takes this blank
        by_label = (left[:, :, :-1] + label + beta[:, :-1, 1:]).exp().float()
        ctx.save_for_backward(logits, normaliser, tokens, by_blank, by_label, real)
        ctx.blank_id = blank_id
        return losses.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:  # noqa: ANN401
        logits, normaliser, tokens, by_blank, by_label, real = ctx.saved_tensors
        visited = by_blank.clone()
        visited[:, :, :-1] += by_label
        result = (logits - normaliser.unsqueeze(3)).exp_().mul_(visited.unsqueeze(3))
        result[..., ctx.blank_id] -= by_blank
        result[:, :, :-1].scatter_add_(3, tokens, -by_label.unsqueeze(3))
        result.mul_(gradient[:, None, None, None]).masked_fill_(~real.unsqueeze(3), 0.0)
        return result, None, None, None, None


def forward_probabilities(blank: Tensor, emitted: Tensor) -> Tensor:
    """Return log alpha (B, T, U + 1).

    Both take log probabilities: of a blank (B, T, U + 1) and, at every place, of all tokens before it together.
    Within a frame, alpha(t, u) sums over the place u' ≤ u where the frame was entered; with `emitted` as the cumulated
    cost this sum is a cumulative one.
    """
    entered = torch.full_like(blank[:, 0], float("-inf"))
    entered[:, 0] = 0.0
    alphas = []
    for frame in range(blank.shape[1]):
        alphas.append(torch.logcumsumexp(entered - emitted[:, frame], dim=1) + emitted[:, frame])
        entered = alphas[-1] + blank[:, frame]
    return torch.stack(alphas, dim=1)


def backward_probabilities(blank: Tensor, emitted: Tensor, encoder_lengths: Tensor, target_lengths: Tensor) -> Tensor:
    """Return log beta (B, T + 1, U + 1): the end is reached from behind the last frame with all tokens emitted."""
    end = torch.full_like(blank[:, 0], float("-inf")).scatter_(1, target_lengths.long().unsqueeze(1), 0.0)
    betas = [end]
    for frame in reversed(range(blank.shape[1])):
        leaving = betas[-1] + blank[:, frame] + emitted[:, frame]
        beta = torch.logcumsumexp(leaving.flip(1), dim=1).flip(1) - emitted[:, frame]
        betas.append(torch.where((frame < encoder_lengths).unsqueeze(1), beta, end))
    return torch.stack(betas[::-1], dim=1)
