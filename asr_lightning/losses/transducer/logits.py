"""The transducer loss of given logits: a loss of our own, and torchaudio's."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad
from torchaudio.functional import rnnt_loss

from asr_lightning.losses.transducer.joint import TransducerLoss
from asr_lightning.losses.transducer.lattice import occupancies, real_targets

IMPOSSIBLE = -1e30  # below the highest logit, to torchaudio: sums of it stay finite


class TorchaudioLoss(TransducerLoss):
    """The loss by torchaudio's kernel, which needs the logits of all nodes at once: `torchaudio_loss`."""

    def __call__(
        self,
        encoded: Tensor,
        predicted: Tensor,
        output: nn.Linear,
        targets: Tensor,
        encoder_lengths: Tensor,
        target_lengths: Tensor,
        blank_id: int,
    ) -> Tensor:
        """Return the losses, (B,)."""
        logits = output(torch.tanh(encoded.unsqueeze(2) + predicted.unsqueeze(1)))  # (B, T, U + 1, V)
        return torchaudio_loss(logits, targets, encoder_lengths, target_lengths, blank_id)


def transducer_loss(
    logits: Tensor, targets: Tensor, encoder_lengths: Tensor, target_lengths: Tensor, blank_id: int
) -> Tensor:
    """Return the negative log likelihood of each utterance: the sum over all its alignments.

    Where the logits come from a joint network, `joint_transducer_loss` is faster and never holds them all.

    Args:
        logits: (B, T, U + 1, V), not normalized, in any floating type; may be padded beyond the longest utterance.
        targets: (B, U) token ids; what lies beyond the lengths is ignored.
        encoder_lengths: (B,) real frames.
        target_lengths: (B,) real tokens; 0 is an empty transcript, whose only alignment is blanks.
        blank_id: The blank's token id.

    Returns:
        (B,) losses, float32 or that of float64 logits; infinite, with a gradient of zero, where there is no frame or
        where logits of minus infinity leave no alignment.

    Raises:
        ValueError: The logits or targets are shorter than the lengths say.
    """
    logits, targets = _cut(logits, targets, encoder_lengths, target_lengths, blank_id)
    return _Lattice.apply(logits, targets, encoder_lengths, target_lengths, blank_id)


def unpadded_transducer_loss(logits: Tensor, targets: Tensor, blank_id: int) -> Tensor:
    """Return `transducer_loss` (B,) of logits (B, T, U + 1, V) and targets (B, U) of which nothing is padding.

    Nothing is read back from a GPU, which `transducer_loss` does for the lengths.
    """
    lengths = (torch.full(logits.shape[:1], size, device=logits.device) for size in (logits.shape[1], targets.shape[1]))
    return _Lattice.apply(logits, targets, *lengths, blank_id)


def torchaudio_loss(
    logits: Tensor, targets: Tensor, encoder_lengths: Tensor, target_lengths: Tensor, blank_id: int
) -> Tensor:
    """Return the same by torchaudio's kernel, in float32; arguments and errors are those of `transducer_loss`."""
    possible = encoder_lengths > 0  # torchaudio's recursion has no last node where there is no frame
    lengths = encoder_lengths, target_lengths
    if len(logits) and bool(possible.all()):  # torchaudio refuses a batch of none
        logits, targets = _cut(logits, targets, *lengths, blank_id)
        if bool(logits.isneginf().any()):  # torchaudio's recursion can make NaN of it
            logits = logits.float().maximum(logits.detach().float().amax(dim=3, keepdim=True) + IMPOSSIBLE)
        losses = _rnnt_loss(logits, targets, *lengths, blank_id)
        possible = ~(losses >= -IMPOSSIBLE)
        if bool(possible.all()):
            return losses
    losses = logits.new_full((len(logits),), math.inf, dtype=torch.float32)
    rows = possible.nonzero().squeeze(1)
    finite = logits[rows].float().sum(dim=(1, 2, 3))  # empty, with a gradient
    if len(rows):
        finite = torchaudio_loss(logits[rows], targets[rows], encoder_lengths[rows], target_lengths[rows], blank_id)
    return losses.index_copy(0, rows, finite)


def _rnnt_loss(
    logits: Tensor, targets: Tensor, encoder_lengths: Tensor, target_lengths: Tensor, blank_id: int
) -> Tensor:
    return rnnt_loss(
        logits.float().contiguous(),
        targets.int().contiguous(),
        encoder_lengths.int(),
        target_lengths.int(),
        blank=blank_id,
        reduction="none",
        fused_log_softmax=True,
    )


def _cut(
    logits: Tensor, targets: Tensor, encoder_lengths: Tensor, target_lengths: Tensor, blank_id: int
) -> tuple[Tensor, Tensor]:
    """Return logits and targets without padding that no utterance needs; the other padded targets become blanks."""
    frames, tokens = (int(lengths.max()) if len(lengths) else 0 for lengths in (encoder_lengths, target_lengths))
    if logits.shape[1] < frames or logits.shape[2] < tokens + 1 or targets.shape[1] < tokens:
        raise ValueError(
            f"{frames} frames and {tokens} tokens need logits of at least (B, {frames}, {tokens + 1}, V) and targets "
            f"of (B, {tokens}), got {tuple(logits.shape)} and {tuple(targets.shape)}"
        )
    return logits[:, :frames, : tokens + 1], real_targets(targets[:, :tokens], target_lengths, blank_id)


class _Lattice(Function):
    """The loss of logits; their gradient is computed from the occupancies."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        logits: Tensor,
        targets: Tensor,
        encoder_lengths: Tensor,
        target_lengths: Tensor,
        blank_id: int,
    ) -> Tensor:
        precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
        normalizer = precise.logsumexp(dim=3)  # (B, T, U + 1)
        normalizer = normalizer.masked_fill(normalizer == -math.inf, 0.0)  # every token is impossible
        tokens = pad(targets, (0, 1), value=blank_id)[:, None, :, None].expand(-1, logits.shape[1], -1, 1)
        blank = precise[..., blank_id] - normalizer
        label = precise.gather(3, tokens).squeeze(3) - normalizer
        losses, by_blank, by_label = occupancies(blank, label, encoder_lengths, target_lengths)
        by_blank, by_label = by_blank.to(precise.dtype), by_label.to(precise.dtype)
        ctx.save_for_backward(logits, normalizer, tokens, by_blank, by_label)
        ctx.blank_id = blank_id
        return losses.to(precise.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:  # noqa: ANN401
        logits, normalizer, tokens, by_blank, by_label = ctx.saved_tensors
        visited = by_blank + by_label
        result = (logits - normalizer.unsqueeze(3)).exp_().mul_(visited.unsqueeze(3))
        result[..., ctx.blank_id] -= by_blank
        result.scatter_add_(3, tokens, -by_label.unsqueeze(3))
        result.mul_(gradient[:, None, None, None]).masked_fill_((visited == 0).unsqueeze(3), 0.0)
        return result.to(logits.dtype), None, None, None, None
