"""The RNN transducer's loss [Graves 2012, "Sequence transduction with recurrent neural networks", section 2.4].

An alignment is a walk from frame 0 with no token emitted: at (t, u) it emits token u + 1 and stays in the frame, or a
blank and goes on to the next frame; the last frame ends with a blank after all tokens. With y the emission and b the
blank probabilities, the probability of being at (t, u) is

    alpha(t, u) = alpha(t - 1, u) b(t - 1, u) + alpha(t, u - 1) y(t, u - 1),    alpha(0, 0) = 1

and the loss is -log(alpha(T - 1, U) b(T - 1, U)).
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad
from torchaudio.functional import rnnt_loss

from asr_lightning.nn.sequences import real_frames

IMPOSSIBLE = -1e30  # below the highest logit, to torchaudio: sums of it stay finite


def transducer_loss(
    logits: Tensor, targets: Tensor, encoder_lengths: Tensor, target_lengths: Tensor, blank_id: int
) -> Tensor:
    """Return the negative log likelihood of each utterance, summed over all its alignments.

    Where the logits come from a joint network, `joint_transducer_loss` never holds them all, and is the faster one.

    Args:
        logits: (B, T, U + 1, V), not normalised, in any floating type; may be padded beyond the longest row.
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


def torchaudio_loss(
    logits: Tensor, targets: Tensor, encoder_lengths: Tensor, target_lengths: Tensor, blank_id: int
) -> Tensor:
    """Return the same from torchaudio's kernel, in float32. Arguments and errors are those of `transducer_loss`."""
    possible = encoder_lengths > 0  # torchaudio's recursion has no place to end where there is no frame
    lengths = encoder_lengths, target_lengths
    if bool(possible.all()):
        logits, targets = _cut(logits, targets, *lengths, blank_id)
        if bool(logits.isneginf().any()):  # torchaudio's recursion can make NaN of it
            logits = logits.float().maximum(logits.detach().float().amax(dim=3, keepdim=True) + IMPOSSIBLE)
        losses = _rnnt_loss(logits, targets, *lengths, blank_id)
        possible = ~(losses >= -IMPOSSIBLE)
        if bool(possible.all()):
            return losses
    losses = logits.new_full((len(logits),), math.inf, dtype=torch.float32)
    rows = possible.nonzero().squeeze(1)
    sound = logits[rows].float().sum(dim=(1, 2, 3))  # of no row, with a gradient
    if len(rows):
        sound = torchaudio_loss(logits[rows], targets[rows], encoder_lengths[rows], target_lengths[rows], blank_id)
    return losses.index_copy(0, rows, sound)


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


def occupancies(
    blank: Tensor, label: Tensor, encoder_lengths: Tensor, target_lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over all alignments, in float64: the recursion forward and, on the lattice turned around, backward at once.

    Args:
        blank: (B, T, U + 1) log probabilities of a blank.
        label: (B, T, U + 1) log probabilities of the next token; the last column is not read.
        encoder_lengths: (B,) real frames.
        target_lengths: (B,) real tokens.

    Returns:
        Losses (B,), and how probable it is that an alignment takes each blank and each token, (B, T, U + 1) both.
    """
    batch, frames, places = blank.shape
    if not blank.numel():  # no row has a frame
        nothing = torch.zeros_like(blank, dtype=torch.float64)
        return nothing.new_full((batch,), math.inf), nothing, nothing.clone()
    real = real_frames(encoder_lengths, frames).unsqueeze(2) & real_frames(target_lengths + 1, places).unsqueeze(1)
    blank = blank.double().masked_fill(~real, 0.0)
    label = label.double().masked_fill(~pad(real[:, :, 1:], (0, 1)), 0.0)
    rows = torch.arange(batch, device=blank.device)
    index = (  # of the lattice turned around, where the last frame of each row is the first
        rows[:, None, None],
        (encoder_lengths.unsqueeze(1) - 1 - torch.arange(frames, device=blank.device)).clamp(min=0).unsqueeze(2),
        (target_lengths.unsqueeze(1) - torch.arange(places, device=blank.device)).clamp(min=0).unsqueeze(1),
    )
    moves = torch.cat([pad(blank[:, :-1], (0, 0, 1, 0)), blank[index]])
    emits = torch.cat([label.roll(1, dims=2), label[index]])
    alpha, turned = _walk(moves, emits).chunk(2)
    beta = pad(turned[index].masked_fill(~real, -math.inf), (0, 0, 0, 1), value=-math.inf)  # (B, T + 1, U + 1)
    beta[rows, encoder_lengths, target_lengths] = 0.0  # the end: behind the last frame, with all tokens emitted
    losses = torch.where(encoder_lengths > 0, -beta[:, 0, 0], math.inf)
    left = alpha + losses.masked_fill(losses == math.inf, -math.inf)[:, None, None]  # an impossible row takes nothing
    left = left.masked_fill(~real, -math.inf)
    by_blank = (left + blank + beta[:, 1:]).exp()
    by_label = pad((left[:, :, :-1] + label[:, :, :-1] + beta[:, :-1, 1:]).exp(), (0, 1))
    return losses, by_blank, by_label


def _walk(moves: Tensor, emits: Tensor) -> Tensor:
    """Return log alpha (B, T, U + 1), one anti-diagonal t + u after the other; it may hold minus infinity.

    Args:
        moves: (B, T, U + 1) log probability of the blank that leads into each place; at (0, 0), of the start.
        emits: (B, T, U + 1) log probability of the token that leads into each place; of place 0 it is not read.
    """
    batch, frames, places = moves.shape
    start = moves[:, 0, 0].clone()
    moves[:, 0] = emits[:, :, 0] = -math.inf
    by_blank, by_label = _skew(moves), _skew(emits)
    walks = torch.empty_like(by_blank)
    walks[0] = -math.inf
    walks[0, :, 0] = start
    moved, emitted = (torch.full_like(walks[0], -math.inf) for _ in range(2))
    for step in range(1, len(walks)):
        torch.add(walks[step - 1], by_blank[step], out=moved)
        torch.add(walks[step - 1, :, :-1], by_label[step, :, 1:], out=emitted[:, 1:])
        torch.logaddexp(moved, emitted, out=walks[step])
    flat = pad(walks.permute(1, 2, 0).flatten(1), (0, places))
    return flat.view(batch, places, frames + places)[:, :, :frames].transpose(1, 2)


def _skew(lattice: Tensor) -> Tensor:
    """Return the anti-diagonals (T + U, B, U + 1) of (B, T, U + 1), minus infinity where they leave it."""
    batch, frames, places = lattice.shape
    flat = pad(lattice.transpose(1, 2), (0, places), value=-math.inf).flatten(1)[:, :-places]
    return flat.view(batch, places, frames + places - 1).permute(2, 0, 1).contiguous()


def _cut(
    logits: Tensor, targets: Tensor, encoder_lengths: Tensor, target_lengths: Tensor, blank_id: int
) -> tuple[Tensor, Tensor]:
    """Cut padding that no row needs, and make the rest of the targets blanks."""
    frames, tokens = (int(lengths.max()) if len(lengths) else 0 for lengths in (encoder_lengths, target_lengths))
    if logits.shape[1] < frames or logits.shape[2] < tokens + 1 or targets.shape[1] < tokens:
        raise ValueError(
            f"{frames} frames and {tokens} tokens need logits of at least (B, {frames}, {tokens + 1}, V) and targets "
            f"of (B, {tokens}), got {tuple(logits.shape)} and {tuple(targets.shape)}"
        )
    return logits[:, :frames, : tokens + 1], real_targets(targets[:, :tokens], target_lengths, blank_id)


def real_targets(targets: Tensor, target_lengths: Tensor, blank_id: int) -> Tensor:
    """Return targets (B, U) with a blank for all that lies beyond the lengths."""
    return targets.masked_fill(~real_frames(target_lengths, targets.shape[1]), blank_id)


class _Lattice(Function):
    """The loss of logits that are there already; the gradient comes from the occupancies."""

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
        normaliser = precise.logsumexp(dim=3)  # (B, T, U + 1)
        normaliser = normaliser.masked_fill(normaliser == -math.inf, 0.0)  # where nothing is possible
        tokens = pad(targets, (0, 1), value=blank_id)[:, None, :, None].expand(-1, logits.shape[1], -1, 1)
        blank = precise[..., blank_id] - normaliser
        label = precise.gather(3, tokens).squeeze(3) - normaliser
        losses, by_blank, by_label = occupancies(blank, label, encoder_lengths, target_lengths)
        by_blank, by_label = by_blank.to(precise.dtype), by_label.to(precise.dtype)
        ctx.save_for_backward(logits, normaliser, tokens, by_blank, by_label)
        ctx.blank_id = blank_id
        return losses.to(precise.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:  # noqa: ANN401
        logits, normaliser, tokens, by_blank, by_label = ctx.saved_tensors
        visited = by_blank + by_label
        result = (logits - normaliser.unsqueeze(3)).exp_().mul_(visited.unsqueeze(3))
        result[..., ctx.blank_id] -= by_blank
        result.scatter_add_(3, tokens, -by_label.unsqueeze(3))
        result.mul_(gradient[:, None, None, None]).masked_fill_((visited == 0).unsqueeze(3), 0.0)
        return result.to(logits.dtype), None, None, None, None
