"""BatchNorm on the input-to-hidden term of recurrent layers, without computing that term."""

from typing import Any

import torch
from torch import Tensor, nn

from asr_lightning.nn.convolution import follow
from asr_lightning.nn.masks import silence_padding

Term = tuple[Tensor, Tensor, Tensor]  # mean (G,) and variance (G,) of W x over real frames, and their number


class InputNorm(nn.Module):
    """BatchNorm of W x over all real frames [Amodei et al. 2016, §3.2], folded into W and the bias.

    The mean of W x over frames is W μ, its variance diag(W Σ Wᵀ), with mean μ and covariance Σ of x. So the normalised
    term is again a matrix times x plus a bias, and the libraries' fastest recurrent kernels apply.

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
        """Return matrix and bias with the normalisation in them; without a term's statistics by the running ones."""
        with torch.autocast(device_type=weight.device.type, enabled=False):
            if term is None:
                mean, variance = self.running_mean, self.running_variance
            else:
                mean, variance, count = term
                follow(self, mean, variance, count)
            scale = self.weight * torch.rsqrt(variance + self.epsilon)
            return weight * scale.unsqueeze(1), bias - mean * scale


def term_statistics(x: Tensor, lengths: Tensor, weights: list[Tensor]) -> list[Term]:
    """Return mean and variance (G,) of W x over the real frames of x (B, T, D), and their number, for every W."""
    with torch.autocast(device_type=x.device.type, enabled=False):
        count = lengths.sum()
        some = count.clamp(min=1)
        mean = silence_padding(x.float(), lengths).sum(dim=(0, 1)) / some
        centred = silence_padding(x.float() - mean, lengths).flatten(0, 1)
        variances = _TermVariance.apply(torch.cat(weights), centred, some).chunk(len(weights))
        return [(weight @ mean, variance, count) for weight, variance in zip(weights, variances, strict=True)]


class _TermVariance(torch.autograd.Function):
    """diag(W Σ Wᵀ) with the covariance Σ of frames, in half the products that autograd would need for its gradient."""

    @staticmethod
    def forward(context: Any, weight: Tensor, centred: Tensor, count: Tensor) -> Tensor:  # noqa: ANN401
        """Return the variance (G,) of W x, for W (G, D) and centred frames x (N, D), zero where they are padding."""
        terms = weight @ (symmetric_product(centred, centred) / count)
        context.save_for_backward(weight, centred, count, terms)
        return (terms * weight).sum(dim=1).clamp(min=0.0)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: ANN401
        """Return the gradients of W and x."""
        weight, centred, count, terms = context.saved_tensors
        scaled = weight * gradient.unsqueeze(1)
        of_frames = centred @ (symmetric_product(scaled, weight) * (2.0 / count))
        return 2.0 * terms * gradient.unsqueeze(1), of_frames, None


def symmetric_product(a: Tensor, b: Tensor, blocks: int = 4) -> Tensor:
    """Return aᵀ b (D, D) of matrices (N, D) for which it is symmetric, from the blocks on its diagonal and above."""
    size = max(1, -(-a.shape[1] // blocks))
    product = a.new_empty(a.shape[1], a.shape[1])
    for start in range(0, a.shape[1], size):
        stop = start + size
        rows = a[:, start:stop].T @ b[:, start:]
        product[start:stop, start:] = rows
        product[start:, start:stop] = rows.T
    return product
