"""Convolutions and normalisations that never see padding."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

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
        real = real_frames(lengths, x.shape[1]).unsqueeze(2)  # (B, T, 1)
        return self._normalized(x, real, lengths.sum(), (0, 1))

    def _normalized(self, x: Tensor, real: Tensor, count: Tensor, dimensions: tuple[int, ...]) -> Tensor:
        """Normalise x by its real places, `count` for each channel, over all dimensions but that of the channels."""
        shape = [1 if place in dimensions else -1 for place in range(x.dim())]
        if self.training:
            y, mean, variance = _Normalization.apply(
                x.float(), real.float(), count.clamp(min=1), self.weight, self.bias, self.epsilon, dimensions
            )
            follow(self, mean, variance, count)
            return y.to(x.dtype)
        scale = self.weight * torch.rsqrt(self.running_variance + self.epsilon)
        return x * scale.view(shape) + (self.bias - self.running_mean * scale).view(shape)


class _Normalization(torch.autograd.Function):
    """(x - mean) / deviation · weight + bias, with a gradient made in as few passes over x as there can be.

    What is not real becomes the bias, and gets no gradient.
    """

    @staticmethod
    def forward(
        context: Any,  # noqa: ANN401
        x: Tensor,
        real: Tensor,
        count: Tensor,
        weight: Tensor,
        bias: Tensor,
        epsilon: float,
        dimensions: tuple[int, ...],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the normalised x, and mean and variance of every channel."""
        shape = [1 if place in dimensions else -1 for place in range(x.dim())]
        mean = (x * real).sum(dim=dimensions) / count
        centred = (x - mean.view(shape)).mul_(real)
        variance = torch.linalg.vector_norm(centred, dim=dimensions).square() / count
        inverse = torch.rsqrt(variance + epsilon)
        context.save_for_backward(centred, real, count, weight, inverse)
        context.dimensions, context.shape = dimensions, shape
        context.mark_non_differentiable(mean, variance)
        return torch.addcmul(bias.view(shape), centred, (inverse * weight).view(shape)), mean, variance

    @staticmethod
    def backward(context: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Return the gradients of x, weight and bias."""
        centred, real, count, weight, inverse = context.saved_tensors
        dimensions, shape = context.dimensions, context.shape
        of_bias = gradient.sum(dim=dimensions)
        of_real = gradient * real
        total = of_real.sum(dim=dimensions)
        along = (of_real * centred).sum(dim=dimensions)  # centred is zero where nothing is real
        slope = along * inverse.square() / count
        of_x = of_real.sub_((total / count).view(shape)).addcmul_(centred, slope.view(shape), value=-1.0)
        of_x = of_x.mul_((inverse * weight).view(shape)).mul_(real)
        return of_x, None, None, along * inverse, of_bias, None, None


class MaskedBatchNorm2d(MaskedBatchNorm):
    """The same for images of time and frequency."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Normalise x (B, C, T, F) of the given lengths (B,)."""
        real = real_frames(lengths, x.shape[2])[:, None, :, None]
        return self._normalized(x, real, lengths.sum() * x.shape[3], (0, 2, 3))


class Follower(Protocol):
    """Has running statistics."""

    momentum: float
    running_mean: Tensor
    running_variance: Tensor


@torch.no_grad()
def follow(norm: Follower, mean: Tensor, variance: Tensor, count: Tensor) -> None:
    """Move running statistics towards those of a batch.

    Nothing is learned from a batch without frames, nor about a channel whose numbers overflowed: statistics that are
    not finite once would never be again.
    """
    unbiased = variance * (count / (count - 1).clamp(min=1))
    learned = (count > 0) & mean.isfinite() & unbiased.isfinite()  # (D,)
    norm.running_mean.lerp_(torch.where(learned, mean, norm.running_mean), norm.momentum)
    norm.running_variance.lerp_(torch.where(learned, unbiased, norm.running_variance), norm.momentum)


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
        self.filter = _DepthwiseFilter(channels, channels, kernel, padding=kernel // 2, groups=channels)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Filter x (B, T, D) along time."""
        return self.filter(silence_padding(x, lengths).transpose(1, 2)).transpose(1, 2)


class _DepthwiseFilter(nn.Conv1d):
    """The same as its base, in a quarter of the time on a CPU where channels are last in memory."""

    def forward(self, x: Tensor) -> Tensor:
        """Filter x (B, D, T)."""
        if x.device.type != "cpu":
            return super().forward(x)
        image = x.transpose(1, 2).unsqueeze(2).permute(0, 3, 1, 2)  # (B, D, T, 1): for this oneDNN has vector code
        padding = (self.kernel_size[0] // 2, 0)
        filtered = functional.conv2d(image, self.weight.unsqueeze(3), self.bias, padding=padding, groups=self.groups)
        return filtered.squeeze(3)
