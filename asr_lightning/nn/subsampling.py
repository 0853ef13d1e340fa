"""Fewer frames: strided convolutions before an encoder."""

import torch
from torch import Tensor, nn

from asr_lightning.nn.axes import Axis, Fixed, Units, axis, units
from asr_lightning.nn.dropout import Dropout
from asr_lightning.nn.masks import real_frames, silence_padding


class ConvolutionalSubsampling(nn.Module):
    """3 × 3 convolutions of stride 2 over time and frequency, each halving both, then a projection.

    An utterance of T frames leaves with T / 2 per convolution, rounded up.

    Args:
        input_dimension: F, dimension of the features.
        dimension: D of the output.
        channels: C of every convolution.
        factor: How many times fewer frames come out: 2, 4 or 8.
        dropout: Of the output.

    Raises:
        ValueError: Another factor.
    """

    def __init__(
        self, input_dimension: int, dimension: int, channels: int, factor: int = 4, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if factor not in (2, 4, 8):
            raise ValueError(f"subsampling factor must be 2, 4 or 8, got {factor}")
        self.channels = channels
        self.frequencies = input_dimension
        inputs = 1
        convolutions = []
        for _ in range(factor.bit_length() - 1):
            convolutions.append(nn.Conv2d(inputs, channels, kernel_size=3, stride=2, padding=1))
            self.frequencies = (self.frequencies + 1) // 2
            inputs = channels
        self.convolutions = nn.ModuleList(convolutions)
        self.projection = nn.Linear(channels * self.frequencies, dimension)
        self.dropout = Dropout(dropout)

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Say that the projection reads channels × frequencies."""
        flattened = axis(Units(self.channels), Fixed(self.frequencies, "frequencies"))
        return {"projection.weight": (units(self.projection.out_features), flattened)}

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Subsample x (B, T, F) to (B, T / factor, D)."""
        # (B, 1, T, F), but with channels last in memory, as all that follows then: half the time on a CPU
        x = silence_padding(x, lengths).unsqueeze(3).permute(0, 3, 1, 2)
        for convolution in self.convolutions:
            x = convolution(x)
            lengths = (lengths + 1) // 2
            with torch.no_grad():  # what is 0 gets no gradient through `relu` either
                x.masked_fill_(~real_frames(lengths, x.shape[2])[:, None, :, None], 0.0)
            x = x.relu_()
        x = self.projection(x.transpose(1, 2).flatten(2))  # (B, T, C, F) -> (B, T, D)
        return self.dropout(x), lengths
