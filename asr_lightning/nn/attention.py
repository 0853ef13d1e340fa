"""Attention over time."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from asr_lightning.nn.axes import Axis, Fixed, Units, axis, units
from asr_lightning.nn.dropout import Dropout
from asr_lightning.nn.sequences import visible_frames


class RelativeSelfAttention(nn.Module):
    """Multi-head self-attention with relative positions [Dai et al. 2019, §3.3; as the Conformer uses it].

    The score of frames i and j is ((q_i + u) · k_j + (q_i + v) · r_{i-j}) / √d with d the dimension of a head.

    Args:
        dimension: D of input and output.
        heads: H.
        head_dimension: d, of each head; D / H if None.
        dropout: Of the attention weights.

    Raises:
        ValueError: D is odd, or no multiple of H where no head_dimension is given.
    """

    def __init__(self, dimension: int, heads: int, head_dimension: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        if dimension % 2 or (head_dimension is None and dimension % heads):
            raise ValueError(
                f"attention needs an even dimension that its heads divide, got {dimension} and {heads} heads"
            )
        self.dimension = dimension
        self.heads = heads
        self.head_dimension = head_dimension or dimension // heads
        self.dropout = Dropout(dropout)
        inner = heads * self.head_dimension
        self.query = nn.Linear(dimension, inner)
        self.key = nn.Linear(dimension, inner)
        self.value = nn.Linear(dimension, inner)
        self.position = nn.Linear(dimension, inner, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(heads, self.head_dimension))  # u
        self.position_bias = nn.Parameter(torch.zeros(heads, self.head_dimension))  # v
        self.output = nn.Linear(inner, dimension)

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Say that queries, keys, values and positions are heads × dimensions of a head, read from sinusoids."""
        inner = axis(Units(self.heads), Units(self.head_dimension))
        outer = units(self.dimension)
        axes: dict[str, tuple[Axis, ...]] = {"output.weight": (outer, inner)}
        for name in ("query", "key", "value", "position"):
            axes[f"{name}.weight"] = (inner, sinusoid_axis(self.dimension) if name == "position" else outer)
            if name != "position":
                axes[f"{name}.bias"] = (inner,)
        return axes

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Attend within x (B, T, D), each row within its own length (B,)."""
        size = x.shape[1]
        query = split_heads(self.query(x), self.heads)  # (B, H, T, d)
        key = split_heads(self.key(x), self.heads)
        value = split_heads(self.value(x), self.heads)
        sinusoids = relative_sinusoids(size, self.dimension, x.device).to(x.dtype)
        position = self.position(sinusoids).unflatten(1, (self.heads, -1))  # (2T, H, d)
        by_position = torch.einsum("bhtd,rhd->bhtr", query + self.position_bias.unsqueeze(1), position)
        bias = _shift(by_position) / math.sqrt(self.head_dimension)  # (B, H, T, T)
        real = visible_frames(lengths, size).view(-1, 1, 1, size)
        with torch.no_grad():  # what has no weight gets no gradient through the softmax either
            bias.masked_fill_(~real, float("-inf"))
        attended = attend(query + self.content_bias.unsqueeze(1), key, value, bias, self.dropout)  # (B, H, T, d)
        return self.output(attended.transpose(1, 2).flatten(2))


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: Dropout) -> Tensor:
    """Return what queries (B, H, U, d) see of values (B, H, T, d) by their scaled dot products with keys (B, H, T, d).

    Args:
        query: What is asked.
        key: What it is compared to.
        value: What is seen.
        mask: True where a query may look, or what is added to the scaled products; broadcasts to (B, H, U, T). Every
            query sees something.
        dropout: Of the attention weights.
    """
    if query.device.type != "cpu" or not dropout.training or not dropout.p:
        rate = dropout.p if dropout.training else 0.0
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=rate)
    # torch does the same on a CPU, with a dropout that takes as long as the rest.
    return dropout(attention_weights(query, key, mask)) @ value


def attention_weights(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    """Return where queries look, (B, H, U, T); see `attend`."""
    scores = (query / math.sqrt(query.shape[3])) @ key.transpose(2, 3)
    scores = scores.masked_fill_(~mask, float("-inf")) if mask.dtype == torch.bool else scores.add_(mask)
    return scores.softmax(dim=3)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Return (B, H, T, D / H) of x (B, T, D)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def _shift(scores: Tensor) -> Tensor:
    """From scores (B, H, T, 2T) by distance to scores (B, H, T, T) by frame: [i, j] is of the distance i - j.

    Column c is of the distance T - c, so row i needs the columns T - i + j. Read row after row with a pitch that is one
    column shorter, beginning at column T, and each row begins one column earlier than the last.
    """
    size = scores.shape[2]
    return scores.flatten(2)[:, :, size:].unflatten(2, (size, 2 * size - 1))[:, :, :, :size]


def sinusoids(places: Tensor, dimension: int) -> Tensor:
    """Return sinusoids (T, dimension) of places (T,): sines in even, cosines in odd columns, slower to the right.

    Source: Vaswani et al. 2017, "Attention is all you need", §3.5.
    """
    steps = torch.arange(0, dimension, 2.0, device=places.device)
    angles = places.unsqueeze(1) * torch.exp(steps * (-math.log(10_000.0) / dimension))
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :dimension]


def relative_sinusoids(size: int, dimension: int, device: torch.device | None = None) -> Tensor:
    """Return sinusoids (2 * size, dimension) of the distances size, …, 0, …, -(size - 1).

    Source: Dai et al. 2019, "Transformer-XL", §3.3.
    """
    return sinusoids(torch.arange(size, -size, -1.0, device=device), dimension)


def sinusoid_axis(dimension: int) -> Axis:
    """Say what the columns of sinusoids of an even dimension mean: every k-th wavelength of k times as many is ours."""
    return axis(Units(dimension // 2), Fixed(2, "sine and cosine"))
