"""The lattice of the transducer in plain PyTorch: the recursions over it, and the operations on its blocks.

Node (t, u) of the lattice is frame t after u tokens. `kernels.py` has the same functions for a GPU.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from asr_lightning.nn.sequences import real_frames

Block = tuple[slice, slice, slice]  # utterances, frames and positions of the lattice


def negligible(normalizer: Tensor) -> float:
    """Return the highest probability of a visit whose part of a sum over frames or tokens is lost in rounding."""
    return torch.finfo(normalizer.dtype).eps / max(normalizer.shape[1:])


def hidden_units(encoded: Tensor, predicted: Tensor, block: Block) -> Tensor:
    """Return tanh(encoded + predicted) of a block, (b, t, u, D)."""
    rows, frames, positions = block
    return tanh_(encoded[rows, frames].unsqueeze(2) + predicted[rows, positions].unsqueeze(1))


def tanh_(x: Tensor) -> Tensor:
    """Return tanh(x), computed in the memory of x.

    Of float32 on a CPU it is 2σ(2x) - 1, within 2e-7: torch has vector code of its own for the sigmoid, and leaves tanh
    to MKL, which takes five times as long on AMD's processors.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return x.tanh_()
    return x.mul_(2.0).sigmoid_().mul_(2.0).sub_(1.0)


def score(
    logits: Tensor,
    targets: Tensor,
    lengths: tuple[Tensor, Tensor],
    blank_id: int,
    block: Block,
    into: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Write the logarithms of the softmax's denominators and the log probabilities of blank and next token of a block.

    Args:
        logits: (b, t, u, V) of the block; they may be overwritten.
        targets: (B, U + 1) next token at each position.
        lengths: (B,) real frames and real tokens; values written beyond them have no meaning.
        blank_id: The blank's token id.
        block: Its slices of the lattice.
        into: Normalizers, scores of the blank, scores of the next token, (B, T, U + 1) each.
    """
    normalizer, blank, label = into
    scores = logits.log_softmax(dim=3, dtype=normalizer.dtype)  # on a CPU in half the time of `logsumexp`
    highest = logits.amax(dim=3)
    impossible = highest == -math.inf  # every token
    blank[block] = scores[..., blank_id].masked_fill(impossible, -math.inf)
    label[block] = scores.gather(3, _tokens(targets, block)).squeeze(3).masked_fill(impossible, -math.inf)
    normalizer[block] = (highest - scores.amax(dim=3)).masked_fill(impossible, 0.0)


def errors(
    logits: Tensor,
    targets: Tensor,
    blank_id: int,
    normalizer: Tensor,
    by_blank: Tensor,
    by_label: Tensor,
    gradient: Tensor,
    block: Block,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of a block's logits, (b, t, u, V) in their type, and of the output layer's bias, (V,).

    Args:
        logits: (b, t, u, V) of the block; they may be overwritten.
        targets: (B, U + 1) next token at each position.
        blank_id: The blank's token id.
        normalizer: (B, T, U + 1) logarithms of the softmax's denominators.
        by_blank: (B, T, U + 1) probabilities that an alignment takes the blank there.
        by_label: (B, T, U + 1) probabilities that it takes the next token there.
        gradient: (B,) of the losses.
        block: Its slices of the lattice.
    """
    scale = gradient[block[0], None, None]
    visited = (by_blank[block] + by_label[block]) * scale
    error = logits.to(normalizer.dtype).sub_(normalizer[block].unsqueeze(3)).exp_().mul_(visited.unsqueeze(3))
    error[..., blank_id] -= by_blank[block] * scale
    error.scatter_add_(3, _tokens(targets, block), (by_label[block] * -scale).unsqueeze(3))
    return error.to(logits.dtype), error.sum(dim=(0, 1, 2))


def sums(of_hidden: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of encoded frames (b, t, D) and of predicted histories (b, u, D), both of a block.

    Args:
        of_hidden: (b, t, u, D) gradient of the hidden units.
        hidden: (b, t, u, D) hidden units.
    """
    inner = torch.ops.aten.tanh_backward(of_hidden, hidden)
    return inner.sum(dim=2), inner.sum(dim=1)


def _tokens(targets: Tensor, block: Block) -> Tensor:
    """Return the next token at each node of a block, (b, t, u, 1)."""
    rows, frames, positions = block
    return targets[rows, None, positions, None].expand(-1, frames.stop - frames.start, -1, -1)


def occupancies(
    blank: Tensor, label: Tensor, encoder_lengths: Tensor, target_lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over all alignments, in float64: forward recursion, and backward recursion on the reversed lattice, in one.

    Args:
        blank: (B, T, U + 1) log probabilities of a blank.
        label: (B, T, U + 1) log probabilities of the next token; the last column is not read.
        encoder_lengths: (B,) real frames.
        target_lengths: (B,) real tokens.

    Returns:
        Losses (B,), and the probabilities that an alignment takes each blank and each token, (B, T, U + 1) both.
    """
    batch, frames, positions = blank.shape
    if not blank.numel():  # no utterance has a frame
        zeros = torch.zeros_like(blank, dtype=torch.float64)
        return zeros.new_full((batch,), math.inf), zeros, zeros.clone()
    valid = real_frames(encoder_lengths, frames).unsqueeze(2) & real_frames(target_lengths + 1, positions).unsqueeze(1)
    blank = blank.double().masked_fill(~valid, 0.0)
    label = label.double().masked_fill(~pad(valid[:, :, 1:], (0, 1)), 0.0)
    rows = torch.arange(batch, device=blank.device)
    index = (  # of the reversed lattice, where the last frame of each utterance is the first
        rows[:, None, None],
        (encoder_lengths.unsqueeze(1) - 1 - torch.arange(frames, device=blank.device)).clamp(min=0).unsqueeze(2),
        (target_lengths.unsqueeze(1) - torch.arange(positions, device=blank.device)).clamp(min=0).unsqueeze(1),
    )
    moves = torch.cat([pad(blank[:, :-1], (0, 0, 1, 0)), blank[index]])
    emits = torch.cat([label.roll(1, dims=2), label[index]])
    alpha, reversed_beta = _recursion(moves, emits).chunk(2)
    beta = pad(reversed_beta[index].masked_fill(~valid, -math.inf), (0, 0, 0, 1), value=-math.inf)  # (B, T + 1, U + 1)
    beta[rows, encoder_lengths, target_lengths] = 0.0  # the end: behind the last frame, with all tokens emitted
    losses = torch.where(encoder_lengths > 0, -beta[:, 0, 0], math.inf)
    left = (
        alpha + losses.masked_fill(losses == math.inf, -math.inf)[:, None, None]
    )  # an impossible utterance visits no node
    left = left.masked_fill(~valid, -math.inf)
    by_blank = (left + blank + beta[:, 1:]).exp()
    by_label = pad((left[:, :, :-1] + label[:, :, :-1] + beta[:, :-1, 1:]).exp(), (0, 1))
    return losses, by_blank, by_label


def _recursion(moves: Tensor, emits: Tensor) -> Tensor:
    """Return log alpha (B, T, U + 1), one anti-diagonal t + u after the other; it may hold minus infinity.

    Args:
        moves: (B, T, U + 1) log probability of the blank that leads into each node; at (0, 0), of the start.
        emits: (B, T, U + 1) log probability of the token that leads into each node; at position 0 it is not read.
    """
    batch, frames, positions = moves.shape
    start = moves[:, 0, 0].clone()
    moves[:, 0] = emits[:, :, 0] = -math.inf
    by_blank, by_label = diagonals(moves), diagonals(emits)
    log_sums = torch.empty_like(by_blank)
    log_sums[0] = -math.inf
    log_sums[0, :, 0] = start
    moved, emitted = (torch.full_like(log_sums[0], -math.inf) for _ in range(2))
    emitted_after = emitted[:, 1:]
    steps = (log_sums, log_sums[:, :, :-1], by_blank[1:], by_label[1:, :, 1:], log_sums[1:])
    # All slices are made at once: made one by one they would take longer than the sums.
    for same, below, blank, label, total in zip(*(x.unbind() for x in steps), strict=False):
        torch.add(same, blank, out=moved)
        torch.add(below, label, out=emitted_after)
        torch.logaddexp(moved, emitted, out=total)
    flat = pad(log_sums.permute(1, 2, 0).flatten(1), (0, positions))
    return flat.view(batch, positions, frames + positions)[:, :, :frames].transpose(1, 2)


def diagonals(lattice: Tensor) -> Tensor:
    """Return the anti-diagonals (T + U, B, U + 1) of (B, T, U + 1), with minus infinity outside of it."""
    batch, frames, positions = lattice.shape
    flat = pad(lattice.transpose(1, 2), (0, positions), value=-math.inf).flatten(1)[:, :-positions]
    return flat.view(batch, positions, frames + positions - 1).permute(2, 0, 1).contiguous()


def real_targets(targets: Tensor, target_lengths: Tensor, blank_id: int) -> Tensor:
    """Return targets (B, U) with a blank for all that lies beyond the lengths."""
    return targets.masked_fill(~real_frames(target_lengths, targets.shape[1]), blank_id)


def delayed(label: Tensor, encoder_lengths: Tensor, penalty: float) -> Tensor:
    """Return log probabilities of tokens with a penalty on late ones [Kang et al. 2023, "Delay-penalized transducer"].

    A token emitted at frame t gets penalty · ((T - 1) / 2 - t) added to its log probability, so alignments that emit
    early count more. What is minimized is no negative log likelihood any more, but differs from it by the same rule for
    every network.

    Args:
        label: (B, T, U + 1) log probabilities of the next token.
        encoder_lengths: (B,) T of each utterance.
        penalty: Weight per frame; 0 changes nothing.
    """
    if penalty == 0:
        return label
    middle = (encoder_lengths.to(label.dtype) - 1) / 2  # (B,)
    earliness = middle.unsqueeze(1) - torch.arange(label.shape[1], device=label.device)  # (B, T)
    return label + penalty * earliness.to(label.dtype).unsqueeze(2)


def favored(by_label: Tensor, weight: float) -> Tensor:
    """Return probabilities of emissions as FastEmit weighs them in the gradient [Yu et al. 2021, "FastEmit"].

    The derivative of the loss by the log probability of a token is multiplied by 1 + λ, that by the log probability of
    a blank is not, so that tokens are preferred to blanks wherever an alignment may take either. This is the gradient
    of L + λ L', where L' is the loss L with blanks held constant; the value stays L, so that networks with and
    without FastEmit can be compared.

    Args:
        by_label: (B, T, U + 1) probabilities that an alignment takes the next token there.
        weight: λ; 0 changes nothing.
    """
    return by_label * (1 + weight) if weight else by_label
