"""Conformer encoder [Gulati et al. 2020, "Conformer", §2], also one that streams.

`StreamingConformer` attends within chunks of frames and to some frames to their left, and convolves past frames only
[Zhang et al. 2020, "Unified streaming and non-streaming two-pass end-to-end model for speech recognition"].
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from asr_lightning.errors import InputError
from asr_lightning.nn.attention import RelativeSelfAttention
from asr_lightning.nn.axes import Axis, Fixed, Units, axis, units
from asr_lightning.nn.batch_norm import MaskedBatchNorm
from asr_lightning.nn.dropout import Dropout
from asr_lightning.nn.extractors import ConvolutionalSubsampling
from asr_lightning.nn.sequences import Encoder, silence_padding, visible_frames
from asr_lightning.nn.streaming import ChunkedEncoder, ChunkedLayer, State, visible_in_chunks


class Conformer(Encoder):
    """Convolutional subsampling, then blocks of feed-forward, self-attention, convolution and feed-forward.

    Args:
        input_dimension: Dimension of the features.
        dimension: D of the blocks and of the output.
        layers: Blocks.
        heads: Of the self-attention.
        feed_forward: Hidden units of the feed-forward parts.
        kernel: Frames under the depthwise convolution, odd unless `causal`.
        channels: Of the subsampling's convolutions; `dimension` if None.
        subsampling: Input frames per output frame: 2, 4 or 8.
        head_dimension: Of each attention head; `dimension / heads` if None.
        dropout: Of every part.
        causal: Whether the depthwise convolution is of a frame and those before it, not of as many on both sides.
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
        causal: bool = False,
    ) -> None:
        super().__init__(input_dimension, dimension)
        self.subsampling = ConvolutionalSubsampling(
            input_dimension, dimension, channels or dimension, subsampling, dropout
        )
        self.layers = nn.ModuleList(
            ConformerBlock(dimension, heads, feed_forward, kernel, head_dimension, dropout, causal)
            for _ in range(layers)
        )

    def output_axis(self) -> Axis:
        """Axis of the output: hidden units."""
        return units(self.dimension)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode features x (B, T, input_dimension) as (B, T / subsampling, D)."""
        x, lengths = self.subsampling(x, lengths)
        visible = self.visible(lengths, x.shape[1])
        for layer in self.layers:
            x = layer(x, lengths, visible)
        return x, lengths

    def visible(self, lengths: Tensor, size: int) -> Tensor:
        """Return where frames attend, (B, 1 or size, size), of rows of the given encoded lengths (B,): everywhere."""
        return visible_frames(lengths, size).unsqueeze(1)


class StreamingConformer(Conformer, ChunkedEncoder):
    """A Conformer that attends in chunks, with a limited context to the left, and convolves past frames only.

    A frame attends to its chunk and to the frames up to `left_context` before the chunk. In training every batch has
    its own size of chunks [Zhang et al. 2020]: in half of the batches it is as long as the longest utterance, in
    the others it is drawn evenly from 1 to `largest_chunk`. So one network can be used with chunks of any size, and be
    measured with many. The draw is of torch's generator, which a run seeds anew in every step.

    Args:
        input_dimension: Dimension of the features.
        dimension: D of the blocks and of the output.
        layers: Blocks.
        heads: Of the self-attention.
        feed_forward: Hidden units of the feed-forward parts.
        kernel: Frames under the depthwise convolution, the newest at its end.
        channels: Of the subsampling's convolutions; `dimension` if None.
        subsampling: Input frames per output frame: 2, 4 or 8.
        head_dimension: Of each attention head; `dimension / heads` if None.
        dropout: Of every part.
        chunk: Encoded frames of a chunk outside of training.
        left_context: Encoded frames before a chunk that it attends to.
        largest_chunk: Largest of the limited chunks drawn in training; 0: training has chunks of `chunk` frames.

    Attributes:
        look_ahead: chunk * subsampling frames of features, which the first frame of a chunk needs.

    Raises:
        InputError: A size is impossible.
    """

    def __init__(
        self,
        input_dimension: int,
        dimension: int,
        layers: int,
        heads: int,
        feed_forward: int,
        kernel: int = 15,
        channels: int | None = None,
        subsampling: int = 4,
        head_dimension: int | None = None,
        dropout: float = 0.1,
        chunk: int = 16,
        left_context: int = 64,
        largest_chunk: int = 25,
    ) -> None:
        if min(chunk, kernel) < 1 or min(left_context, largest_chunk) < 0:
            raise InputError(
                "StreamingConformer needs a chunk and a kernel from 1, and left_context and largest_chunk from 0, got "
                f"{chunk=}, {kernel=}, {left_context=}, {largest_chunk=}"
            )
        super().__init__(
            input_dimension, dimension, layers, heads, feed_forward, kernel, channels, subsampling, head_dimension,
            dropout, causal=True,
        )  # fmt: skip
        self.convolution_context = kernel - 1
        self.left_context = left_context
        self.largest_chunk = largest_chunk
        self.use_chunk(chunk)

    def draw_chunk(self, size: int) -> tuple[int, int]:
        """Return a random size of chunks for rows of `size` frames, and the left context."""
        coin, size_draw = torch.rand(2).tolist()
        return max(1, size) if coin < 0.5 else 1 + int(size_draw * self.largest_chunk), self.left_context

    def visible(self, lengths: Tensor, size: int) -> Tensor:
        """Return where frames attend, (B, size, size): chunks and their left context, of a random size in training."""
        return visible_in_chunks(lengths, size, *self.chunk_now(size))

    def stream(self, x: Tensor, lengths: Tensor, state: State, last: bool = False) -> tuple[Tensor, Tensor, State]:
        """Encode all complete chunks; in the last piece all frames.

        Raises:
            InputError: The encoder is in training, where BatchNorm has no statistics yet to encode a piece by.
        """
        if self.training:
            raise InputError("expected a StreamingConformer in evaluation to stream, got one in training: call eval()")
        return super().stream(x, lengths, state, last)


class ConformerBlock(ChunkedLayer):
    """Half a feed-forward part, self-attention, convolution, half a feed-forward part, each with a residual."""

    def __init__(
        self,
        dimension: int,
        heads: int,
        feed_forward: int,
        kernel: int,
        head_dimension: int | None,
        dropout: float,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.first_feed_forward = ConformerFeedForward(dimension, feed_forward, dropout)
        self.attention_norm = nn.LayerNorm(dimension)
        self.attention = RelativeSelfAttention(dimension, heads, head_dimension, dropout)
        self.convolution = ConvolutionPart(dimension, kernel, dropout, causal)
        self.second_feed_forward = ConformerFeedForward(dimension, feed_forward, dropout)
        self.norm = nn.LayerNorm(dimension)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor, visible: Tensor | None = None) -> Tensor:
        """Transform x (B, T, D); `visible` as of the attention."""
        x = torch.add(x, self.first_feed_forward(x), alpha=0.5)
        x = x + self.dropout(self.attention(self.attention_norm(x), lengths, visible))
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

    def __init__(self, dimension: int, kernel: int, dropout: float, causal: bool = False) -> None:
        super().__init__()
        self.dimension = dimension
        self.norm = nn.LayerNorm(dimension)
        self.gated = nn.Linear(dimension, 2 * dimension)
        self.depthwise = DepthwiseConvolution(dimension, kernel, causal)
        self.batch_norm = MaskedBatchNorm(dimension)
        self.output = nn.Linear(dimension, dimension)
        self.dropout = Dropout(dropout)

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of the gated linear unit, which packs values and gates."""
        halves = axis(Fixed(2, "value and gate"), Units(self.dimension))
        return {"gated.weight": (halves, units(self.dimension)), "gated.bias": (halves,)}

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Transform x (B, T, D)."""
        x = self.depthwise(functional.glu(self.gated(self.norm(x)), dim=2), lengths)
        return self.dropout(self.output(functional.silu(self.batch_norm(x, lengths))))

    def stream(self, x: Tensor, lengths: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        """Transform a piece x (B, T, D) with the gated frames to its left, and return those to the left of the next."""
        x = torch.cat([left, functional.glu(self.gated(self.norm(x)), dim=2)], dim=1)
        left = x[:, x.shape[1] - left.shape[1] :]
        x = self.depthwise.filter(x.transpose(1, 2)).transpose(1, 2)
        return self.output(functional.silu(self.batch_norm(x, lengths))), left


class DepthwiseConvolution(nn.Module):
    """One filter per channel along time, with zeros before the beginning and after the end of an utterance.

    Args:
        channels: D.
        kernel: Frames under the filter, odd unless causal.
        causal: Whether the filter is of a frame and those before it; otherwise it is centered.
    """

    def __init__(self, channels: int, kernel: int, causal: bool = False) -> None:
        super().__init__()
        if kernel % 2 == 0 and not causal:
            raise ValueError(f"a centered convolution needs an odd kernel, got {kernel}")
        self.past = kernel - 1 if causal else 0
        padding = 0 if causal else kernel // 2
        self.filter = DepthwiseFilter(channels, channels, kernel, padding=padding, groups=channels)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Filter x (B, T, D) along time."""
        x = functional.pad(silence_padding(x, lengths), (0, 0, self.past, 0))
        return self.filter(x.transpose(1, 2)).transpose(1, 2)


class DepthwiseFilter(nn.Conv1d):
    """torch's depthwise `Conv1d`, four times as fast on a CPU if channels are last in memory."""

    def forward(self, x: Tensor) -> Tensor:
        """Filter x (B, D, T)."""
        if x.device.type != "cpu":
            return super().forward(x)
        image = x.transpose(1, 2).unsqueeze(2).permute(0, 3, 1, 2)  # (B, D, T, 1), for which oneDNN has vector code
        padding, weight = (int(self.padding[0]), 0), self.weight.unsqueeze(3)
        filtered = functional.conv2d(image, weight, self.bias, padding=padding, groups=self.groups)
        return filtered.squeeze(3)
