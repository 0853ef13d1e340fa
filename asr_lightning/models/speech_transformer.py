"""Encoder and decoder of the Speech Transformer [Dong et al. 2018, "Speech-Transformer"; Vaswani et al. 2017].

Each part of a block reads a LayerNorm of the residual stream and adds to it [Xiong et al. 2020, "On layer normalization
in the transformer architecture"]. Positions are added to the stream too, so its axis is that of sinusoids, and not one
of hidden units that could be selected one by one.
"""

import math

import torch
from torch import Tensor, nn

from asr_lightning.nn.attention import attend, attention_weights, sinusoid_axis, sinusoids, split_heads
from asr_lightning.nn.axes import Axis, Tokens, Units, axis, axis_size, units
from asr_lightning.nn.dropout import Dropout
from asr_lightning.nn.extractors import ConvolutionalSubsampling
from asr_lightning.nn.sequences import AttentionDecoder, Encoder, State, visible_frames


class TransformerEncoder(Encoder):
    """Convolutional subsampling, sinusoidal positions, then blocks of self-attention and feed-forward, and a LayerNorm.

    Args:
        input_dimension: Dimension of the features.
        dimension: D of the blocks and of the output.
        layers: Blocks.
        heads: Of the self-attention.
        feed_forward: Hidden units of the feed-forward parts.
        channels: Of the subsampling's convolutions; `dimension` if None.
        subsampling: Input frames per output frame: 2, 4 or 8.
        head_dimension: Of each attention head; `dimension / heads` if None.
        dropout: Of every part, of the attention weights, and after the positions.

    Raises:
        ValueError: The dimension is odd, or not a multiple of the heads without a head_dimension.
    """

    def __init__(
        self,
        input_dimension: int,
        dimension: int,
        layers: int,
        heads: int,
        feed_forward: int,
        channels: int | None = None,
        subsampling: int = 4,
        head_dimension: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(input_dimension, dimension)
        head_dimension = _head_dimension(dimension, heads, head_dimension)
        self.subsampling = ConvolutionalSubsampling(input_dimension, dimension, channels or dimension, subsampling)
        self.layers = nn.ModuleList(
            EncoderBlock(dimension, heads, head_dimension, feed_forward, dropout) for _ in range(layers)
        )
        self.norm = StreamNorm(dimension)
        self.dropout = Dropout(dropout)

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of the subsampling's output, to which sinusoids are added."""
        stream = self.output_axis()
        flattened = self.subsampling.parameter_axes()["projection.weight"][1]
        return {"subsampling.projection.weight": (stream, flattened), "subsampling.projection.bias": (stream,)}

    def output_axis(self) -> Axis:
        """Axis of the output: that of sinusoids."""
        return sinusoid_axis(self.dimension)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode features x (B, T, input_dimension) as (B, T / subsampling, D)."""
        x, lengths = self.subsampling(x, lengths)
        # Under autocast x is bfloat16, too coarse for the residual stream, which has the weights' precision.
        x = self.dropout(_add_positions(x.to(self.norm.weight.dtype)))
        visible = visible_frames(lengths, x.shape[1]).unsqueeze(1)
        for layer in self.layers:
            x = layer(x, visible)
        return self.norm(x), lengths


class TransformerDecoder(AttentionDecoder):
    """Embedding, sinusoidal positions, blocks of self-attention, cross-attention and feed-forward, and a LayerNorm.

    The memory is the mask of real frames of each utterance, and keys and values of every layer's cross-attention. The
    state is keys and values of every layer's self-attention, (N, U, heads * head_dimension) after U tokens.

    Args:
        vocabulary: The V tokens.
        memory: Axis of the encoded utterances, the encoder's `output_axis()`.
        dimension: D of the blocks.
        layers: Blocks.
        heads: Of both attentions.
        feed_forward: Hidden units of the feed-forward parts.
        head_dimension: Of each attention head; `dimension / heads` if None.
        dropout: Of every part, of the attention weights, and after the positions.

    Raises:
        ValueError: The dimension is odd, or not a multiple of the heads without a head_dimension.
    """

    def __init__(
        self,
        vocabulary: tuple[str, ...],
        memory: Axis,
        dimension: int,
        layers: int,
        heads: int,
        feed_forward: int,
        head_dimension: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(vocabulary)
        head_dimension = _head_dimension(dimension, heads, head_dimension)
        self.dimension = dimension
        self.embedding = nn.Embedding(len(vocabulary), dimension)
        nn.init.normal_(self.embedding.weight, std=dimension**-0.5)  # as large as positions after scaling
        self.layers = nn.ModuleList(
            DecoderBlock(dimension, memory, heads, head_dimension, feed_forward, dropout) for _ in range(layers)
        )
        self.norm = StreamNorm(dimension)
        self.output = nn.Linear(dimension, len(vocabulary))
        self.dropout = Dropout(dropout)

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of embedding and output, which have a row per token and the columns of sinusoids."""
        stream, tokens = sinusoid_axis(self.dimension), axis(Tokens(self.vocabulary))
        rows = {name: (tokens, stream) for name in ("embedding.weight", "output.weight")}
        return {**rows, "output.bias": (tokens,)}

    def remember(self, encoded: Tensor, lengths: Tensor) -> State:
        """Return the mask of real frames of (B, T, D), then keys and values of every layer's cross-attention."""
        memory = [visible_frames(lengths, encoded.shape[1]).unsqueeze(1)]
        for layer in self.layers:
            assert isinstance(layer, DecoderBlock)
            memory += layer.cross_attention.remember(encoded)
        return tuple(memory)

    def initial_state(self, memory: State) -> State:
        """Return empty keys and values, (B, 0, heads * head_dimension) each, of every layer."""
        return tuple(part[:, :0] for part in memory[1:])

    def step(self, tokens: Tensor, state: State, memory: State) -> tuple[Tensor, State]:
        """Return logits (N, V) of the token after the last token id of each hypothesis (N,), and the next state."""
        logits, state = self._read(tokens.unsqueeze(1), state, memory)
        return logits.squeeze(1), state

    def forward(self, tokens: Tensor, memory: State) -> Tensor:
        """Return logits (B, U, V) of the token after each of the token ids (B, U)."""
        logits, _ = self._read(tokens, self.initial_state(memory), memory)
        return logits

    def attention_weights(self, tokens: Tensor, memory: State) -> Tensor:
        """Return the mean weights of the heads of the last layer's cross-attention, (B, U, T), for ids (B, U)."""
        last = self.layers[-1]
        assert isinstance(last, DecoderBlock)
        attention = last.cross_attention
        weights: list[Tensor] = []

        def keep(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            weights.append(attention.weights(*arguments).mean(dim=1))

        with attention.register_forward_hook(keep):
            self(tokens, memory)
        return weights[0]

    def _read(self, tokens: Tensor, state: State, memory: State) -> tuple[Tensor, State]:
        """Return logits (N, U, V) for U more token ids (N, U) after those of the state, and the next state."""
        offset, size = state[0].shape[1], tokens.shape[1]
        past = torch.ones(size, offset + size, dtype=torch.bool, device=tokens.device).tril(offset)
        x = self.dropout(_add_positions(self.embedding(tokens), offset))  # (N, U, D)
        visible, *cross = memory
        next_state: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            of_layer = slice(2 * index, 2 * index + 2)
            x, keys_values = layer(x, state[of_layer], past, cross[of_layer], visible)
            next_state += keys_values
        return self.output(self.norm(x)), tuple(next_state)


class EncoderBlock(nn.Module):
    """Self-attention, then feed-forward, each with a residual."""

    def __init__(self, dimension: int, heads: int, head_dimension: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = StreamNorm(dimension)
        self.attention = TransformerAttention(dimension, sinusoid_axis(dimension), heads, head_dimension, dropout)
        self.feed_forward = TransformerFeedForward(dimension, feed_forward, dropout)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """Transform x (B, T, D); `real` (B, 1, T) is the mask of real frames."""
        normed = self.attention_norm(x)
        x = x + self.dropout(self.attention(normed, *self.attention.remember(normed), real))
        return x + self.feed_forward(x)


class DecoderBlock(nn.Module):
    """Self-attention, cross-attention, then feed-forward, each with a residual."""

    def __init__(
        self, dimension: int, memory: Axis, heads: int, head_dimension: int, feed_forward: int, dropout: float
    ) -> None:
        super().__init__()
        self.self_norm = StreamNorm(dimension)
        self.self_attention = TransformerAttention(dimension, sinusoid_axis(dimension), heads, head_dimension, dropout)
        self.cross_norm = StreamNorm(dimension)
        self.cross_attention = TransformerAttention(dimension, memory, heads, head_dimension, dropout)
        self.feed_forward = TransformerFeedForward(dimension, feed_forward, dropout)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, state: State, past: Tensor, cross: State, real: Tensor) -> tuple[Tensor, State]:
        """Transform the newest positions of each hypothesis.

        Args:
            x: (N, U, D).
            state: Keys and values of self-attention at earlier positions, (N, U', heads * head_dimension).
            past: (U, U' + U), mask of the positions that each of these may attend to.
            cross: Keys and values of cross-attention, (B, T, heads * head_dimension).
            real: (B, 1, T), mask of real frames.

        Returns:
            (N, U, D), and keys and values of self-attention including these positions.
        """
        normed = self.self_norm(x)
        newest = self.self_attention.remember(normed)
        keys, values = (torch.cat(parts, dim=1) for parts in zip(state, newest, strict=True))
        x = x + self.dropout(self.self_attention(normed, keys, values, past))
        x = x + self.dropout(self.cross_attention(self.cross_norm(x), *cross, real))
        return x + self.feed_forward(x), (keys, values)


class TransformerAttention(nn.Module):
    """Multi-head attention [Vaswani et al. 2017, §3.2].

    Args:
        dimension: D of the residual stream, the source of queries and the output.
        memory: Axis of the source of keys and values.
        heads: H.
        head_dimension: Of each head.
        dropout: Of the attention weights.
    """

    def __init__(self, dimension: int, memory: Axis, heads: int, head_dimension: int, dropout: float) -> None:
        super().__init__()
        self.stream = sinusoid_axis(dimension)
        self.memory = memory
        self.heads = heads
        self.head_dimension = head_dimension
        self.dropout = Dropout(dropout)
        inner = heads * head_dimension
        self.query = nn.Linear(dimension, inner)
        self.key = nn.Linear(axis_size(memory), inner)
        self.value = nn.Linear(axis_size(memory), inner)
        self.output = nn.Linear(inner, dimension)

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of queries, keys and values: heads × dimensions of a head."""
        inner = axis(Units(self.heads), Units(self.head_dimension))
        axes: dict[str, tuple[Axis, ...]] = {"output.weight": (self.stream, inner), "output.bias": (self.stream,)}
        for name, source in {"query": self.stream, "key": self.memory, "value": self.memory}.items():
            axes |= {f"{name}.weight": (inner, source), f"{name}.bias": (inner,)}
        return axes

    def remember(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, T, heads * head_dimension) of a memory (B, T, ...)."""
        return self.key(memory), self.value(memory)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Attend from x (N, U, D) to keys and values of B rows; N / B adjacent rows of x attend to the same row.

        `mask` is True where x may attend, (U, T) or (B, 1, T).
        """
        query = self.query(x)
        # All rows of x that attend to the same row become one row, so that keys and values need no copies.
        attended = attend(
            split_heads(query.reshape(len(keys), -1, query.shape[2]), self.heads),
            split_heads(keys, self.heads),
            split_heads(values, self.heads),
            mask.unsqueeze(-3),
            self.dropout,
        )  # (B, H, N / B * U, head_dimension)
        return self.output(attended.transpose(1, 2).reshape(query.shape))

    def weights(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Return the attention weights of `forward`, (B, H, N / B * U, T), for figures."""
        query = split_heads(self.query(x).reshape(len(keys), -1, self.heads * self.head_dimension), self.heads)
        return attention_weights(query, split_heads(keys, self.heads), mask.unsqueeze(-3))


class TransformerFeedForward(nn.Sequential):
    """LayerNorm, expansion, ReLU, contraction."""

    def __init__(self, dimension: int, hidden: int, dropout: float) -> None:
        super().__init__(
            StreamNorm(dimension),
            nn.Linear(dimension, hidden),
            nn.ReLU(),
            Dropout(dropout),
            nn.Linear(hidden, dimension),
            Dropout(dropout),
        )
        self.axes = sinusoid_axis(dimension), units(hidden)

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of both layers: the residual stream, and hidden units."""
        stream, inner = self.axes
        return {"1.weight": (inner, stream), "4.weight": (stream, inner), "4.bias": (stream,)}


class StreamNorm(nn.LayerNorm):
    """LayerNorm of the residual stream."""

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of weight and bias: that of sinusoids."""
        stream = sinusoid_axis(self.normalized_shape[0])
        return {"weight": (stream,), "bias": (stream,)}


def _head_dimension(dimension: int, heads: int, head_dimension: int | None) -> int:
    if dimension % 2 or (head_dimension is None and dimension % heads):
        raise ValueError(f"transformers need an even dimension that heads divide, got {dimension} and {heads} heads")
    return head_dimension or dimension // heads


def _add_positions(x: Tensor, offset: int = 0) -> Tensor:
    """Scale x (N, U, D) by √D and add the sinusoids of its positions, which begin at `offset`."""
    positions = torch.arange(offset, offset + x.shape[1], device=x.device)
    return x * math.sqrt(x.shape[2]) + sinusoids(positions, x.shape[2]).to(x.dtype)
