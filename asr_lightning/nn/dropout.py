"""Dropout with cheap random numbers on a CPU."""

import torch
from torch import Tensor, nn

DRAWS = 4  # of 16 bits in each random number of 64


class Dropout(nn.Module):
    """`torch.nn.Dropout`, but on a CPU four elements share one random number of 64 bits.

    There p is rounded to a multiple of 2⁻¹⁶, and the scale of kept elements is that of the rounded p. On two cores
    torch's dropout takes as long as the matrix product before it.

    Args:
        p: Probability that an element becomes 0.

    Raises:
        ValueError: p is not a probability.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"a probability is from 0 to 1, got a dropout of {p}")
        self.p = p

    def extra_repr(self) -> str:
        """Show the probability."""
        return f"p={self.p}"

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of x, of any shape."""
        dropped = round(self.p * 2**16)
        if not self.training or not 0 < dropped < 2**16 or x.device.type != "cpu":
            return nn.functional.dropout(x, self.p, self.training)
        draws = torch.empty(-(-x.numel() // DRAWS), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        # Compared as float32, which represents them exactly and has vector instructions.
        mask = draws[: x.numel()].view(x.shape).float().ge_(dropped - 2**15)
        return x * mask.to(x.dtype).mul_(2**16 / (2**16 - dropped))
