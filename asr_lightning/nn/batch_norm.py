"""BatchNorm over the real frames of a batch, also folded into the input weights of recurrent layers."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from asr_lightning.nn.sequences import real_frames, silence_padding

Term = tuple[Tensor, Tensor, Tensor]  # mean (G,) and variance (G,) of W x over real frames, and their number


class MaskedBatchNorm(nn.Module):
    """BatchNorm of the channels of sequences, with statistics of the real frames only.

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
        """Normalize x (B, T, D) of the given lengths (B,)."""
        mask = real_frames(lengths, x.shape[1]).unsqueeze(2)  # (B, T, 1)
        return self._normalized(x, mask, lengths.sum(), (0, 1))

    def _normalized(self, x: Tensor, mask: Tensor, count: Tensor, dimensions: tuple[int, ...]) -> Tensor:
        """Normalize x over `dimensions`, with the statistics of its real entries, `count` for each channel."""
        shape = [1 if dimension in dimensions else -1 for dimension in range(x.dim())]
        if self.training:
            y, mean, variance = _Normalization.apply(
                x.float(), mask.float(), count.clamp(min=1), self.weight, self.bias, self.epsilon, dimensions
            )
            update_running_statistics(self, mean, variance, count)
            return y.to(x.dtype)
        scale = self.weight * torch.rsqrt(self.running_variance + self.epsilon)
        return x * scale.view(shape) + (self.bias - self.running_mean * scale).view(shape)


class _Normalization(torch.autograd.Function):
    """(x - mean) / deviation · weight + bias, with a gradient in the fewest possible passes over x.

    Padding becomes the bias, and gets no gradient.
    """

    @staticmethod
    def forward(
        context: Any,  # noqa: ANN401
        x: Tensor,
        mask: Tensor,
        count: Tensor,
        weight: Tensor,
        bias: Tensor,
        epsilon: float,
        dimensions: tuple[int, ...],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the normalized x, and mean and variance of every channel."""
        shape = [1 if dimension in dimensions else -1 for dimension in range(x.dim())]
        mean = (x * mask).sum(dim=dimensions) / count
        centered = (x - mean.view(shape)).mul_(mask)
        variance = torch.linalg.vector_norm(centered, dim=dimensions).square() / count
        inverse = torch.rsqrt(variance + epsilon)
        context.save_for_backward(centered, mask, count, weight, inverse)
        context.dimensions, context.shape = dimensions, shape
        context.mark_non_differentiable(mean, variance)
        return torch.addcmul(bias.view(shape), centered, (inverse * weight).view(shape)), mean, variance

    @staticmethod
    def backward(context: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Return the gradients of x, weight and bias."""
        centered, mask, count, weight, inverse = context.saved_tensors
        dimensions, shape = context.dimensions, context.shape
        of_bias = gradient.sum(dim=dimensions)
        masked = gradient * mask
        total = masked.sum(dim=dimensions)
        projection = (masked * centered).sum(dim=dimensions)  # centered is zero in padding
        slope = projection * inverse.square() / count
        of_x = masked.sub_((total / count).view(shape)).addcmul_(centered, slope.view(shape), value=-1.0)
        of_x = of_x.mul_((inverse * weight).view(shape)).mul_(mask)
        return of_x, None, None, projection * inverse, of_bias, None, None


class MaskedBatchNorm2d(MaskedBatchNorm):
    """BatchNorm of the channels of images over time and frequency, with statistics of the real frames only."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Normalize x (B, C, T, F) of the given lengths (B,)."""
        mask = real_frames(lengths, x.shape[2])[:, None, :, None]
        return self._normalized(x, mask, lengths.sum() * x.shape[3], (0, 2, 3))


class RunningStatistics(Protocol):
    """A module with running statistics."""

    momentum: float
    running_mean: Tensor
    running_variance: Tensor


@torch.no_grad()
def update_running_statistics(norm: RunningStatistics, mean: Tensor, variance: Tensor, count: Tensor) -> None:
    """Move running statistics towards those of a batch.

    A batch without frames changes nothing, nor does a channel whose numbers overflowed: a statistic that is not
    finite would never become finite again.
    """
    unbiased = variance * (count / (count - 1).clamp(min=1))
    finite = (count > 0) & mean.isfinite() & unbiased.isfinite()  # (D,)
    norm.running_mean.lerp_(torch.where(finite, mean, norm.running_mean), norm.momentum)
    norm.running_variance.lerp_(torch.where(finite, unbiased, norm.running_variance), norm.momentum)


class InputNorm(nn.Module):
    """BatchNorm of W x over all real frames [Amodei et al. 2016, §3.2], folded into W and the bias.

    The mean of W x over frames is W μ, its variance diag(W Σ Wᵀ), with mean μ and covariance Σ of x. So the normalized
    term is again a matrix times x plus a bias, and the fastest recurrent kernels of torch can be used.

    Args:
        rows: Of W.
        momentum: Weight of a batch in the running statistics.
        epsilon: Added to the variance.
    """

    running_mean: Tensor
    running_variance: Tensor

    def __init__(self, rows: int, momentum: float = 0.1, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.momentum = momentum
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(rows))
        self.register_buffer("running_mean", torch.zeros(rows))
        self.register_buffer("running_variance", torch.ones(rows))

    def forward(self, weight: Tensor, bias: Tensor, term: Term | None) -> tuple[Tensor, Tensor]:
        """Return matrix and bias with the normalization folded in; `term` None stands for the running statistics."""
        with torch.autocast(device_type=weight.device.type, enabled=False):
            if term is None:
                mean, variance = self.running_mean, self.running_variance
            else:
                mean, variance, count = term
                update_running_statistics(self, mean, variance, count)
            scale = self.weight * torch.rsqrt(variance + self.epsilon)
            return weight * scale.unsqueeze(1), bias - mean * scale


def term_statistics(x: Tensor, lengths: Tensor, weights: list[Tensor]) -> list[Term]:
    """Return mean and variance (G,) of W x over the real frames of x (B, T, D), and their number, for every W."""
    with torch.autocast(device_type=x.device.type, enabled=False):
        count = lengths.sum()
        divisor = count.clamp(min=1)
        mean = silence_padding(x.float(), lengths).sum(dim=(0, 1)) / divisor
        centered = silence_padding(x.float() - mean, lengths).flatten(0, 1)
        variances = _TermVariance.apply(torch.cat(weights), centered, divisor).chunk(len(weights))
        return [(weight @ mean, variance, count) for weight, variance in zip(weights, variances, strict=True)]


class _TermVariance(torch.autograd.Function):
    """diag(W Σ Wᵀ) with the covariance Σ of frames, with half the products of autograd in its gradient."""

    @staticmethod
    def forward(context: Any, weight: Tensor, centered: Tensor, count: Tensor) -> Tensor:  # noqa: ANN401
        """Return the variance (G,) of W x, for W (G, D) and centered frames x (N, D), zero in padding."""
        terms = weight @ (symmetric_product(centered, centered) / count)
        context.save_for_backward(weight, centered, count, terms)
        return (terms * weight).sum(dim=1).clamp(min=0.0)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: ANN401
        """Return the gradients of W and x."""
        weight, centered, count, terms = context.saved_tensors
        scaled = weight * gradient.unsqueeze(1)
        of_frames = centered @ (symmetric_product(scaled, weight) * (2.0 / count))
        return 2.0 * terms * gradient.unsqueeze(1), of_frames, None


def symmetric_product(a: Tensor, b: Tensor, blocks: int = 4) -> Tensor:
    """Return aᵀ b (D, D) of matrices (N, D) for which it is symmetric, from its blocks on and above the diagonal."""
    size = max(1, -(-a.shape[1] // blocks))
    product = a.new_empty(a.shape[1], a.shape[1])
    for start in range(0, a.shape[1], size):
        stop = start + size
        rows = a[:, start:stop].T @ b[:, start:]
        product[start:stop, start:] = rows
        product[start:, start:stop] = rows.T
    return product
