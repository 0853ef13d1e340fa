"""Self-attention with relative positions, scaled dot products, sinusoids."""

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
        bias: Whether queries, keys and values have biases.
        symmetric: Whether r is of the absolute distance, the same to both sides.

    Raises:
        ValueError: D is odd, or not a multiple of H without a head_dimension.
    """

    def __init__(
        self,
        dimension: int,
        heads: int,
        head_dimension: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        symmetric: bool = False,
    ) -> None:
        super().__init__()
        if dimension % 2 or (head_dimension is None and dimension % heads):
            raise ValueError(
                f"attention needs an even dimension that its heads divide, got {dimension} and {heads} heads"
            )
        self.dimension = dimension
        self.heads = heads
        self.head_dimension = head_dimension or dimension // heads
        self.symmetric = symmetric
        self.dropout = Dropout(dropout)
        inner = heads * self.head_dimension
        self.query = nn.Linear(dimension, inner, bias=bias)
        self.key = nn.Linear(dimension, inner, bias=bias)
        self.value = nn.Linear(dimension, inner, bias=bias)
        self.position = nn.Linear(dimension, inner, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(heads, self.head_dimension))  # u
        self.position_bias = nn.Parameter(torch.zeros(heads, self.head_dimension))  # v
        self.output = nn.Linear(inner, dimension)

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of queries, keys, values and positions: heads × dimensions of a head; positions read sinusoids."""
        inner = axis(Units(self.heads), Units(self.head_dimension))
        outer = units(self.dimension)
        axes: dict[str, tuple[Axis, ...]] = {"output.weight": (outer, inner)}
        for name in ("query", "key", "value", "position"):
            axes[f"{name}.weight"] = (inner, sinusoid_axis(self.dimension) if name == "position" else outer)
            if name != "position" and self.query.bias is not None:
                axes[f"{name}.bias"] = (inner,)
        return axes

    def forward(self, x: Tensor, lengths: Tensor, visible: Tensor | None = None) -> Tensor:
        """Attend over the frames of x (B, T, D), each row within its own length (B,).

        Args:
            x: (B, T, D).
            lengths: (B,) real frames.
            visible: True where a frame attends, (B, T, T), at least once for every frame; all real frames if None.
        """
        if visible is None:
            visible = visible_frames(lengths, x.shape[1]).unsqueeze(1)  # (B, 1, T)
        return self._attend(self.query(x), self.key(x), self.value(x), visible)

    def stream(self, x: Tensor, left: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Attend over the frames to the left and those of the next piece.

        Args:
            x: The piece (B, T, D).
            left: Keys and values of L frames before it (B, L, 2 inner).
            visible: True where its frames attend, (B, 1 or T, L + T), at least once for every frame.

        Returns:
            (B, T, D), and the keys and values of the L frames before the next piece.
        """
        key_values = torch.cat([left, torch.cat([self.key(x), self.value(x)], dim=2)], dim=1)
        key, value = key_values.chunk(2, dim=2)
        attended = self._attend(self.query(x), key, value, visible)
        return attended, key_values[:, key_values.shape[1] - left.shape[1] :]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
        """Attend from queries (B, Q, inner) of the newest of the frames of keys and values (B, K, inner)."""
        query, key, value = (split_heads(part, self.heads) for part in (query, key, value))  # (B, H, Q or K, d)
        queries, keys = query.shape[2], key.shape[2]
        table = relative_sinusoids(queries, self.dimension, query.device, keys, self.symmetric).to(query.dtype)
        position = self.position(table).reshape(keys + queries, self.heads, -1)  # (K + Q, H, d)
        by_position = torch.einsum("bhtd,rhd->bhtr", query + self.position_bias.unsqueeze(1), position)
        bias = _shift(by_position) / math.sqrt(self.head_dimension)  # (B, H, Q, K)
        with torch.no_grad():  # the softmax gives no gradient to a weight of 0
            bias.masked_fill_(~visible.unsqueeze(1), float("-inf"))
        attended = attend(query + self.content_bias.unsqueeze(1), key, value, bias, self.dropout)  # (B, H, Q, d)
        return self.output(attended.transpose(1, 2).flatten(2))


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: Dropout) -> Tensor:
    """Return scaled dot-product attention (B, H, U, d) of queries (B, H, U, d).

    Args:
        query: (B, H, U, d).
        key: (B, H, T, d).
        value: (B, H, T, d).
        mask: True where a query may attend, or a bias of the scaled products; broadcasts to (B, H, U, T). Every query
            attends to something.
        dropout: Of the attention weights.
    """
    if query.device.type != "cpu" or not dropout.training or not dropout.p:
        rate = dropout.p if dropout.training else 0.0
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=rate)
    # torch computes the same on a CPU, but its dropout takes as long as all the rest.
    return dropout(attention_weights(query, key, mask)) @ value


def attention_weights(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    """Return attention weights (B, H, U, T); arguments as of `attend`."""
    scores = (query / math.sqrt(query.shape[3])) @ key.transpose(2, 3)
    scores = scores.masked_fill_(~mask, float("-inf")) if mask.dtype == torch.bool else scores.add_(mask)
    return scores.softmax(dim=3)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Return (B, H, T, D / H) of x (B, T, D)."""
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def _shift(scores: Tensor) -> Tensor:
    """Convert scores (B, H, Q, K + Q) by distance to scores (B, H, Q, K) by frame, of Q queries at the last Q keys.

    [i, j] has the distance K - Q + i - j. Column c has the distance K - c, so row i needs the columns from Q - i on.
    Read from column Q on with a row length that is one column shorter, each row begins one column earlier than the row
    before.
    """
    queries, columns = scores.shape[2:]
    rows = scores.flatten(2)[:, :, queries:]
    shifted = rows.reshape(scores.shape[0], scores.shape[1], queries, columns - 1)
    return shifted[:, :, :, : columns - queries]


def sinusoids(positions: Tensor, dimension: int) -> Tensor:
    """Return sinusoids (T, dimension) of positions (T,): sines in even, cosines in odd columns, slower to the right.

    Source: Vaswani et al. 2017, "Attention is all you need", §3.5.
    """
    steps = torch.arange(0, dimension, 2.0, device=positions.device)
    angles = positions.unsqueeze(1) * torch.exp(steps * (-math.log(10_000.0) / dimension))
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :dimension]


def relative_sinusoids(
    size: int,
    dimension: int,
    device: torch.device | None = None,
    keys: int | None = None,
    symmetric: bool = False,
) -> Tensor:
    """Return sinusoids (keys + size, dimension) of the distances keys, …, 0, …, -(size - 1); as many keys if None.

    Symmetric ones are of the absolute distances. Source: Dai et al. 2019, "Transformer-XL", §3.3.
    """
    keys = size if keys is None else keys
    distances = (keys - torch.arange(keys + size, device=device)).float()
    return sinusoids(distances.abs() if symmetric else distances, dimension)


def sinusoid_axis(dimension: int) -> Axis:
    """Return the axis of sinusoids of an even dimension: wavelengths × sine and cosine.

    Every k-th wavelength of k times as many is one of these, so that columns can be selected evenly.
    """
    return axis(Units(dimension // 2), Fixed(2, "sine and cosine"))
