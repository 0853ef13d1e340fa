"""The Emformer encoder without memory [Shi et al. 2021, "Emformer: Efficient memory transformer based acoustic model"].

Frames are cut into segments. A segment attends to itself, to some frames to its left and to the frames right after
it, its right context. Every layer computes the right context anew for each segment, so that no layer widens it: the
look-ahead of the whole encoder is that of one layer.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from asr_lightning.errors import InputError
from asr_lightning.nn.attention import attend, split_heads
from asr_lightning.nn.axes import Axis, Fixed, Units, axis, units
from asr_lightning.nn.dropout import Dropout
from asr_lightning.nn.sequences import silence_padding
from asr_lightning.nn.streaming import State, StreamingEncoder

ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}


class Emformer(StreamingEncoder):
    """A projection, groups of frames side by side as one, then Emformer layers.

    The sizes of torchaudio's `emformer_rnnt_base` are the defaults. It computes the same as the encoder there, with
    two differences that only batches and ends of streams show: no row sees another row's padding, and nothing after
    an utterance's end is attended to.

    Args:
        input_dimension: Dimension of the features.
        projection: Dimension of a frame before grouping; the layers have D = projection * subsampling.
        subsampling: Frames of a group: how many times fewer frames come out than go in.
        layers: Emformer layers.
        heads: Of the self-attention; they divide D.
        feed_forward: Hidden units of the feed-forward parts.
        segment: Groups of a segment.
        left_context: Groups to the left of a segment that it attends to.
        right_context: Groups after a segment that it attends to.
        activation: Of the feed-forward parts: `gelu`, `relu` or `silu`.
        dropout: Of every part.

    Attributes:
        look_ahead: (segment + right_context) * subsampling frames of features, which a segment needs.

    Raises:
        InputError: A size is impossible.
    """

    def __init__(
        self,
        input_dimension: int,
        projection: int = 128,
        subsampling: int = 4,
        layers: int = 20,
        heads: int = 8,
        feed_forward: int = 2048,
        segment: int = 4,
        left_context: int = 30,
        right_context: int = 1,
        activation: str = "gelu",
        dropout: float = 0.1,
    ) -> None:
        dimension = projection * subsampling
        if min(projection, subsampling, layers, heads, segment) < 1 or min(left_context, right_context) < 0:
            raise InputError(
                "Emformer needs projection, subsampling, layers, heads and segment from 1, and contexts from 0, got "
                f"{projection=}, {subsampling=}, {layers=}, {heads=}, {segment=}, {left_context=}, {right_context=}"
            )
        if dimension % heads:
            raise InputError(
                f"Emformer: expected heads that divide projection * subsampling = {dimension}, got {heads}"
            )
        super().__init__(input_dimension, dimension)
        self.projection = nn.Linear(input_dimension, projection, bias=False)
        self.subsampling = subsampling
        self.segment, self.left_context, self.right_context = segment, left_context, right_context
        self.look_ahead = (segment + right_context) * subsampling
        self.layers = nn.ModuleList(
            EmformerLayer(dimension, heads, feed_forward, activation, dropout, 1 / math.sqrt(layer + 1))
            for layer in range(layers)
        )

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Return the axes between the layers: frames of a group × units of the projection."""
        inner, group = self.projection.out_features, self.output_axis()
        features = axis(Fixed(self.input_dimension, "features"))
        axes: dict[str, tuple[Axis, ...]] = {"projection.weight": (units(inner), features)}
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, EmformerLayer)
            for name, of_layer in layer.axes(group).items():
                axes[f"layers.{number}.{name}"] = of_layer
        return axes

    def output_axis(self) -> Axis:
        """Return the axes of the output: frames of a group × units of the projection."""
        return axis(Fixed(self.subsampling, "frames of a group"), Units(self.projection.out_features))

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode features x (B, T, input_dimension) as (B, T / subsampling, D); the last T % subsampling are context.

        An utterance shorter than a group is filled up with zeros to one.
        """
        lengths = lengths.clamp(max=x.shape[1])
        y, _ = self._encode(self._groups(x, lengths), self._encoded_lengths(lengths), self._empty_context(x))
        return y[:, : self._count(x)], self._encoded_lengths(lengths)

    def initial_state(self, batch_size: int, device: torch.device) -> State:
        """Return waiting frames (B, 0, F), and for every layer keys and values to the left (B, left_context, 2 D).

        The keys and values are masked zeros. The last is the number of encoded groups, (B,).
        """
        waiting = torch.zeros(batch_size, 0, self.input_dimension, device=device)
        return (waiting, *self._empty_context(waiting), torch.zeros(batch_size, dtype=torch.long, device=device))

    def stream(self, x: Tensor, lengths: Tensor, state: State, last: bool = False) -> tuple[Tensor, Tensor, State]:
        """Encode the segments whose right context is complete; in the last piece all."""
        waiting, *past, encoded = state
        x = torch.cat([waiting, x], dim=1)
        total = waiting.shape[1] + lengths
        if last:
            ends = self._encoded_lengths(total) if not int(encoded.max()) else total // self.subsampling
            y, past = self._encode(self._groups(x, total), encoded + ends, past, encoded)
            return y[:, : int(ends.max())], ends, (x[:, :0], *past, encoded + ends)
        step = self.segment * self.subsampling
        segments = max(0, (x.shape[1] - self.right_context * self.subsampling) // step)
        if not segments:
            return x.new_zeros(len(x), 0, self.dimension), torch.zeros_like(lengths), (x, *past, encoded)
        frames = x[:, : segments * step + self.right_context * self.subsampling]
        groups = self.projection(frames).unflatten(1, (-1, self.subsampling)).flatten(2)
        count = segments * self.segment
        y, past = self._encode(groups, encoded + count, past, encoded)
        return y, torch.full_like(lengths, count), (x[:, segments * step :], *past, encoded + count)

    def step(self, x: Tensor, lengths: Tensor, past: Tensor, encoded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode one segment, as `stream` does, without branches on values, so that it can be exported.

        Args:
            x: Features (B, look_ahead, F) of the segment and of its right context, from frame `encoded * subsampling`
                of the utterance on.
            lengths: Real frames (B,) of x: all, but at the end of an utterance.
            past: Keys and values of all layers to the left (layers, B, left_context, 2 D), zeros before the first.
            encoded: Groups (B,) encoded by earlier steps: a multiple of `segment`.

        Returns:
            The segment (B, segment, D), its lengths (B,), and `past` for the next step.
        """
        x = silence_padding(self.projection(silence_padding(x, lengths)), lengths)
        groups = x.reshape(x.shape[0], -1, self.subsampling * x.shape[2])
        ends = (lengths // self.subsampling).clamp(min=(encoded == 0).long())
        y, next_past = self._encode(groups, encoded + ends, list(past.unbind(0)), encoded)
        return y, ends.clamp(max=self.segment), torch.stack(next_past)

    def _encoded_lengths(self, lengths: Tensor) -> Tensor:
        return (lengths // self.subsampling).clamp(min=1)

    def _count(self, x: Tensor) -> int:
        """Return how many groups x (B, T, F) has, one at least, by arithmetic that tracers record for all T."""
        groups = x.shape[1] // self.subsampling
        return groups + 1 // (groups + 1)

    def _empty_context(self, x: Tensor) -> list[Tensor]:
        return [x.new_zeros(x.shape[0], self.left_context, 2 * self.dimension) for _ in self.layers]

    def _groups(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return whole segments and right context (B, N * segment + right_context, D), zeros after the ends."""
        size = self.segment * ((self._count(x) + self.segment - 1) // self.segment) + self.right_context
        x = silence_padding(self.projection(silence_padding(x, lengths)), lengths)
        x = functional.pad(x, (0, 0, 0, size * self.subsampling))[:, : size * self.subsampling]
        return x.reshape(x.shape[0], -1, self.subsampling * x.shape[2])

    def _encode(
        self, groups: Tensor, ends: Tensor, past: list[Tensor], encoded: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Encode N segments (B, N * segment + right_context, D).

        Args:
            groups: The segments' groups, and the right context of the last.
            ends: How many groups each utterance has (B,), with those of earlier pieces.
            past: Keys and values to the left of every layer.
            encoded: Groups of earlier pieces (B,); none if None.

        Returns:
            (B, N * segment, D), and the keys and values to the left of what comes next.
        """
        encoded = torch.zeros_like(ends) if encoded is None else encoded
        size = groups.shape[1] - self.right_context
        starts = torch.arange(0, size, self.segment, device=groups.device)  # (N,)
        # The right context of an utterance's last segment begins where the utterance ends.
        first = torch.minimum(starts + self.segment, (ends - encoded).clamp(min=0).unsqueeze(1))  # (B, N)
        index = first.unsqueeze(2) + torch.arange(self.right_context, device=groups.device)  # (B, N, R)
        picked = index.flatten(1).unsqueeze(2).expand(-1, -1, groups.shape[2])
        right = groups.gather(1, picked).view(*index.shape, groups.shape[2])  # (B, N, R, D)
        offsets = torch.arange(-self.left_context, self.segment, device=groups.device)
        positions = encoded.view(-1, 1, 1) + starts.view(1, -1, 1) + offsets  # (B, N, L + S)
        visible = (positions >= 0) & (positions < ends.view(-1, 1, 1))
        visible = functional.pad(visible, (0, self.right_context), value=True)
        # Without right context, a segment after an utterance's end would see nothing: it sees everything here.
        visible = visible | ~visible.any(dim=2, keepdim=True)
        mask = visible.flatten(0, 1)[:, None, None]  # (B N, 1, 1, L + S + R)
        x, next_past = groups[:, :size], []
        for layer, left in zip(self.layers, past, strict=True):
            x, right, left = layer(x, right, left, mask)
            next_past.append(left)
        return x, next_past


class EmformerLayer(nn.Module):
    """Self-attention of segments, and a feed-forward part.

    Args:
        dimension: D.
        heads: H.
        feed_forward: Hidden units of the feed-forward part.
        activation: `gelu`, `relu` or `silu`.
        dropout: Of every part.
        gain: Of the first weights of queries, keys and values.

    Raises:
        InputError: There is no such activation.
    """

    def __init__(
        self, dimension: int, heads: int, feed_forward: int, activation: str, dropout: float, gain: float
    ) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dimension)
        self.query = nn.Linear(dimension, dimension)
        self.key_value = nn.Linear(dimension, 2 * dimension)
        self.output = nn.Linear(dimension, dimension)
        self.feed_forward_norm = nn.LayerNorm(dimension)
        self.expansion = nn.Linear(dimension, feed_forward)
        self.activation = make_activation(activation)
        self.contraction = nn.Linear(feed_forward, dimension)
        self.norm = nn.LayerNorm(dimension)
        self.dropout = Dropout(dropout)
        for part in (self.query, self.key_value):
            nn.init.xavier_uniform_(part.weight, gain=gain)

    def axes(self, outer: Axis) -> dict[str, tuple[Axis, ...]]:
        """Return the axes of the parameters, where those of input and output are `outer`."""
        dimension = self.query.in_features
        head = (Units(self.heads), Units(dimension // self.heads))
        key_value, hidden = axis(Fixed(2, "key and value"), *head), units(self.expansion.out_features)
        axes: dict[str, tuple[Axis, ...]] = {
            "query.weight": (axis(*head), outer), "query.bias": (axis(*head),),
            "key_value.weight": (key_value, outer), "key_value.bias": (key_value,),
            "output.weight": (outer, axis(*head)), "output.bias": (outer,),
            "expansion.weight": (hidden, outer),
            "contraction.weight": (outer, hidden), "contraction.bias": (outer,),
        }  # fmt: skip
        for name in ("attention_norm", "feed_forward_norm", "norm"):
            axes[f"{name}.weight"] = axes[f"{name}.bias"] = (outer,)
        return axes

    def forward(self, x: Tensor, right: Tensor, left: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Transform N segments and their right contexts.

        Args:
            x: (B, N * S, D), segments of S.
            right: (B, N, R, D), of every segment.
            left: Keys and values (B, L, 2 D) before x.
            mask: Where segments may look, (B * N, 1, 1, L + S + R).

        Returns:
            x, right, and the keys and values before what comes next.
        """
        batch, segments, _, dimension = right.shape
        segment = x.shape[1] // segments
        # (B N, S + R, D): every segment, then its right context
        together = torch.cat([x.reshape(batch, segments, -1, dimension), right], dim=2).flatten(0, 1)
        normed = self.attention_norm(together)
        query = self.query(normed)
        key_values = self.key_value(normed)  # (B N, S + R, 2 D)
        right_key_values = key_values[:, segment:]
        # (B, L + N S, 2 D)
        history = torch.cat([left, key_values[:, :segment].reshape(batch, -1, 2 * dimension)], dim=1)
        windows = _windows(history, left.shape[1] + segment, segment).flatten(0, 1)  # (B N, L + S, 2 D)
        key, value = torch.cat([windows, right_key_values], dim=1).chunk(2, dim=2)
        query, key, value = (split_heads(part, self.heads) for part in (query, key, value))
        attended = attend(query, key, value, mask, self.dropout)
        together = together + self.dropout(self.output(attended.transpose(1, 2).flatten(2)))
        hidden = self.dropout(self.activation(self.expansion(self.feed_forward_norm(together))))
        together = self.norm(together + self.dropout(self.contraction(hidden)))
        together = together.reshape(batch, segments, -1, dimension)
        x, right = together[:, :, :segment].flatten(1, 2), together[:, :, segment:]
        return x, right, history[:, history.shape[1] - left.shape[1] :]


def _windows(x: Tensor, size: int, step: int) -> Tensor:
    """Return windows (B, N, size, D) of x (B, T, D), one every `step` frames."""
    if not torch.onnx.is_in_onnx_export():
        return x.unfold(1, size, step).transpose(2, 3)
    starts = torch.arange(0, x.shape[1] - size + 1, step, device=x.device)  # ONNX has no sliding windows
    return x[:, starts.unsqueeze(1) + torch.arange(size, device=x.device)]


def make_activation(name: str) -> nn.Module:
    """Return the activation of this name.

    Raises:
        InputError: There is none.
    """
    if name not in ACTIVATIONS:
        raise InputError(f"expected an activation of {', '.join(ACTIVATIONS)}, got {name}")
    return ACTIVATIONS[name]()
