"""The transducer loss over the alignments that stay near the likely ones, after Kuang et al. 2022, "Pruned RNN-T".

At each frame the joint network is computed at a few positions only, so neither time nor memory grows with T x U x V.
Which positions those are is decided by a cheap estimate of the lattice. Kuang et al. train two linear layers of their
own for it, with a loss of their own. Here it needs no weights: the tanh of the joint network is replaced by a sum of a
term of the frame and a term of the history,

    tanh(e + p)  is about  tanh(e + mean p) + tanh(mean e + p) - tanh(mean e + mean p),

so the softmax's denominators of all nodes are one matrix product of (T, V) by (V, U + 1).

Let C(t, u) be the estimated probability that frame t ends at position u or before. An alignment stays within the
positions s to e at frame t with probability C(t, e) - C(t - 1, s - 1), up to alignments that emit all of them in that
frame. Each frame gets the `width` positions for which this is highest, moved so that the ranges of successive frames
overlap. With a bound on the probability left out, ranges are widened to the quantiles of C until the alignments outside
of them have less than that, by the exact scores inside the ranges and the estimated ones outside.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, pad

from asr_lightning.errors import InputError
from asr_lightning.losses.transducer.joint import (
    LOGITS,
    TransducerLoss,
    check_lengths,
    check_shapes,
    checked_fast_emit,
    operations_for,
)
from asr_lightning.losses.transducer.lattice import delayed, favored, negligible, real_targets, tanh_
from asr_lightning.nn.sequences import real_frames, silence_padding

NODES = 512  # of a chunk on a CPU: their hidden units stay in its cache
SHARE_DIVISOR = 8.0  # divides the probability that a range may leave out on each side, from one widening to the next


class PrunedLoss(TransducerLoss):
    """The loss over the alignments that stay near the likely ones: `pruned_transducer_loss`.

    Args:
        width: Positions of each frame, at least 2.
        left_out: Widen the ranges of an utterance until the alignments outside of them have at most this probability,
            as the cheap estimate has it. None: `width` positions always, as Kuang et al. have it, who train the
            estimate by a loss of its own. Without that, the ranges of a network that has learned nothing are far from
            the right alignments, and it hardly learns: only for a network that has.
        delay_penalty: Weight of the delay of tokens, see `lattice.delayed`.
        fast_emit: λ of FastEmit, see `lattice.favored`.

    Raises:
        InputError: `width` is below 2, `left_out` is not between 0 and 1, or `fast_emit` is negative or not finite.
    """

    def __init__(
        self, width: int = 5, left_out: float | None = 0.05, delay_penalty: float = 0.0, fast_emit: float = 0.0
    ) -> None:
        if width < 2:
            raise InputError(f"expected a width of at least 2 positions, got {width}")
        if left_out is not None and not 0 < left_out < 1:
            raise InputError(f"expected left_out to be a probability between 0 and 1, got {left_out}")
        self.width, self.left_out, self.delay_penalty = width, left_out, delay_penalty
        self.fast_emit = checked_fast_emit(fast_emit)

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
        lengths = encoder_lengths, target_lengths
        options = self.width, self.left_out, self.delay_penalty, self.fast_emit
        return pruned_transducer_loss(
            encoded, predicted, output.weight, output.bias, targets, *lengths, blank_id, *options
        )


@torch.compiler.disable
def pruned_transducer_loss(
    encoded: Tensor,
    predicted: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    encoder_lengths: Tensor,
    target_lengths: Tensor,
    blank_id: int,
    width: int = 5,
    left_out: float | None = None,
    delay_penalty: float = 0.0,
    fast_emit: float = 0.0,
) -> Tensor:
    """Return `joint_transducer_loss` without the alignments that leave the ranges, with gradients for all four tensors.

    It is never below the exact loss; with ranges of all positions it is the exact loss. The ranges are taken as given
    by the gradients. An utterance of more tokens than `width - 1` per frame gets as many positions as it needs.

    Under autocast the joint network is computed in the type of autocast, all sums in float32 and the recursions in
    float64. On a GPU, the number of nodes is read back from the device once, and once for each widening.

    Args:
        encoded: (B, T, D) projected frames.
        predicted: (B, U + 1, D) projected histories: before any token, and after each.
        weight: (V, D) of the output layer.
        bias: (V,) of the output layer.
        targets: (B, U) token ids; what lies beyond the lengths is ignored.
        encoder_lengths: (B,) real frames.
        target_lengths: (B,) real tokens; 0 is an empty transcript.
        blank_id: The blank's token id.
        width: Positions of each frame, at least 2.
        left_out: Highest estimate of the probability, given the targets, of the alignments outside of the ranges;
            None: any.
        delay_penalty: Weight of the delay of tokens, see `lattice.delayed`.
        fast_emit: λ of FastEmit, which changes the gradients alone, see `lattice.favored`.

    Returns:
        (B,) losses, float32 or that of float64 input; infinite, with a gradient of zero, where there is no frame or no
        possible alignment within the ranges.

    Raises:
        ValueError: The shapes do not fit each other, or (on a CPU) the lengths.
    """
    check_shapes(encoded, predicted, targets)
    check_lengths((*encoded.shape[:2], predicted.shape[1]), encoder_lengths, target_lengths)
    kind = encoded.device.type
    if torch.is_autocast_enabled(kind):
        low = torch.get_autocast_dtype(kind)
        encoded, predicted, weight, bias = (x.to(low) for x in (encoded, predicted, weight, bias))
    targets = pad(real_targets(targets, target_lengths, blank_id), (0, 1), value=blank_id)  # (B, U + 1)
    lengths = encoder_lengths, target_lengths
    with torch.autocast(kind, enabled=False):
        return _Pruned.apply(
            encoded, predicted, weight, bias, targets, *lengths, blank_id, width, left_out, delay_penalty, fast_emit,
            torch.is_grad_enabled(),
        )  # fmt: skip


class _Pruned(Function):
    """The loss over the nodes within the ranges; hidden units and log probabilities of those nodes are kept."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        encoded: Tensor,
        predicted: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        encoder_lengths: Tensor,
        target_lengths: Tensor,
        blank_id: int,
        width: int,
        left_out: float | None,
        delay_penalty: float,
        fast_emit: float,
        keep: bool,
    ) -> Tensor:
        lengths, occupancies = (encoder_lengths, target_lengths), operations_for(encoded).occupancies
        encoded = silence_padding(encoded, encoder_lengths)
        predicted = silence_padding(predicted, target_lengths + 1)
        blank, label = estimated_scores(encoded, predicted, weight, bias, targets, *lengths, blank_id)  # (B, T, U + 1)
        valid = real_frames(encoder_lengths, blank.shape[1]).unsqueeze(2)
        valid = valid & real_frames(target_lengths + 1, blank.shape[2]).unsqueeze(1)
        _, by_blank, _ = occupancies(blank, delayed(label, encoder_lengths, delay_penalty), *lengths)
        inside = valid & best_ranges(by_blank, *lengths, width)
        new, share, saved = inside, left_out or 0.0, []
        while True:  # once without `left_out`
            saved += _score(encoded, predicted, weight, bias, targets, blank_id, new, blank, label, keep)
            penalized = delayed(label, encoder_lengths, delay_penalty)
            within = (scores.masked_fill(~inside, -math.inf) for scores in (blank, penalized))
            losses, by_blank, by_label = occupancies(*within, *lengths)
            if left_out is None:
                break
            all_losses, all_blanks, _ = occupancies(blank, penalized, *lengths)
            exceeds = 1 - (all_losses - losses).exp() > left_out  # (B,)
            missing = valid & ~inside & exceeds[:, None, None]
            if not bool(missing.any()):
                break
            share /= SHARE_DIVISOR
            new = missing & quantile_ranges(all_blanks, share)
            new |= missing & ~new.any(dim=2).any(dim=1)[:, None, None]  # nothing new in the quantiles: all nodes
            inside |= new
        if keep:
            visits = by_blank.to(blank.dtype), favored(by_label, fast_emit).to(blank.dtype)
            ctx.save_for_backward(weight, targets, *visits, *(x for chunk in saved for x in chunk))
        ctx.blank_id = blank_id
        return losses.to(blank.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        weight, targets, by_blank, by_label, *saved = ctx.saved_tensors
        (batch, frames, positions), (vocabulary, dimension) = by_blank.shape, weight.shape
        sizes = (batch * frames, dimension), (batch * positions, dimension), (vocabulary, dimension), (vocabulary,)
        of_encoded, of_predicted, of_weight, of_bias = (by_blank.new_zeros(size) for size in sizes)
        least = negligible(by_blank)
        for nodes, hidden, log_probs in zip(saved[::3], saved[1::3], saved[2::3], strict=True):
            blanks, labels = by_blank.view(-1)[nodes], by_label.view(-1)[nodes]
            if nodes.device.type == "cpu":
                visited = (blanks + labels > least).nonzero().squeeze(1)
                if len(visited) < len(nodes):  # products with what is left out would be slow, too: they are denormal
                    kept = nodes, blanks, labels, hidden, log_probs
                    nodes, blanks, labels, hidden, log_probs = (x.index_select(0, visited) for x in kept)
            frame, utterance, row = _rows(nodes, frames, positions)
            scale = gradient[utterance]
            blanks, labels = blanks * scale, labels * scale
            error = log_probs.exp().mul_((blanks + labels).unsqueeze(1))  # (N, V)
            error[:, ctx.blank_id] -= blanks
            error.scatter_add_(1, targets.view(-1)[row].unsqueeze(1), -labels.unsqueeze(1))
            of_bias += error.sum(dim=0)
            error = error.to(hidden.dtype)
            of_weight += error.T @ hidden
            inner = torch.ops.aten.tanh_backward(error @ weight, hidden).to(of_encoded.dtype)
            _add_rows(of_encoded, frame, inner)
            _add_rows(of_predicted, row, inner)
        of_encoded = of_encoded.view(batch, frames, dimension)
        of_predicted = of_predicted.view(batch, positions, dimension)
        return (*(x.to(weight.dtype) for x in (of_encoded, of_predicted, of_weight, of_bias)), *[None] * 9)


def _score(
    encoded: Tensor,
    predicted: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    blank_id: int,
    chosen: Tensor,
    blank: Tensor,
    label: Tensor,
    keep: bool,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Write the exact scores of chosen nodes, and return nodes (N,), hidden units (N, D), log probabilities (N, V).

    Args:
        encoded: (B, T, D) projected frames.
        predicted: (B, U + 1, D) projected histories.
        weight: (V, D) of the output layer.
        bias: (V,) of the output layer.
        targets: (B, U + 1) next token at each position.
        blank_id: The blank's token id.
        chosen: (B, T, U + 1) True where a score is wanted.
        blank: (B, T, U + 1) log probabilities of the blank, to be written.
        label: (B, T, U + 1) log probabilities of the next token, to be written.
        keep: Return what is computed, in chunks; otherwise nothing.
    """
    chunks, (_, frames, positions) = [], chosen.shape
    size = min(NODES, LOGITS["cpu"] // len(weight)) if blank.device.type == "cpu" else LOGITS["cuda"] // len(weight)
    all_frames, all_histories = encoded.flatten(0, 1), predicted.flatten(0, 1)
    all_nodes = chosen.flatten().nonzero().squeeze(1)
    all_rows = _rows(all_nodes, frames, positions)
    for nodes, frame, _, row in zip(*(x.split(max(1, size)) for x in (all_nodes, *all_rows)), strict=True):
        hidden = all_frames.index_select(0, frame)
        hidden = tanh_(hidden.add_(all_histories.index_select(0, row)))
        logits = linear(hidden, weight, bias)
        log_probs = logits.log_softmax(dim=1, dtype=blank.dtype)
        log_probs.masked_fill_((logits.amax(dim=1) == -math.inf).unsqueeze(1), -math.inf)  # every token is impossible
        blank.view(-1)[nodes] = log_probs[:, blank_id]
        label.view(-1)[nodes] = log_probs.gather(1, targets.view(-1)[row].unsqueeze(1)).squeeze(1)
        if keep:
            chunks.append((nodes, hidden, log_probs))
    return chunks


def _rows(nodes: Tensor, frames: int, positions: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return of nodes (N,) of a flat lattice the row of the frame, the utterance, and the row of the history."""
    frame = nodes // positions
    utterance = frame // frames
    return frame, utterance, nodes + (utterance - frame) * positions


def _add_rows(total: Tensor, index: Tensor, x: Tensor) -> None:
    """Add each row of x (N, D) to the row of `total` that has its index (N,)."""
    if x.device.type == "cpu":
        total.index_add_(0, index, x)
    else:  # sorts, so that a sum is the same every time
        total += torch.ops.aten.embedding_dense_backward(x, index, len(total), -1, False)


def estimated_scores(
    encoded: Tensor,
    predicted: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    encoder_lengths: Tensor,
    target_lengths: Tensor,
    blank_id: int,
) -> tuple[Tensor, Tensor]:
    """Return estimated log probabilities of blank and next token, (B, T, U + 1) both, by a sum in place of the tanh.

    Args:
        encoded: (B, T, D) projected frames, zero in the padding.
        predicted: (B, U + 1, D) projected histories, zero in the padding.
        weight: (V, D) of the output layer.
        bias: (V,) of the output layer.
        targets: (B, U + 1) next token at each position.
        encoder_lengths: (B,) real frames.
        target_lengths: (B,) real tokens.
        blank_id: The blank's token id.
    """
    precise = torch.promote_types(encoded.dtype, torch.float32)
    frame = encoded.sum(dim=1, dtype=precise) / encoder_lengths.clamp(min=1).unsqueeze(1)  # (B, D) means
    history = predicted.sum(dim=1, dtype=precise) / (target_lengths + 1).unsqueeze(1)
    frame, history = frame.to(encoded.dtype).unsqueeze(1), history.to(encoded.dtype).unsqueeze(1)
    of_frames = linear(torch.tanh(encoded + history), weight).to(precise)  # (B, T, V)
    of_histories = linear(torch.tanh(predicted + frame) - torch.tanh(frame + history), weight, bias).to(precise)
    blank = of_frames[:, :, blank_id].unsqueeze(2) + of_histories[:, :, blank_id].unsqueeze(1)
    label = of_frames.gather(2, targets.unsqueeze(1).expand(-1, encoded.shape[1], -1))
    label += of_histories.gather(2, targets.unsqueeze(2)).transpose(1, 2)
    largest = [x.amax(dim=2, keepdim=True).clamp(min=torch.finfo(precise).min) for x in (of_frames, of_histories)]
    total = of_frames.sub_(largest[0]).exp_() @ of_histories.sub_(largest[1]).exp_().transpose(1, 2)
    total = total.clamp_(min=torch.finfo(precise).tiny).log_().add_(largest[0]).add_(largest[1].transpose(1, 2))
    return blank.sub_(total), label.sub_(total)


def best_ranges(by_blank: Tensor, encoder_lengths: Tensor, target_lengths: Tensor, width: int) -> Tensor:
    """Return True (B, T, U + 1) at the `width` successive positions where an alignment most probably stays per frame.

    The first range begins at position 0, the last ends with the last position, starts never decrease, and each range
    begins within the one before. An utterance that needs wider ranges for this gets them.

    Args:
        by_blank: (B, T, U + 1) probabilities that an alignment takes the blank there.
        encoder_lengths: (B,) real frames.
        target_lengths: (B,) real tokens.
        width: Positions of each range.
    """
    batch, frames, positions = by_blank.shape
    if not by_blank.numel():
        return torch.zeros_like(by_blank, dtype=torch.bool)
    position, frame = (torch.arange(size, device=by_blank.device) for size in (positions, frames))
    needed = (target_lengths + encoder_lengths.clamp(min=1) - 1) // encoder_lengths.clamp(min=1) + 1
    widths = needed.clamp(min=width).unsqueeze(1)  # (B, 1)
    last_start = (target_lengths.unsqueeze(1) + 1 - widths).clamp(min=0)
    ended = by_blank.double().cumsum(dim=2)  # C(t, u)
    end = (position + widths - 1).clamp(max=positions - 1).unsqueeze(1).expand(batch, frames, positions)
    began = pad(ended[:, :-1, :-1], (1, 0, 1, 0))  # C(t - 1, u - 1)
    began[:, 0, 1:] = 1.0
    stays = (ended.gather(2, end) - began).masked_fill((position > last_start).unsqueeze(1), -math.inf)
    start = stays.argmax(dim=2).cummax(dim=1).values  # (B, T)
    start = torch.where(frame >= encoder_lengths.unsqueeze(1) - 1, last_start, start)
    climb = (widths - 1) * frame  # the highest start of each frame
    start = (start - climb).flip(1).cummax(dim=1).values.flip(1) + climb
    start = start.minimum(climb).unsqueeze(2)
    return (position >= start) & (position < start + widths.unsqueeze(2))


def quantile_ranges(by_blank: Tensor, share: float) -> Tensor:
    """Return True (B, T, U + 1) where an alignment may be but for a share of probability below and above, per frame.

    Args:
        by_blank: (B, T, U + 1) probabilities that an alignment takes the blank there.
        share: Probability below 0.5.
    """
    ended = by_blank.double().cumsum(dim=2)
    entered = pad(ended[:, :-1], (0, 0, 1, 0), value=1.0)  # where the frame before ended: at first, at position 0
    return (entered > share) & (pad(ended[:, :, :-1], (1, 0)) < 1 - share)
