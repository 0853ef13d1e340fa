"""Activations that cost little on a CPU."""

import torch
from torch import Tensor


def tanh_(x: Tensor) -> Tensor:
    """Return tanh(x) in the place of x.

    Of float32 on a CPU it is 2σ(2x) - 1, within 2e-7: torch has vector code of its own for the sigmoid, and leaves tanh
    to MKL, which takes five times as long on AMD's processors.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return x.tanh_()
    return x.mul_(2.0).sigmoid_().mul_(2.0).sub_(1.0)
