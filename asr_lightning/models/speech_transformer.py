"""The encoder and the decoder of the Speech Transformer [Dong et al. 2018, "Speech-Transformer"; Vaswani et al. 2017].

Each part of a block reads a LayerNorm of the residual stream and adds to it [Xiong et al. 2020, "On layer normalization
in the transformer architecture"]. Positions are added to the stream too, so its dimensions are not plain units but
those of sinusoids, wherever they are written or read.
"""

import math

import torch
from torch import Tensor, nn

from asr_lightning.nn.attention import attend, attention_weights, split_heads
from asr_lightning.nn.axes import Axis, Tokens, Units, axis, axis_size, units
from asr_lightning.nn.decoder import Decoder, State
from asr_lightning.nn.dropout import Dropout
from asr_lightning.nn.encoder import Encoder
from asr_lightning.nn.masks import visible_frames
from asr_lightning.nn.positions import sinusoid_axis, sinusoids
from asr_lightning.nn.subsampling import ConvolutionalSubsampling


class TransformerEncoder(Encoder):
    """Convolutional subsampling, sinusoidal positions, then blocks of self-attention and feed-forward, and a LayerNorm.

    Args:
        input_dimension: Dimension of the features.
        dimension: D of the blocks and of the output.
        layers: Blocks.
        heads: Of the self-attention.
        feed_forward: Hidden units of the feed-forward parts.
        channels: Of the subsampling's convolutions; `dimension` if None.
        subsampling: How many times fewer frames come out than go in: 2, 4 or 8.
        head_dimension: Of each attention head; `dimension / heads` if None.
        dropout: Of every part, of the attention weights, and where positions were added.

    Raises:
        ValueError: The dimension is odd, or no multiple of the heads where no head_dimension is given.
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
        """Say that the subsampling writes what sinusoids are added to."""
        stream = self.output_axis()
        flattened = self.subsampling.parameter_axes()["projection.weight"][1]
        return {"subsampling.projection.weight": (stream, flattened), "subsampling.projection.bias": (stream,)}

    def output_axis(self) -> Axis:
        """Say that the output has the dimensions of sinusoids."""
        return sinusoid_axis(self.dimension)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode features x (B, T, input_dimension) as (B, T / subsampling, D)."""
        x, lengths = self.subsampling(x, lengths)
        # Under autocast x is bfloat16, too coarse to add to: the residual stream has the weights' precision.
        x = self.dropout(_add_positions(x.to(self.norm.weight.dtype)))
        real = visible_frames(lengths, x.shape[1]).unsqueeze(1)
        for layer in self.layers:
            x = layer(x, real)
        return self.norm(x), lengths


class TransformerDecoder(Decoder):
    """Embedding, sinusoidal positions, blocks of self-attention, cross-attention and feed-forward, and a LayerNorm.

    Its memory is, per utterance, which frames are real, and keys and values of every layer's cross-attention; its
    state keys and values of every layer's self-attention, (N, U, heads * head_dimension) after U tokens.

    Args:
        vocabulary: The V tokens.
        memory: What the dimensions of the encoded utterances mean, as the encoder's `output_axis()` says.
        dimension: D of the blocks.
        layers: Blocks.
        heads: Of both attentions.
        feed_forward: Hidden units of the feed-forward parts.
        head_dimension: Of each attention head; `dimension / heads` if None.
        dropout: Of every part, of the attention weights, and where positions were added.

    Raises:
        ValueError: The dimension is odd, or no multiple of the heads where no head_dimension is given.
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
        nn.init.normal_(self.embedding.weight, std=dimension**-0.5)  # as large as positions once it is scaled
        self.layers = nn.ModuleList(
            DecoderBlock(dimension, memory, heads, head_dimension, feed_forward, dropout) for _ in range(layers)
        )
        self.norm = StreamNorm(dimension)
        self.output = nn.Linear(dimension, len(vocabulary))
        self.dropout = Dropout(dropout)

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Say that embedding and output have a row per token, and that sinusoids are added to the embedding."""
        stream, tokens = sinusoid_axis(self.dimension), axis(Tokens(self.vocabulary))
        rows = {name: (tokens, stream) for name in ("embedding.weight", "output.weight")}
        return {**rows, "output.bias": (tokens,)}

    def remember(self, encoded: Tensor, lengths: Tensor) -> State:
        """Return which frames of (B, T, D) are real, then keys and values (B, T, heads * head_dimension) per layer."""
        memory = [visible_frames(lengths, encoded.shape[1]).unsqueeze(1)]
        for layer in self.layers:
            assert isinstance(layer, DecoderBlock)
            memory += layer.cross_attention.remember(encoded)
        return tuple(memory)

    def initial_state(self, memory: State) -> State:
        """Return keys and values of no token, (B, 0, heads * head_dimension) twice for every layer."""
        return tuple(part[:, :0] for part in memory[1:])

    def step(self, tokens: Tensor, state: State, memory: State) -> tuple[Tensor, State]:
        """Read one token id of each hypothesis (N,), return logits of the next (N, V) and the state behind it."""
        logits, state = self._read(tokens.unsqueeze(1), state, memory)
        return logits.squeeze(1), state

    def forward(self, tokens: Tensor, memory: State) -> Tensor:
        """Read token ids (B, U), return logits (B, U, V) of what follows each of them."""
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
        """Read U more token ids (N, U) after those of the state, return logits (N, U, V) and the state behind them."""
        before, size = state[0].shape[1], tokens.shape[1]
        past = torch.ones(size, before + size, dtype=torch.bool, device=tokens.device).tril(before)
        x = self.dropout(_add_positions(self.embedding(tokens), before))  # (N, U, D)
        real, *heard = memory
        after: list[Tensor] = []
        for number, layer in enumerate(self.layers):
            own = slice(2 * number, 2 * number + 2)
            x, said = layer(x, state[own], past, heard[own], real)
            after += said
        return self.output(self.norm(x)), tuple(after)


class EncoderBlock(nn.Module):
    """Self-attention, then feed-forward, each with a residual."""

    def __init__(self, dimension: int, heads: int, head_dimension: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = StreamNorm(dimension)
        self.attention = TransformerAttention(dimension, sinusoid_axis(dimension), heads, head_dimension, dropout)
        self.feed_forward = FeedForward(dimension, feed_forward, dropout)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """Transform x (B, T, D), whose frames can be looked at where `real` (B, 1, T) says so."""
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
        self.feed_forward = FeedForward(dimension, feed_forward, dropout)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, said: State, past: Tensor, heard: State, real: Tensor) -> tuple[Tensor, State]:
        """Transform the newest places of each hypothesis.

        Args:
            x: (N, U, D).
            said: Keys and values of self-attention before these places, (N, U', heads * head_dimension).
            past: (U, U' + U), which places each of them can look at.
            heard: Keys and values of cross-attention, (B, T, heads * head_dimension).
            real: (B, 1, T), which frames they can look at.

        Returns:
            (N, U, D), and keys and values of self-attention including these places.
        """
        normed = self.self_norm(x)
        newest = self.self_attention.remember(normed)
        keys, values = (torch.cat(parts, dim=1) for parts in zip(said, newest, strict=True))
        x = x + self.dropout(self.self_attention(normed, keys, values, past))
        x = x + self.dropout(self.cross_attention(self.cross_norm(x), *heard, real))
        return x + self.feed_forward(x), (keys, values)


class TransformerAttention(nn.Module):
    """Multi-head attention [Vaswani et al. 2017, §3.2].

    Args:
        dimension: D of the residual stream, which asks and which receives.
        memory: What the dimensions mean that keys and values are read from.
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
        """Say that queries, keys and values are heads × dimensions of a head, and what is read and written."""
        inner = axis(Units(self.heads), Units(self.head_dimension))
        axes: dict[str, tuple[Axis, ...]] = {"output.weight": (self.stream, inner), "output.bias": (self.stream,)}
        for name, source in {"query": self.stream, "key": self.memory, "value": self.memory}.items():
            axes |= {f"{name}.weight": (inner, source), f"{name}.bias": (inner,)}
        return axes

    def remember(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, T, heads * head_dimension) of what can be looked at (B, T, ...)."""
        return self.key(memory), self.value(memory)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
        """Let x (N, U, D) look at keys and values of B rows, N / B rows of x side by side at each.

        `seen` is True where x can look, (U, T) or (B, 1, T).
        """
        query = self.query(x)
        # The places of all rows that look at the same are one row: what they look at needs no copies.
        attended = attend(
            split_heads(query.reshape(len(keys), -1, query.shape[2]), self.heads),
            split_heads(keys, self.heads),
            split_heads(values, self.heads),
            seen.unsqueeze(-3),
            self.dropout,
        )  # (B, H, N / B * U, head_dimension)
        return self.output(attended.transpose(1, 2).reshape(query.shape))

    def weights(self, x: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
        """Return where `forward` looks, (B, H, N / B * U, T), for pictures."""
        query = split_heads(self.query(x).reshape(len(keys), -1, self.heads * self.head_dimension), self.heads)
        return attention_weights(query, split_heads(keys, self.heads), seen.unsqueeze(-3))


class FeedForward(nn.Sequential):
    """LayerNorm, expansion, rectification, contraction."""

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
        """Say that it reads and writes the residual stream."""
        stream, inner = self.axes
        return {"1.weight": (inner, stream), "4.weight": (stream, inner), "4.bias": (stream,)}


class StreamNorm(nn.LayerNorm):
    """LayerNorm of the residual stream."""

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Say that it has the dimensions of sinusoids."""
        stream = sinusoid_axis(self.normalized_shape[0])
        return {"weight": (stream,), "bias": (stream,)}


def _head_dimension(dimension: int, heads: int, given: int | None) -> int:
    if dimension % 2 or (given is None and dimension % heads):
        raise ValueError(f"transformers need an even dimension that heads divide, got {dimension} and {heads} heads")
    return given or dimension // heads


def _add_positions(x: Tensor, before: int = 0) -> Tensor:
    """Scale x (N, U, D) by √D and add the sinusoids of its places, with `before` others before them."""
    places = torch.arange(before, before + x.shape[1], device=x.device)
    return x * math.sqrt(x.shape[2]) + sinusoids(places, x.shape[2]).to(x.dtype)
