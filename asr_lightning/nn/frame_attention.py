"""Attention among the frames of an utterance, after a recurrent layer of Deep Speech 2.

    attention: {class_path: asr_lightning.nn.frame_attention.TimeAttention, init_args: {heads: 8, positions: true}}

`HeadAttention` attends over the heads of each single frame, the mistake of a student's report on KoSpeech, and is kept
to reproduce it. The others attend over time, to real frames only, and have a residual.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from asr_lightning.nn.attention import attend, sinusoids, split_heads
from asr_lightning.nn.axes import Axis, Units, axis, axis_size, units
from asr_lightning.nn.dropout import Dropout
from asr_lightning.nn.sequences import visible_frames

BLOCK = 1 << 22  # energies of additive attention in memory at once: 16 MiB


class FrameAttention(nn.Module, ABC):
    """Base class: `(x (B, T, D), lengths (B,)) -> (B, T, D)`.

    Args:
        input_axis: Axis of x, of size D.
    """

    positions = False  # whether sinusoids are added to x

    def __init__(self, input_axis: Axis) -> None:
        super().__init__()
        self.input_axis = input_axis
        self.dimension = axis_size(input_axis)

    @abstractmethod
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Transform frames x (B, T, D) of the given lengths (B,)."""


class HeadAttention(FrameAttention):
    """Attention over the heads of every single frame, without residual, as in that report.

    Queries, keys and values are (B, T, H, d) and multiplied without a transposition, so that each head of a frame
    attends over the heads of the same frame, and never to another frame. `TimeAttention` is the corrected one.

    Args:
        input_axis: See `FrameAttention`.
        heads: H.
        dropout: Of the output.

    Raises:
        ValueError: The heads do not divide D.
    """

    def __init__(self, input_axis: Axis, heads: int = 8, dropout: float = 0.1) -> None:
        super().__init__(input_axis)
        _check_heads(self.dimension, heads)
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(self.dimension, self.dimension) for _ in range(4))
        self.dropout = Dropout(dropout)

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of queries, keys and values: heads × dimensions of a head."""
        return _projections(self.input_axis, self.heads)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Transform frames x (B, T, D), each by itself."""
        query, key, value = (part(x).unflatten(2, (self.heads, -1)) for part in (self.query, self.key, self.value))
        attended = functional.scaled_dot_product_attention(query, key, value)  # (B, T, H, d), over H
        return self.dropout(self.output(attended.flatten(2)))


class TimeAttention(FrameAttention):
    """Scaled dot-product attention over time, with masked padding, LayerNorm before it and a residual.

    One head is the report's "scaled dot-product", several heads its "multi-head" attention.

    Args:
        input_axis: See `FrameAttention`.
        heads: H.
        positions: Add sinusoids of positions to the input of queries and keys.
        decay: Subtract a learned number of each head, times the distance in frames, from the energies.
        dropout: Of the attention weights and of the output.

    Raises:
        ValueError: The heads do not divide D.
    """

    def __init__(
        self, input_axis: Axis, heads: int = 8, positions: bool = False, decay: bool = False, dropout: float = 0.1
    ) -> None:
        super().__init__(input_axis)
        _check_heads(self.dimension, heads)
        self.heads = heads
        self.positions = positions
        self.norm = nn.LayerNorm(self.dimension)
        self.query, self.key, self.value, self.output = (nn.Linear(self.dimension, self.dimension) for _ in range(4))
        # The softplus of these is subtracted per frame of distance: the heads begin with near to far ranges.
        self.decay = nn.Parameter(torch.linspace(-1.0, -5.0, heads)) if decay else None
        self.dropout = Dropout(dropout)

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of queries, keys and values: heads × dimensions of a head."""
        return {**_projections(self.input_axis, self.heads), **_norm(self.input_axis)}

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Attend from each frame of x (B, T, D) to all real frames of its row."""
        size = x.shape[1]
        normed = self.norm(x)
        with_positions = normed
        positions = torch.arange(size, device=x.device)
        if self.positions:
            with_positions = normed + sinusoids(positions, self.dimension).to(normed.dtype)
        mask = visible_frames(lengths, size)[:, None, None, :]  # (B, 1, 1, T)
        if self.decay is not None:
            distance = (positions.unsqueeze(1) - positions).abs().to(normed.dtype)
            losses = functional.softplus(self.decay).view(-1, 1, 1) * distance  # (H, T, T)
            mask = (-losses).to(normed.dtype).masked_fill(~mask, -math.inf)
        attended = attend(
            split_heads(self.query(with_positions), self.heads),
            split_heads(self.key(with_positions), self.heads),
            split_heads(self.value(normed), self.heads),
            mask,
            self.dropout,
        )  # (B, H, T, d)
        return x + self.dropout(self.output(attended.transpose(1, 2).flatten(2)))


class AdditiveTimeAttention(FrameAttention):
    """Attention over time with energies vᵀ tanh(W q + U k) [Bahdanau et al. 2015], with LayerNorm and residual.

    The energies of a few frames at a time are in memory; they are computed again in the backward pass.

    Args:
        input_axis: See `FrameAttention`.
        hidden: Units of the energies.
        dropout: Of the attention weights and of the output.
        location: Add a convolution of the previous frame's weights to the energies [Chorowski et al. 2015, 2.2].
            The frames are then computed one after the other, which takes longer.
        channels: Of that convolution.
        filter_frames: Frames on each side of the filter's center.
    """

    def __init__(
        self,
        input_axis: Axis,
        hidden: int = 64,
        dropout: float = 0.1,
        location: bool = False,
        channels: int = 10,
        filter_frames: int = 25,
    ) -> None:
        super().__init__(input_axis)
        self.norm = nn.LayerNorm(self.dimension)
        self.query = nn.Linear(self.dimension, hidden)
        self.key = nn.Linear(self.dimension, hidden, bias=False)
        self.energy = nn.Linear(hidden, 1, bias=False)
        self.value, self.output = nn.Linear(self.dimension, self.dimension), nn.Linear(self.dimension, self.dimension)
        self.convolution = (
            nn.Conv1d(1, channels, 2 * filter_frames + 1, padding=filter_frames, bias=False) if location else None
        )
        self.location = nn.Linear(channels, hidden, bias=False) if location else None
        self.dropout = Dropout(dropout)

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of the projections and of the LayerNorm."""
        hidden = units(self.query.out_features)
        axes = {f"{name}.weight": (hidden, self.input_axis) for name in ("query", "key")}
        axes |= {
            "value.weight": (units(self.dimension), self.input_axis),
            "output.weight": (self.input_axis, units(self.dimension)),
        }
        return {**axes, "output.bias": (self.input_axis,), **_norm(self.input_axis)}

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Attend from each frame of x (B, T, D) to all real frames of its row."""
        normed = self.norm(x)
        queries, keys, values = self.query(normed), self.key(normed), self.value(normed)
        mask = visible_frames(lengths, x.shape[1]).unsqueeze(1)  # (B, 1, T)
        previous = keys.new_zeros(mask.shape)  # (B, 1, T), weights of the frame before the first
        rows = max(1, BLOCK // max(1, keys.numel()))
        parts = []
        for start in range(0, x.shape[1], rows):
            block = queries[:, start : start + rows]
            part, previous = checkpoint(self._attend, block, keys, values, mask, previous, use_reentrant=False)
            parts.append(part)
        return x + self.dropout(self.output(torch.cat(parts, dim=1)))

    def _attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, previous: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the attention (B, Q, D) of queries (B, Q, hidden), and the weights (B, 1, T) of the last query."""
        if self.location is None or self.convolution is None:
            weights = self._weights(queries.unsqueeze(2) + keys.unsqueeze(1), mask)  # (B, Q, T)
            return self.dropout(weights) @ values, weights[:, -1:]
        rows = []
        for query in queries.split(1, dim=1):  # (B, 1, hidden)
            located = self.location(self.convolution(previous).transpose(1, 2))  # (B, T, hidden)
            previous = self._weights((query + keys + located).unsqueeze(1), mask)  # (B, 1, T)
            rows.append(previous)
        return self.dropout(torch.cat(rows, dim=1)) @ values, previous

    def _weights(self, sums: Tensor, mask: Tensor) -> Tensor:
        """Return weights (B, Q, T) of the arguments of the tanh (B, Q, T, hidden), 0 outside of the mask (B, 1, T)."""
        return self.energy(torch.tanh(sums)).squeeze(3).masked_fill(~mask, -math.inf).softmax(dim=2)


def _projections(input_axis: Axis, heads: int) -> dict[str, tuple[Axis, ...]]:
    inner = axis(Units(heads), Units(axis_size(input_axis) // heads))
    axes: dict[str, tuple[Axis, ...]] = {"output.weight": (input_axis, inner), "output.bias": (input_axis,)}
    for name in ("query", "key", "value"):
        axes |= {f"{name}.weight": (inner, input_axis), f"{name}.bias": (inner,)}
    return axes


def _norm(input_axis: Axis) -> dict[str, tuple[Axis, ...]]:
    return {"norm.weight": (input_axis,), "norm.bias": (input_axis,)}


def _check_heads(dimension: int, heads: int) -> None:
    if dimension % heads:
        raise ValueError(f"attention needs heads that divide its dimension, got {heads} heads and {dimension}")
