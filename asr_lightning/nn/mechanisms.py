"""Attention mechanisms of decoders, which can replace each other in an experiment.

    attention: {class_path: asr_lightning.nn.mechanisms.LocationAwareAttention, init_args: {dimension: 320}}

The keys and values of an utterance's frames are computed once (`remember`), for any number of queries. N = B · K
queries belong to B utterances; the K queries of an utterance are adjacent.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from asr_lightning.errors import InputError
from asr_lightning.nn.attention import split_heads
from asr_lightning.nn.axes import Axis, Units, axis, axis_size, units
from asr_lightning.nn.sequences import State, visible_frames
from asr_lightning.nn.stepwise import StepLinear, StepMean


class Attention(nn.Module, ABC):
    """Base class: attention weights of the frames of an utterance, and their weighted mean, the context.

    Args:
        query: Axis of the query.
        memory: Axis of the encoded frames.
        heads: H.
        sharpening: β in softmax(β · energies), the inverse temperature [Chorowski et al. 2015, 2.3]: above 1, the
            weights concentrate on fewer frames. The toolkit of Lim et al. 2019 has 2.

    Raises:
        InputError: `sharpening` is not above 0.
    """

    def __init__(self, query: Axis, memory: Axis, heads: int = 1, sharpening: float = 1.0) -> None:
        super().__init__()
        if not sharpening > 0.0:
            raise InputError(f"{type(self).__name__} needs sharpening > 0, got {sharpening}")
        self.query_axis = query
        self.memory_axis = memory
        self.heads = heads
        self.sharpening = sharpening
        self.mean = StepMean()

    def output_axis(self) -> Axis:
        """Axis of the context: that of the frames, unless they are projected."""
        return self.memory_axis

    @abstractmethod
    def keys(self, encoded: Tensor) -> Tensor:
        """Return the keys (B, H, T, D) of encoded frames (B, T, D)."""

    def values(self, encoded: Tensor) -> Tensor:
        """Return the values (B, H, T, D) of encoded frames (B, T, D), whose weighted mean is the context."""
        return encoded.unsqueeze(1)

    @abstractmethod
    def energies(self, query: Tensor, keys: Tensor, previous: Tensor) -> Tensor:
        """Return the energies (B, K, H, T) of queries and keys, whose softmax is the attention weights.

        Args:
            query: (B, K, D).
            keys: (B, H, T, D).
            previous: (B, K, H, T), the weights of the previous query; all zero before the first query.
        """

    def remember(self, encoded: Tensor, lengths: Tensor) -> State:
        """Return keys, values and mask of encoded frames (B, T, D) of the given lengths (B,), one row per utterance."""
        return self.keys(encoded), self.values(encoded), visible_frames(lengths, encoded.shape[1])

    def initial_weights(self, memory: State) -> Tensor:
        """Return weights (B, H, T) before any query: all zero."""
        keys = memory[0]
        return keys.new_zeros(keys.shape[0], self.heads, keys.shape[2])

    def forward(self, query: Tensor, previous: Tensor, memory: State) -> tuple[Tensor, Tensor]:
        """Attend to the frames.

        Args:
            query: (N, D).
            previous: (N, H, T), the weights of the previous query.
            memory: Result of `remember`.

        Returns:
            The context (N, D) and the weights (N, H, T), which sum to 1.
        """
        keys, values, mask = memory
        per_utterance = (len(keys), -1)
        energies = self.energies(query.unflatten(0, per_utterance), keys, previous.unflatten(0, per_utterance))
        if self.sharpening != 1.0:
            energies = energies * self.sharpening
        weights = energies.masked_fill(~mask[:, None, None, :], float("-inf")).softmax(dim=3)  # (B, K, H, T)
        context = self.mean(weights.transpose(1, 2), values).transpose(1, 2)  # (B, H, K, D) -> (B, K, H, D)
        return context.flatten(2).flatten(0, 1), weights.flatten(0, 1)


class DotAttention(Attention):
    """Inner product of φ(query) and ψ(frame), two networks with one hidden layer each [Chan et al. 2016, 3.2].

    Args:
        query: See `Attention`.
        memory: See `Attention`.
        dimension: Hidden and output units of φ and of ψ.
        sharpening: See `Attention`.
    """

    def __init__(self, query: Axis, memory: Axis, dimension: int, sharpening: float = 1.0) -> None:
        super().__init__(query, memory, sharpening=sharpening)
        self.dimension = dimension
        self.phi = nn.Sequential(StepLinear(axis_size(query), dimension), nn.Tanh(), StepLinear(dimension, dimension))
        self.psi = nn.Sequential(nn.Linear(axis_size(memory), dimension), nn.Tanh(), nn.Linear(dimension, dimension))

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of the first layers of φ and ψ."""
        hidden = units(self.dimension)
        return {"phi.0.weight": (hidden, self.query_axis), "psi.0.weight": (hidden, self.memory_axis)}

    def keys(self, encoded: Tensor) -> Tensor:
        """Return ψ of the frames, (B, 1, T, D)."""
        return self.psi(encoded).unsqueeze(1)

    def energies(self, query: Tensor, keys: Tensor, previous: Tensor) -> Tensor:
        """Return energies (B, K, 1, T) of queries (B, K, D) and keys (B, 1, T, D)."""
        return (self.phi(query) @ keys.squeeze(1).transpose(1, 2)).unsqueeze(2)


class AdditiveAttention(Attention):
    """v · tanh(W query + V frame + b) [Bahdanau et al. 2015, A.1.2].

    Args:
        query: See `Attention`.
        memory: See `Attention`.
        dimension: Units under the tanh.
        sharpening: See `Attention`.
    """

    def __init__(self, query: Axis, memory: Axis, dimension: int, sharpening: float = 1.0) -> None:
        super().__init__(query, memory, sharpening=sharpening)
        self.dimension = dimension
        self.key = nn.Linear(axis_size(memory), dimension)
        self.query = StepLinear(axis_size(query), dimension, bias=False)
        self.energy = nn.Linear(dimension, 1, bias=False)

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of the projections of queries and keys."""
        hidden = units(self.dimension)
        return {"key.weight": (hidden, self.memory_axis), "query.weight": (hidden, self.query_axis)}

    def keys(self, encoded: Tensor) -> Tensor:
        """Return V frame + b, (B, 1, T, D)."""
        return self.key(encoded).unsqueeze(1)

    def energies(self, query: Tensor, keys: Tensor, previous: Tensor) -> Tensor:
        """Return energies (B, K, 1, T) of queries (B, K, D) and keys (B, 1, T, D)."""
        hidden = self.query(query).unsqueeze(2) + keys  # (B, K, T, D)
        return self.energy(torch.tanh(hidden)).squeeze(3).unsqueeze(2)


class LocationAwareAttention(AdditiveAttention):
    """Additive attention over frames and the previous weights [Chorowski et al. 2015, 2.2; Lim et al. 2019, 2.3].

    As in the toolkit of Lim et al., `filter_frames` are those on each side: 100 makes a kernel of 201 frames. Their
    window of 5 frames is a parameter of that toolkit which its location-aware attention does not use; here `window` is
    the windowing of Chorowski et al. (2.3), by default none.

    Args:
        query: See `Attention`.
        memory: See `Attention`.
        dimension: Units under the tanh.
        channels: Filters over the previous weights.
        filter_frames: Frames of a filter on each side of its center.
        window: Attend only to so many frames on each side of the median of the previous weights; None for all. The
            first query attends to all frames.
        sharpening: See `Attention`.
    """

    def __init__(
        self,
        query: Axis,
        memory: Axis,
        dimension: int = 320,
        channels: int = 10,
        filter_frames: int = 100,
        window: int | None = None,
        sharpening: float = 1.0,
    ) -> None:
        super().__init__(query, memory, dimension, sharpening)
        self.window = window
        self.convolution = nn.Conv1d(1, channels, 2 * filter_frames + 1, padding=filter_frames, bias=False)
        self.location = nn.Linear(channels, dimension, bias=False)

    def energies(self, query: Tensor, keys: Tensor, previous: Tensor) -> Tensor:
        """Return energies (B, K, 1, T) of queries (B, K, D), keys (B, 1, T, D) and previous weights (B, K, 1, T)."""
        filtered = pad(self.convolution(previous.flatten(0, 1)), (0, 0, 0, 1), value=1.0)  # (N, C + 1, T)
        queries = self.query(query).flatten(0, 1).unsqueeze(1)  # (N, 1, D)
        weights = torch.cat([self.location.weight.T.expand(len(queries), -1, -1).to(queries.dtype), queries], dim=1)
        keys = keys.expand(-1, query.shape[1], -1, -1).flatten(0, 1)  # (N, T, D)
        # query + key + location, in one product
        hidden = torch.baddbmm(keys, filtered.transpose(1, 2), weights).tanh_()
        energies = self.energy(hidden).transpose(1, 2).unflatten(0, previous.shape[:2])  # (B, K, 1, T)
        if self.window is None:
            return energies
        frames = torch.arange(previous.shape[3], device=previous.device)
        cumulative = previous.cumsum(dim=3)
        median = (cumulative < 0.5).sum(dim=3, keepdim=True)
        outside = ((frames - median).abs() > self.window) & (cumulative[..., -1:] > 0)
        # Finite, since by rounding the window of a row may contain only padding.
        return energies.masked_fill(outside, -1e4)


class MultiHeadAttention(Attention):
    """Scaled dot products of projections, head by head [Vaswani et al. 2017, 3.2].

    Args:
        query: See `Attention`.
        memory: See `Attention`.
        dimension: Of all heads together, and of the context.
        heads: H.
        sharpening: See `Attention`.

    Raises:
        ValueError: The heads do not divide the dimension.
    """

    def __init__(self, query: Axis, memory: Axis, dimension: int, heads: int = 4, sharpening: float = 1.0) -> None:
        super().__init__(query, memory, heads, sharpening)
        if dimension % heads:
            raise ValueError(f"attention needs a dimension that its heads divide, got {dimension} and {heads} heads")
        self.dimension = dimension
        self.query = StepLinear(axis_size(query), dimension)
        self.key = nn.Linear(axis_size(memory), dimension)
        self.value = nn.Linear(axis_size(memory), dimension)

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of queries, keys and values: heads × dimensions of a head."""
        inner = self.output_axis()
        sources = {"query": self.query_axis, "key": self.memory_axis, "value": self.memory_axis}
        weights = {f"{name}.weight": (inner, source) for name, source in sources.items()}
        return {**weights, **{f"{name}.bias": (inner,) for name in sources}}

    def output_axis(self) -> Axis:
        """Axis of the context: heads × dimensions of a head."""
        return axis(Units(self.heads), Units(self.dimension // self.heads))

    def keys(self, encoded: Tensor) -> Tensor:
        """Return the projected frames (B, H, T, D / H)."""
        return split_heads(self.key(encoded), self.heads)

    def values(self, encoded: Tensor) -> Tensor:
        """Return the projected frames (B, H, T, D / H)."""
        return split_heads(self.value(encoded), self.heads)

    def energies(self, query: Tensor, keys: Tensor, previous: Tensor) -> Tensor:
        """Return energies (B, K, H, T) of queries (B, K, D) and keys (B, H, T, D / H)."""
        heads = split_heads(self.query(query), self.heads)  # (B, H, K, D / H)
        return (heads @ keys.transpose(2, 3)).transpose(1, 2) / math.sqrt(keys.shape[3])


class ScaledDotAttention(MultiHeadAttention):
    """Scaled dot products of projections, with a single head.

    Args:
        query: See `Attention`.
        memory: See `Attention`.
        dimension: Of query, key and context.
        sharpening: See `Attention`.
    """

    def __init__(self, query: Axis, memory: Axis, dimension: int, sharpening: float = 1.0) -> None:
        super().__init__(query, memory, dimension, heads=1, sharpening=sharpening)


class FixedContext(Attention):
    """The mean of all frames for every query: a decoder without attention, for comparison.

    Args:
        query: See `Attention`.
        memory: See `Attention`.
    """

    def __init__(self, query: Axis, memory: Axis) -> None:
        super().__init__(query, memory)

    def keys(self, encoded: Tensor) -> Tensor:
        """Return the frames (B, 1, T, D), of which only the number is used."""
        return encoded.unsqueeze(1)

    def energies(self, query: Tensor, keys: Tensor, previous: Tensor) -> Tensor:
        """Return the same energy for every frame, (B, K, 1, T)."""
        return torch.zeros_like(previous)
