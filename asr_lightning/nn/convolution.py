"""Convolutions and normalisations that never see padding."""

import torch
from torch import Tensor, nn

from asr_lightning.nn.masks import real_frames, silence_padding


class MaskedBatchNorm(nn.Module):
    """BatchNorm over the channels of sequences, with statistics of the real frames only.

    Args:
        channels: D.
        momentum: Weight of a batch in the running statistics.
        epsilon: Added to the variance.
    """

    running_mean: Tensor
    running_variance: Tensor

    def __init__(self, channels: int, momentum: float = 0.1, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.momentum = momentum
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_variance", torch.ones(channels))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Normalise x (B, T, D) of the given lengths (B,)."""
        if self.training:
            mean, variance = self._statistics(x, lengths)
        else:
            mean, variance = self.running_mean, self.running_variance
        scale = self.weight * torch.rsqrt(variance + self.epsilon)
        return x * scale + (self.bias - mean * scale)

    def _statistics(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        real = real_frames(lengths, x.shape[1]).unsqueeze(2)  # (B, T, 1)
        count = lengths.sum().clamp(min=1)
        values = x.float()
        mean = values.masked_fill(~real, 0.0).sum(dim=(0, 1)) / count
        variance = (values - mean).masked_fill(~real, 0.0).square().sum(dim=(0, 1)) / count
        with torch.no_grad():
            unbiased = variance * (count / (count - 1).clamp(min=1))
            # Nothing is learned from a batch without frames.
            momentum = self.momentum * (lengths.sum() > 0)
            self.running_mean.lerp_(mean, momentum)
            self.running_variance.lerp_(unbiased, momentum)
        return mean, variance


class DepthwiseConvolution(nn.Module):
    """One filter per channel along time, centred; what lies beyond an utterance's end counts as zero.

    Args:
        channels: D.
        kernel: Frames under the filter, odd.
    """

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"a centred convolution needs an odd kernel, got {kernel}")
        self.filter = nn.Conv1d(channels, channels, kernel, padding=kernel // 2, groups=channels)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Filter x (B, T, D) along time."""
        return self.filter(silence_padding(x, lengths).transpose(1, 2)).transpose(1, 2)
