"""Where a frame is."""

import math

import torch
from torch import Tensor


def relative_sinusoids(size: int, dimension: int, device: torch.device | None = None) -> Tensor:
    """Return sinusoids (2 * size, dimension) of the distances size, …, 0, …, -(size - 1).

    Source: Dai et al. 2019, "Transformer-XL", §3.3; sines in even, cosines in odd columns.
    """
    distances = torch.arange(size, -size, -1.0, device=device)  # (2T,)
    steps = torch.arange(0, dimension, 2.0, device=device)
    angles = distances.unsqueeze(1) * torch.exp(steps * (-math.log(10_000.0) / dimension))
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :dimension]
