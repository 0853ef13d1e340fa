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
    return torch.add(x.new_tensor(-1.0), x.mul_(2.0).sigmoid_(), alpha=2.0, out=x)


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
    rows, position = torch.arange(batch, device=blank.device), torch.arange(positions, device=blank.device)
    ends = rows, (encoder_lengths - 1).clamp(min=0), target_lengths  # last node of each utterance
    real, target_lengths = real_frames(encoder_lengths, frames).unsqueeze(2), target_lengths[:, None, None]
    outside, silent = ~(real & (position <= target_lengths)), ~(real & (position < target_lengths))
    last = blank[ends].double().masked_fill(encoder_lengths == 0, -math.inf)  # the blank that ends the alignment
    # From its last node, each utterance goes on to the last node of the batch by steps of probability 1.
    behind = ~real_frames(encoder_lengths - 1, frames).unsqueeze(2) & (position == target_lengths)
    blank = blank.double().masked_fill(outside, -math.inf).masked_fill_(behind, 0.0)
    label = label.double().masked_fill(silent, -math.inf)
    label[:, -1].masked_fill_(position >= target_lengths[:, 0], 0.0)
    alpha, beta = _recursion(blank, label)
    losses = -(beta[:, 0, 0] + last)
    total = beta[:, 0, 0].masked_fill(losses == math.inf, math.inf)  # an impossible utterance visits no node
    alpha = alpha - total[:, None, None]
    by_blank, by_label = blank.add_(alpha), label.add_(alpha)
    by_blank[:, :-1] += beta[:, 1:]
    by_label[:, :, :-1] += beta[:, :, 1:]
    by_blank[:, -1] = -math.inf  # a blank of the last frame is the end of an alignment, or of none
    by_blank[ends] = alpha[ends]
    # Not by `exp`, which torch leaves to MKL: it takes more than fifty times as long where the result is below 1e-308.
    by_blank, by_label = (x.mul_(math.log2(math.e)).exp2_() for x in (by_blank, by_label))
    return losses, by_blank.masked_fill_(outside, 0.0), by_label.masked_fill_(silent, 0.0)


def _recursion(blank: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Return log alpha and log beta, (B, T, U + 1) both, of all alignments from the first node to the last.

    Both recursions go over one anti-diagonal t + u after the other, at the same time: that of beta on the reversed
    lattice.

    Args:
        blank: (B, T, U + 1) log probability of the blank at each node; it may be minus infinity.
        label: (B, T, U + 1) log probability of the next token, likewise; that of the last position is not read.
    """
    batch, frames, positions = blank.shape
    diagonals, columns = frames + positions - 1, 2 * batch  # columns of alpha, then of beta
    sums = blank.new_full((diagonals, positions + 1, columns), -math.inf)  # with a position before the first
    steps = blank.new_full((diagonals, 2, positions, columns), -math.inf)  # into each node, by a token and by a blank
    _lattice_of(steps[:, 1, :, :batch], frames)[:, 1:] = blank[:, :-1]
    _lattice_of(steps[:, 0, :, :batch], frames)[:, :, 1:] = label[:, :, :-1]
    _lattice_of(steps[:, 1, :, batch:], frames).copy_(blank.flip(1, 2))
    _lattice_of(steps[:, 0, :, batch:], frames).copy_(label.flip(1, 2))
    sums[0, 1] = 0.0
    size = positions * columns
    before = sums.as_strided((diagonals, 2, size), (size + columns, columns, 1))  # a position lower, and the same
    paths = sums.new_empty(2, size)
    by_label, by_blank = paths
    # All slices are made at once: made one by one they would take longer than the sums.
    of_steps = before[:-1], steps[1:].flatten(2), sums[1:, 1:].flatten(1)
    for source, step, total in zip(*(x.unbind() for x in of_steps), strict=True):
        torch.add(source, step, out=paths)
        torch.logaddexp(by_label, by_blank, out=total)
    alpha, beta = (_lattice_of(x, frames) for x in sums[:, 1:].split(batch, dim=2))
    return alpha, beta.flip(1, 2)


def _lattice_of(diagonals: Tensor, frames: int) -> Tensor:
    """Return the lattice (B, T, U + 1), in the memory of its anti-diagonals (T + U, U + 1, B)."""
    _, positions, batch = diagonals.shape
    along, across, utterance = diagonals.stride()
    return diagonals.as_strided(
        (batch, frames, positions), (utterance, along, along + across), diagonals.storage_offset()
    )


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
