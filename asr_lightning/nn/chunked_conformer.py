"""The Conformer of SpeechBrain's public streaming transducers.

It is that of Gulati et al. 2020 with LayerNorm instead of BatchNorm in the convolution part, positions that are the
same to both sides, and convolutions in front that reflect an utterance at its ends. In chunks, the convolution part
sees the frames before a chunk, and none behind it [Li et al. 2023, "Dynamic chunk convolution"].
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from asr_lightning.errors import InputError
from asr_lightning.nn.attention import RelativeSelfAttention
from asr_lightning.nn.axes import Axis, Fixed, Taps, Units, axis, units
from asr_lightning.nn.conformer import ConformerFeedForward, DepthwiseFilter
from asr_lightning.nn.dropout import Dropout
from asr_lightning.nn.sequences import Encoder, silence_padding, visible_frames
from asr_lightning.nn.streaming import ChunkedEncoder, ChunkedLayer, State, visible_in_chunks

FINAL_EPSILON = 1e-6  # of the last norm; the others have torch's default
# What is drawn in training, as in SpeechBrain's recipe.
CHUNKED = 0.6  # share of batches that are encoded in chunks
LIMITED = 0.75  # share of these in which the context to the left is limited
SMALLEST_CHUNK = 8  # frames
LEFT_CHUNKS = (2, 32)  # chunks to the left, fewest and most


class LayerNormConformer(Encoder):
    """Convolutions, then Conformer blocks with LayerNorm throughout; every frame attends to the whole utterance.

    The sizes of SpeechBrain's `conformer_transducer.yaml` for LibriSpeech are the defaults. It computes the same as the
    encoder there, with one difference that only batches show: no row sees another row's padding.

    Args:
        input_dimension: Dimension of the features.
        dimension: D of the blocks and of the output.
        layers: Blocks.
        heads: Of the self-attention; they divide D.
        feed_forward: Hidden units of the feed-forward parts.
        kernel: Frames under the depthwise convolution, odd.
        channels: Of the convolutions in front, each of which halves time and frequencies.
        dropout: Of every part.

    Raises:
        InputError: A size is impossible.
    """

    def __init__(
        self,
        input_dimension: int,
        dimension: int = 512,
        layers: int = 12,
        heads: int = 8,
        feed_forward: int = 2048,
        kernel: int = 31,
        channels: Sequence[int] = (64, 32),
        dropout: float = 0.1,
    ) -> None:
        if min(dimension, heads, kernel) < 1 or dimension % 2 or dimension % heads or kernel % 2 == 0:
            raise InputError(
                f"{type(self).__name__} needs an even dimension that its heads divide, and an odd kernel, got "
                f"{dimension=}, {heads=}, {kernel=}"
            )
        super().__init__(input_dimension, dimension)
        self.subsampling = ReflectedSubsampling(input_dimension, dimension, channels, dropout)
        self.layers = nn.ModuleList(
            LayerNormBlock(dimension, heads, feed_forward, kernel, dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dimension, eps=FINAL_EPSILON)

    def output_axis(self) -> Axis:
        """Axis of the output: hidden units."""
        return units(self.dimension)

    def chunks(self, size: int) -> tuple[int, int] | None:
        """Return the size of chunks for rows of `size` frames, and the left context; None: there are no chunks."""
        return None

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode features x (B, T, input_dimension) as (B, T / 2 ** convolutions, D)."""
        x, lengths = self.subsampling(x, lengths)
        chunks = self.chunks(x.shape[1])
        if chunks is None:
            visible = visible_frames(lengths, x.shape[1]).unsqueeze(1)
        else:
            visible = visible_in_chunks(lengths, x.shape[1], *chunks)
        for layer in self.layers:
            x = layer(x, lengths, visible, chunks and chunks[0])
        return self.norm(x), lengths


class ChunkedConformer(LayerNormConformer, ChunkedEncoder):
    """The same in chunks, with a limited context to the left: it streams.

    A frame attends to its chunk and to the frames up to `left_context` before the chunk. The convolution parts see half
    a kernel before the frame, also of earlier chunks, and behind it only the frames of its chunk. In training every
    batch has its own size of chunks and its own context, drawn as in SpeechBrain's recipe: in 40 % of the batches the
    whole utterance is one chunk; in the others a chunk has from 8 to `largest_chunk` frames, with the whole left
    context in a quarter of them, and with 2 to 32 chunks in the rest. The draw is of torch's generator.

    Args:
        input_dimension: Dimension of the features.
        dimension: D of the blocks and of the output.
        layers: Blocks.
        heads: Of the self-attention; they divide D.
        feed_forward: Hidden units of the feed-forward parts.
        kernel: Frames under the depthwise convolution, odd.
        channels: Of the convolutions in front, each of which halves time and frequencies.
        dropout: Of every part.
        chunk: Encoded frames of a chunk outside of training.
        left_context: Encoded frames before a chunk that it attends to.
        largest_chunk: Largest of the limited chunks drawn in training; 0: training has chunks of `chunk` frames.

    Attributes:
        look_ahead: chunk * 2 ** convolutions frames of features, until a chunk's first is encoded.

    Raises:
        InputError: A size is impossible.
    """

    def __init__(
        self,
        input_dimension: int,
        dimension: int = 512,
        layers: int = 12,
        heads: int = 8,
        feed_forward: int = 2048,
        kernel: int = 31,
        channels: Sequence[int] = (64, 32),
        dropout: float = 0.1,
        chunk: int = 24,
        left_context: int = 96,
        largest_chunk: int = 32,
    ) -> None:
        if chunk < 1 or min(left_context, largest_chunk) < 0:
            raise InputError(
                "ChunkedConformer needs a chunk from 1, and left_context and largest_chunk from 0, got "
                f"{chunk=}, {left_context=}, {largest_chunk=}"
            )
        super().__init__(input_dimension, dimension, layers, heads, feed_forward, kernel, channels, dropout)
        self.convolution_context = kernel // 2
        self.left_context = left_context
        self.largest_chunk = largest_chunk
        self.use_chunk(chunk)

    def chunks(self, size: int) -> tuple[int, int]:
        """Return the size of chunks for rows of `size` frames, and the left context; random ones in training."""
        return self.chunk_now(size)

    def draw_chunk(self, size: int) -> tuple[int, int]:
        """Return a random size of chunks for rows of `size` frames, and a left context."""
        chunked, drawn, limited, left = torch.rand(4).tolist()
        if chunked >= CHUNKED:
            return max(1, size), 0
        smallest = min(SMALLEST_CHUNK, self.largest_chunk)
        chunk = smallest + int(drawn * (self.largest_chunk + 1 - smallest))
        fewest, most = LEFT_CHUNKS
        return chunk, chunk * (fewest + int(left * (most + 1 - fewest))) if limited < LIMITED else size

    def stream(self, x: Tensor, lengths: Tensor, state: State, last: bool = False) -> tuple[Tensor, Tensor, State]:
        """Encode the chunks that are whole by now; in the last piece all."""
        y, lengths, state = super().stream(x, lengths, state, last)
        return self.norm(y), lengths, state


class LayerNormBlock(ChunkedLayer):
    """Half a feed-forward part, self-attention, convolution, half a feed-forward part, each with a residual."""

    def __init__(self, dimension: int, heads: int, feed_forward: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.first_feed_forward = ConformerFeedForward(dimension, feed_forward, dropout)
        self.attention_norm = nn.LayerNorm(dimension)
        self.attention = RelativeSelfAttention(dimension, heads, dropout=dropout, bias=False, symmetric=True)
        self.convolution = ChunkedConvolution(dimension, kernel, dropout)
        self.second_feed_forward = ConformerFeedForward(dimension, feed_forward, dropout)
        self.norm = nn.LayerNorm(dimension)

    def forward(self, x: Tensor, lengths: Tensor, visible: Tensor, chunk: int | None) -> Tensor:
        """Transform x (B, T, D); `visible` as of the attention, `chunk` as of the convolution."""
        x = torch.add(x, self.first_feed_forward(x), alpha=0.5)
        x = x + self.attention(self.attention_norm(x), lengths, visible)
        x = x + self.convolution(x, lengths, chunk)
        return self.norm(torch.add(x, self.second_feed_forward(x), alpha=0.5))


class ChunkedConvolution(nn.Module):
    """LayerNorm, gated linear unit, depthwise convolution in chunks, LayerNorm, Swish, linear.

    Args:
        dimension: D.
        kernel: Frames under the depthwise convolution, centered, odd.
        dropout: Of the output.
    """

    def __init__(self, dimension: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.dimension, self.kernel = dimension, kernel
        self.norm = nn.LayerNorm(dimension)
        self.gated = nn.Linear(dimension, 2 * dimension)
        self.filter = DepthwiseFilter(dimension, dimension, kernel, groups=dimension)
        self.filter_norm = nn.LayerNorm(dimension)
        self.output = nn.Linear(dimension, dimension)
        self.dropout = Dropout(dropout)

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of the gated linear unit, which packs values and gates, and of the filter, whose padding is added."""
        halves, inner = axis(Fixed(2, "value and gate"), Units(self.dimension)), units(self.dimension)
        return {
            "gated.weight": (halves, inner),
            "gated.bias": (halves,),
            "filter.weight": (inner, units(1), axis(Taps(self.kernel))),
        }

    def forward(self, x: Tensor, lengths: Tensor, chunk: int | None) -> Tensor:
        """Transform x (B, T, D) in chunks of `chunk` frames, which see zeros behind them; None: as a whole."""
        half, size = self.kernel // 2, x.shape[1]
        x = silence_padding(functional.glu(self.gated(self.norm(x)), dim=2), lengths)
        if chunk is None:
            return self._finish(self.filter(functional.pad(x.transpose(1, 2), (half, half))).transpose(1, 2))
        x = functional.pad(x, (0, 0, half, -size % chunk))
        chunks = x.unfold(1, half + chunk, chunk)  # (B, N, D, half + chunk)
        y = self.filter(functional.pad(chunks.flatten(0, 1), (0, half)))  # (B N, D, chunk)
        y = y.unflatten(0, chunks.shape[:2]).transpose(2, 3).flatten(1, 2)[:, :size]
        return self._finish(y)

    def stream(self, x: Tensor, lengths: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        """Transform a chunk x (B, T, D) with the gated frames to its left, and return those to the left of the next."""
        x = silence_padding(functional.glu(self.gated(self.norm(x)), dim=2), lengths)
        x = torch.cat([left, x], dim=1)
        left = x[:, x.shape[1] - left.shape[1] :]
        y = self.filter(functional.pad(x, (0, 0, 0, self.kernel // 2)).transpose(1, 2))
        return self._finish(y.transpose(1, 2)), left

    def _finish(self, x: Tensor) -> Tensor:
        return self.dropout(self.output(functional.silu(self.filter_norm(x))))


class ReflectedSubsampling(nn.Module):
    """3 × 3 convolutions of stride 2 over time and frequency with LayerNorm and leaky ReLU, then a projection.

    Each convolution makes T / 2 frames, rounded up, of T. Its output t is of the frames 2t - 1, 2t and 2t + 1. Before
    an utterance's first frame stands its second, and behind its last the one before the last; likewise for frequencies.
    An utterance of one frame is continued by this frame.

    Args:
        input_dimension: F, dimension of the features, 3 or more at every convolution.
        dimension: D of the output.
        channels: Of every convolution.
        dropout: After every convolution, and of the output.

    Raises:
        InputError: There is no convolution, or one without frequencies to reflect.
    """

    def __init__(self, input_dimension: int, dimension: int, channels: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.factor = 2 ** len(channels)
        self.input_dimension = input_dimension
        frequencies = [input_dimension]
        for _ in channels:
            frequencies.append((frequencies[-1] + 1) // 2)
        if not channels or frequencies[-2] < 2:
            raise InputError(
                f"expected channels of one convolution or more over {input_dimension} features, each with two or more "
                f"frequencies left, got {list(channels)}"
            )
        self.frequencies, self.channels = frequencies[1:], [1, *channels]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, kernel_size=3, stride=2) for before, after in pairwise(self.channels)
        )
        self.norms = nn.ModuleList(
            nn.LayerNorm([size, channel]) for size, channel in zip(self.frequencies, channels, strict=True)
        )
        self.projection = nn.Linear(self.frequencies[-1] * channels[-1], dimension)
        self.dropout = Dropout(dropout)

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of norms and projection, which read frequencies × channels, and of filters, whose padding is added."""
        axes: dict[str, tuple[Axis, ...]] = {}
        taps = axis(Taps(3))
        for number, size in enumerate(self.frequencies):
            before, after = self.channels[number : number + 2]
            both = (axis(Fixed(size, "frequencies")), units(after))
            axes[f"norms.{number}.weight"] = axes[f"norms.{number}.bias"] = both
            axes[f"convolutions.{number}.weight"] = (units(after), units(before), taps, taps)
        flattened = axis(Fixed(size, "frequencies"), Units(after))
        return {**axes, "projection.weight": (units(self.projection.out_features), flattened)}

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Subsample x (B, T, F) to (B, T / factor, D)."""
        x, first = x.unsqueeze(3), torch.ones_like(lengths, dtype=torch.bool)
        for number in range(len(self.convolutions)):
            x, lengths = self._halve(number, x, lengths, x[:, :1], first)
        return self._project(x), lengths

    def initial_state(self, batch_size: int, device: torch.device) -> State:
        """Return waiting frames (B, 0, F), whether any came (B,), and the frame before each convolution's (B, 1, …)."""
        zeros = self.projection.weight.new_zeros(batch_size, 1, self.input_dimension, device=device)
        sizes = zip([self.input_dimension, *self.frequencies[:-1]], self.channels[:-1], strict=True)
        left = [zeros.new_zeros(batch_size, 1, *size) for size in sizes]
        return (zeros[:, :0], torch.zeros(batch_size, dtype=torch.bool, device=device), *left)

    def stream(self, x: Tensor, lengths: Tensor, state: State, last: bool = False) -> tuple[Tensor, Tensor, State]:
        """Subsample the whole groups of frames; see `StreamingEncoder.stream`."""
        waiting, started, *left = state
        x, lengths = torch.cat([waiting, x], dim=1), lengths + waiting.shape[1]
        ready = x.shape[1] if last else x.shape[1] // self.factor * self.factor
        x, waiting = x[:, :ready], x[:, ready:]
        lengths = lengths.clamp(max=ready)
        if not ready:
            return x.new_zeros(len(x), 0, self.projection.out_features), lengths, (waiting, started, *left)
        x, after = x.unsqueeze(3), []
        for number, before in enumerate(left):
            after.append(x[:, -1:])
            x, lengths = self._halve(number, x, lengths, before, ~started)
        return self._project(x), lengths, (waiting, torch.ones_like(started), *after)

    def _halve(self, number: int, x: Tensor, lengths: Tensor, before: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """Convolve x (B, T, F, C) to (B, T / 2, F / 2, C').

        Args:
            number: Of the convolution.
            x: (B, T, F, C).
            lengths: (B,) real frames of x.
            before: The frame before x, (B, 1, F, C).
            first: Whether there is none, because the utterance begins with x, (B,).
        """
        index = torch.arange(x.shape[1] + 2, device=x.device).expand(x.shape[0], -1)  # of frames from -1 to T
        source = torch.maximum(lengths - 1, first.long())  # the frame before the last, or the only one
        index = torch.where(index == (lengths + 1).unsqueeze(1), source.unsqueeze(1), index)
        index = torch.cat([torch.where(first, index[:, 2], 0).unsqueeze(1), index[:, 1:]], dim=1)
        x = torch.cat([before, x, x[:, :1]], dim=1)
        x = x[torch.arange(x.shape[0], device=x.device).unsqueeze(1), index]  # (B, T + 2, F, C)
        x = torch.cat([x[:, :, 1:2], x, x[:, :, -2:-1]], dim=2)
        x = self.convolutions[number](x.permute(0, 3, 1, 2))  # (B, C', T / 2, F / 2)
        x = self.norms[number](x.permute(0, 2, 3, 1))
        return self.dropout(functional.leaky_relu(x)), (lengths + 1) // 2

    def _project(self, x: Tensor) -> Tensor:
        """Project x (B, T, F, C) to (B, T, D)."""
        return self.dropout(self.projection(x.flatten(2)))
