"""What is done to a block of the transducer's lattice, in plain PyTorch. On a GPU, `transducer_kernels` does it."""

import math

import torch
from torch import Tensor

from asr_lightning.losses.transducer import occupancies

__all__ = ["Block", "errors", "hidden_units", "negligible", "occupancies", "score", "sums"]

Block = tuple[slice, slice, slice]  # rows, frames and places of the lattice


def negligible(normaliser: Tensor) -> float:
    """Return how probable a visit is whose part of any sum over frames or tokens is below the rounding of its terms."""
    return torch.finfo(normaliser.dtype).eps / max(normaliser.shape[1:])


def hidden_units(encoded: Tensor, predicted: Tensor, block: Block) -> Tensor:
    """Return tanh(encoded + predicted) of a block, (b, t, u, D)."""
    rows, frames, places = block
    return _tanh(encoded[rows, frames].unsqueeze(2) + predicted[rows, places].unsqueeze(1))


def _tanh(x: Tensor) -> Tensor:
    """Return tanh(x) in the place of x.

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
    """Write the softmax's denominators and the scores of the blank and of the next token, all logarithms, of a block.

    Args:
        logits: (b, t, u, V) of the block; they may be overwritten.
        targets: (B, U + 1) the next token at each place.
        lengths: (B,) real frames and real tokens: what is written beyond them is not said.
        blank_id: The blank's token id.
        block: Where the block lies.
        into: (B, T, U + 1) each.
    """
    normaliser, blank, label = into
    scores = logits.log_softmax(dim=3, dtype=normaliser.dtype)  # on a CPU in half the time of `logsumexp`
    highest = logits.amax(dim=3)
    nothing = highest == -math.inf  # is possible there
    blank[block] = scores[..., blank_id].masked_fill(nothing, -math.inf)
    label[block] = scores.gather(3, _tokens(targets, block)).squeeze(3).masked_fill(nothing, -math.inf)
    normaliser[block] = (highest - scores.amax(dim=3)).masked_fill(nothing, 0.0)


def errors(
    logits: Tensor,
    targets: Tensor,
    blank_id: int,
    normaliser: Tensor,
    by_blank: Tensor,
    by_label: Tensor,
    gradient: Tensor,
    block: Block,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of a block's logits, (b, t, u, V) in their type, and of the output layer's bias, (V,).

    Args:
        logits: (b, t, u, V) of the block; they may be overwritten.
        targets: (B, U + 1) the next token at each place.
        blank_id: The blank's token id.
        normaliser: (B, T, U + 1) logarithms of the softmax's denominators.
        by_blank: (B, T, U + 1) how probable it is that an alignment takes the blank there.
        by_label: (B, T, U + 1) the same of the next token.
        gradient: (B,) of the losses.
        block: Where the block lies.
    """
    scale = gradient[block[0], None, None]
    visited = (by_blank[block] + by_label[block]) * scale
    error = logits.to(normaliser.dtype).sub_(normaliser[block].unsqueeze(3)).exp_().mul_(visited.unsqueeze(3))
    error[..., blank_id] -= by_blank[block] * scale
    error.scatter_add_(3, _tokens(targets, block), (by_label[block] * -scale).unsqueeze(3))
    return error.to(logits.dtype), error.sum(dim=(0, 1, 2))


def sums(of_hidden: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the encoded frames, (b, t, D), and of the predicted histories, (b, u, D), of a block.

    Args:
        of_hidden: (b, t, u, D) gradient of the hidden units.
        hidden: (b, t, u, D) hidden units.
    """
    inner = torch.ops.aten.tanh_backward(of_hidden, hidden)
    return inner.sum(dim=2), inner.sum(dim=1)


def _tokens(targets: Tensor, block: Block) -> Tensor:
    """Return the next token of each place of a block, (b, t, u, 1)."""
    rows, frames, places = block
    return targets[rows, None, places, None].expand(-1, frames.stop - frames.start, -1, -1)
