"""Normalization of features, by utterance or by the training data."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from asr_lightning.errors import InputError
from asr_lightning.nn.axes import Axis, Fixed, axis
from asr_lightning.nn.sequences import real_frames

VARIANCE_FLOOR = 1e-5  # added to variances, so that a dimension that never changes is normalized to zero


class Normalization(nn.Module, ABC):
    """Base class of normalizations: `(features (B, T, D), lengths (B,)) -> features`.

    Attributes:
        streams: Whether a frame is normalized without the others, so that the utterance may go on after it.
    """

    streams = False

    def allocate(self, dimension: int) -> None:  # noqa: B027 - not all have statistics
        """Make room for statistics of D dimensions; a feature module calls it once, when it is built."""

    @abstractmethod
    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Normalize features (B, T, D); what becomes of frames beyond the lengths does not matter."""


class UtteranceNormalization(Normalization):
    """Zero mean and unit variance over each utterance's own frames, per dimension.

    Args:
        variance: Also divide by the standard deviation, not only subtract the mean.
    """

    def __init__(self, variance: bool = True) -> None:
        super().__init__()
        self.variance = variance

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Normalize features (B, T, D) of the given lengths (B,)."""
        mask = real_frames(lengths, features.shape[1]).unsqueeze(2)  # (B, T, 1)
        count = lengths.clamp(min=1).view(-1, 1, 1)  # (B, 1, 1)
        mean = features.masked_fill(~mask, 0.0).sum(dim=1, keepdim=True) / count  # (B, 1, D)
        centered = features - mean
        if not self.variance:
            return centered
        variance = centered.masked_fill(~mask, 0.0).square().sum(dim=1, keepdim=True) / count
        return centered / torch.sqrt(variance + VARIANCE_FLOOR)


class GlobalNormalization(Normalization):
    """Zero mean and unit variance over the training data, per dimension.

    Sums are gathered in float64 while training, until `frames` frames were seen; then they are frozen. They are
    buffers and part of the state_dict. Before any frame was seen (a sanity check before training) features pass
    unchanged. On several ranks, DistributedDataParallel broadcasts the sums of rank 0, so all ranks normalize alike.

    Args:
        frames: Frames to see before the statistics are frozen; the batch that reaches the number counts wholly.

    Raises:
        InputError: `frames` is not positive.
    """

    streams = True
    count: Tensor
    sums: Tensor
    squares: Tensor

    def __init__(self, frames: int = 500_000) -> None:
        super().__init__()
        if frames < 1:
            raise InputError(f"GlobalNormalization needs frames >= 1, got {frames}")
        self.frames = frames
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def allocate(self, dimension: int) -> None:
        """Make room for the sums of D dimensions; they are lost if there were any."""
        self.count.zero_()
        for name in ("sums", "squares"):
            self.register_buffer(name, torch.zeros(dimension, dtype=torch.float64, device=self.count.device))

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Return the axes: no two dimensions of the features belong together."""
        return {name: (axis(Fixed(len(self.sums), "features")),) for name in ("sums", "squares")}

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Normalize features (B, T, D); in training mode, learn from them first."""
        if not hasattr(self, "sums"):
            self.allocate(features.shape[2])
        if self.training:
            self._accumulate(features.detach(), lengths)
        has_frames = self.count > 0
        count = self.count.clamp(min=1)
        mean = self.sums / count
        variance = torch.where(has_frames, (self.squares / count - mean.square()).clamp(min=0.0) + VARIANCE_FLOOR, 1.0)
        return (features - mean.to(features.dtype)) / variance.sqrt().to(features.dtype)

    @torch.no_grad()
    def _accumulate(self, features: Tensor, lengths: Tensor) -> None:
        learning = self.count < self.frames  # a tensor: asking the device for its value would stall it
        mask = real_frames(lengths, features.shape[1]).unsqueeze(2)  # (B, T, 1)
        values = features.masked_fill(~mask, 0.0).double()
        self.sums += learning * values.sum(dim=(0, 1))
        self.squares += learning * values.square().sum(dim=(0, 1))
        self.count += learning * mask.sum()
