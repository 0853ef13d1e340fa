"""Dropout whose random numbers cost little."""

import torch
from torch import Tensor, nn

DRAWS = 4  # of 16 bits in each random number of 64


class Dropout(nn.Module):
    """As `torch.nn.Dropout`; on a CPU, which draws one random number after another, four elements share one of 64 bits.

    There p is rounded to a multiple of 2⁻¹⁶, and what stays is scaled by what the rounded p asks for. On two cores
    torch's own takes as long as the matrix product before it.

    Args:
        p: Probability that an element becomes 0.

    Raises:
        ValueError: p is no probability.
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
        # Compared as numbers of 32 bits, which hold them exactly: processors have vector instructions for those.
        stays = draws[: x.numel()].view(x.shape).float().ge_(dropped - 2**15)
        return x * stays.to(x.dtype).mul_(2**16 / (2**16 - dropped))
