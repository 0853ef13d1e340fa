"""What is real and what is padding."""

import torch
from torch import Tensor


def real_frames(lengths: Tensor, size: int) -> Tensor:
    """True (B, size) where a frame is real, False where it is padding, of rows of the given lengths (B,)."""
    return torch.arange(size, device=lengths.device) < lengths.unsqueeze(1)


def visible_frames(lengths: Tensor, size: int) -> Tensor:
    """Return where attention can look in rows of the given lengths (B,), (B, size): at their real frames.

    A row without any frame would leave nothing to normalise: it sees its first, which is padding.
    """
    return real_frames(lengths.clamp(min=1), size)


def silence_padding(x: Tensor, lengths: Tensor) -> Tensor:
    """Set the padding of x (B, T, ...) to zero."""
    real = real_frames(lengths, x.shape[1])
    return x.masked_fill(~real.view(*real.shape, *[1] * (x.dim() - 2)), 0.0)
