"""Conformer encoder [Gulati et al. 2020, "Conformer", §2]."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from asr_lightning.nn.attention import RelativeSelfAttention
from asr_lightning.nn.axes import Axis, Fixed, Units, axis, units
from asr_lightning.nn.batch_norm import MaskedBatchNorm
from asr_lightning.nn.dropout import Dropout
from asr_lightning.nn.extractors import ConvolutionalSubsampling
from asr_lightning.nn.sequences import Encoder, silence_padding


class Conformer(Encoder):
    """Convolutional subsampling, then blocks of feed-forward, self-attention, convolution and feed-forward.

    Args:
        input_dimension: Dimension of the features.
        dimension: D of the blocks and of the output.
        layers: Blocks.
        heads: Of the self-attention.
        feed_forward: Hidden units of the feed-forward parts.
        kernel: Frames under the depthwise convolution, odd.
        channels: Of the subsampling's convolutions; `dimension` if None.
        subsampling: Input frames per output frame: 2, 4 or 8.
        head_dimension: Of each attention head; `dimension / heads` if None.
        dropout: Of every part.
    """

    def __init__(
        self,
        input_dimension: int,
        dimension: int,
        layers: int,
        heads: int,
        feed_forward: int,
        kernel: int = 31,
        channels: int | None = None,
        subsampling: int = 4,
        head_dimension: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(input_dimension, dimension)
        self.subsampling = ConvolutionalSubsampling(
            input_dimension, dimension, channels or dimension, subsampling, dropout
        )
        self.layers = nn.ModuleList(
            ConformerBlock(dimension, heads, feed_forward, kernel, head_dimension, dropout) for _ in range(layers)
        )

    def output_axis(self) -> Axis:
        """Axis of the output: hidden units."""
        return units(self.dimension)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode features x (B, T, input_dimension) as (B, T / subsampling, D)."""
        x, lengths = self.subsampling(x, lengths)
        for layer in self.layers:
            x = layer(x, lengths)
        return x, lengths


class ConformerBlock(nn.Module):
    """Half a feed-forward part, self-attention, convolution, half a feed-forward part, each with a residual."""

    def __init__(
        self, dimension: int, heads: int, feed_forward: int, kernel: int, head_dimension: int | None, dropout: float
    ) -> None:
        super().__init__()
        self.first_feed_forward = ConformerFeedForward(dimension, feed_forward, dropout)
        self.attention_norm = nn.LayerNorm(dimension)
        self.attention = RelativeSelfAttention(dimension, heads, head_dimension, dropout)
        self.convolution = ConvolutionPart(dimension, kernel, dropout)
        self.second_feed_forward = ConformerFeedForward(dimension, feed_forward, dropout)
        self.norm = nn.LayerNorm(dimension)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Transform x (B, T, D)."""
        x = torch.add(x, self.first_feed_forward(x), alpha=0.5)
        x = x + self.dropout(self.attention(self.attention_norm(x), lengths))
        x = x + self.convolution(x, lengths)
        x = torch.add(x, self.second_feed_forward(x), alpha=0.5)
        return self.norm(x)


class ConformerFeedForward(nn.Sequential):
    """LayerNorm, expansion, Swish, contraction."""

    def __init__(self, dimension: int, hidden: int, dropout: float) -> None:
        super().__init__(
            nn.LayerNorm(dimension),
            nn.Linear(dimension, hidden),
            nn.SiLU(),
            Dropout(dropout),
            nn.Linear(hidden, dimension),
            Dropout(dropout),
        )


class ConvolutionPart(nn.Module):
    """LayerNorm, gated linear unit, depthwise convolution, BatchNorm, Swish, linear."""

    def __init__(self, dimension: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.dimension = dimension
        self.norm = nn.LayerNorm(dimension)
        self.gated = nn.Linear(dimension, 2 * dimension)
        self.depthwise = DepthwiseConvolution(dimension, kernel)
        self.batch_norm = MaskedBatchNorm(dimension)
        self.output = nn.Linear(dimension, dimension)
        self.dropout = Dropout(dropout)

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of the gated linear unit, which packs values and gates."""
        halves = axis(Fixed(2, "value and gate"), Units(self.dimension))
        return {"gated.weight": (halves, units(self.dimension)), "gated.bias": (halves,)}

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Transform x (B, T, D)."""
        x = functional.glu(self.gated(self.norm(x)), dim=2)
        x = self.batch_norm(self.depthwise(x, lengths), lengths)
        return self.dropout(self.output(functional.silu(x)))


class DepthwiseConvolution(nn.Module):
    """One centered filter per channel along time, with zeros after the end of an utterance.

    Args:
        channels: D.
        kernel: Frames under the filter, odd.
    """

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"a centered convolution needs an odd kernel, got {kernel}")
        self.filter = _DepthwiseFilter(channels, channels, kernel, padding=kernel // 2, groups=channels)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Filter x (B, T, D) along time."""
        return self.filter(silence_padding(x, lengths).transpose(1, 2)).transpose(1, 2)


class _DepthwiseFilter(nn.Conv1d):
    """torch's depthwise `Conv1d`, four times as fast on a CPU if channels are last in memory."""

    def forward(self, x: Tensor) -> Tensor:
        """Filter x (B, D, T)."""
        if x.device.type != "cpu":
            return super().forward(x)
        image = x.transpose(1, 2).unsqueeze(2).permute(0, 3, 1, 2)  # (B, D, T, 1), for which oneDNN has vector code
        padding = (self.kernel_size[0] // 2, 0)
        filtered = functional.conv2d(image, self.weight.unsqueeze(3), self.bias, padding=padding, groups=self.groups)
        return filtered.squeeze(3)
