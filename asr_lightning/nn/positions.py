"""Where a frame is."""

import math

import torch
from torch import Tensor

from asr_lightning.nn.axes import Axis, Fixed, Units, axis


def sinusoids(places: Tensor, dimension: int) -> Tensor:
    """Return sinusoids (T, dimension) of places (T,): sines in even, cosines in odd columns, slower to the right.

    Source: Vaswani et al. 2017, "Attention is all you need", §3.5.
    """
    steps = torch.arange(0, dimension, 2.0, device=places.device)
    angles = places.unsqueeze(1) * torch.exp(steps * (-math.log(10_000.0) / dimension))
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :dimension]


def relative_sinusoids(size: int, dimension: int, device: torch.device | None = None) -> Tensor:
    """Return sinusoids (2 * size, dimension) of the distances size, …, 0, …, -(size - 1).

    Source: Dai et al. 2019, "Transformer-XL", §3.3.
    """
    return sinusoids(torch.arange(size, -size, -1.0, device=device), dimension)


def sinusoid_axis(dimension: int) -> Axis:
    """Say what the columns of sinusoids of an even dimension mean: every k-th wavelength of k times as many is ours."""
    return axis(Units(dimension // 2), Fixed(2, "sine and cosine"))
