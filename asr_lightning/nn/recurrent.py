"""Recurrent layers and encoders, whose real frames do not depend on padding."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from asr_lightning.errors import InputError
from asr_lightning.nn.axes import Axis, Fixed, Units, axis, units
from asr_lightning.nn.dropout import Dropout
from asr_lightning.nn.extractors import ConvolutionalSubsampling
from asr_lightning.nn.sequences import Encoder, silence_padding
from asr_lightning.nn.streaming import State, StreamingEncoder


@cache
def computes_lstm(dtype: torch.dtype) -> bool:
    """Whether this processor computes an LSTM and its gradient in a type, as bfloat16.

    oneDNN has no LSTM in half precision without AVX-512, and on some processors with AVX-512 one in float16 without a
    gradient.
    """
    has_biases, layers, dropout, training, bidirectional, batch_first = True, 1, 0.0, True, False, True
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", dtype):
            x, state = torch.zeros(1, 1, 1), torch.zeros(1, 1, 1)
            weights = [torch.zeros(shape, requires_grad=True) for shape in ((4, 1), (4, 1), (4,), (4,))]
            output, _, _ = torch.lstm(
                x, (state, state), weights, has_biases, layers, dropout, training, bidirectional, batch_first
            )
            torch.autograd.grad(output.float().sum(), weights)
    except RuntimeError:
        return False
    return True


@contextmanager
def lstm_autocast(device: torch.device) -> Iterator[bool]:
    """Disable autocast around an LSTM that the processor can compute in float32 only.

    Yields:
        Whether it was disabled, so that the LSTM needs float32.
    """
    on_processor = device.type == "cpu" and torch.is_autocast_enabled("cpu")
    missing = on_processor and not computes_lstm(torch.get_autocast_dtype("cpu"))
    with torch.autocast(device.type, enabled=torch.is_autocast_enabled(device.type) and not missing):
        yield missing


@contextmanager
def weights_cast_once(device: torch.device) -> Iterator[None]:
    """Under autocast, cast every weight once, not in each step of a recurrence or a search.

    Autocast caches no cast in inference mode, in which Lightning validates and tests: a mode without gradients
    replaces it here. And Lightning's mixed precision disables the cache (lightning 2.6.6, `MixedPrecision`), since a
    weight that is first cast without gradients would get none later. Here the cache is empty before and after. Without
    it the GRU of Deep Speech 2 keeps a copy of its weights per frame for the backward pass: 17 GB for 16 s of speech;
    and its evaluation takes forty times as long.
    """
    kind, inference = device.type, torch.is_inference_mode_enabled()
    if not torch.is_autocast_enabled(kind) or (torch.is_autocast_cache_enabled() and not inference):
        yield
        return
    gradients = torch.is_grad_enabled() and not inference
    torch.clear_autocast_cache()
    try:
        with (
            torch.inference_mode(False),
            torch.set_grad_enabled(gradients),
            torch.autocast(kind, torch.get_autocast_dtype(kind), cache_enabled=True),
        ):
            yield
    finally:
        torch.clear_autocast_cache()


class LSTM(nn.LSTM):
    """torch's LSTM of one layer and one direction, batch first, which works under autocast on every processor.

    Args:
        input_dimension: D of the input.
        hidden: Units.
    """

    def __init__(self, input_dimension: int, hidden: int) -> None:
        super().__init__(input_dimension, hidden, batch_first=True)

    def forward(  # no packed sequences
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return (B, T, hidden) for x (B, T, D), and the next state: hidden state and cell (1, B, hidden)."""
        if state is not None and self._is_quick_step(x):
            [weights] = self.all_weights
            hidden, cell = torch.lstm_cell(x[:, 0], (state[0][0], state[1][0]), *weights)
            return hidden.unsqueeze(1), (hidden.unsqueeze(0), cell.unsqueeze(0))
        with lstm_autocast(x.device) as precise:
            if precise:
                x = x.float()
                state = None if state is None else (state[0].float(), state[1].float())
            output, next_state = super().forward(x, state)  # type: ignore[has-type]
            return output, next_state

    def _is_quick_step(self, x: Tensor) -> bool:
        """Whether x (B, T, D) is a step of a search on a CPU, for which oneDNN orders all weights anew every time."""
        return (
            x.shape[1] == 1
            and x.device.type == "cpu"
            and x.dtype == self.weight_ih_l0.dtype
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and not torch.jit.is_tracing()
            and not torch.compiler.is_compiling()
        )


class BidirectionalLSTM(nn.Module):
    """Bidirectional layer; the backward direction begins at the last real frame of each utterance.

    Rows are reversed within their lengths instead of packed: no length has to be read from the device, and torch's
    fastest kernels can be used.

    Args:
        input_dimension: D of the input.
        hidden: Units of each direction; the output has those of the forward, then of the backward direction.
    """

    def __init__(self, input_dimension: int, hidden: int) -> None:
        super().__init__()
        self.forward_lstm = LSTM(input_dimension, hidden)
        self.backward_lstm = LSTM(input_dimension, hidden)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return (B, T, 2 * hidden) for x (B, T, D)."""
        ahead, _ = self.forward_lstm(x)
        back, _ = self.backward_lstm(reverse(x, lengths))
        return torch.cat([ahead, reverse(back, lengths)], dim=2)


def reverse(x: Tensor, lengths: Tensor) -> Tensor:
    """Reverse the real frames of x (B, T, D); padding stays after them."""
    frames = torch.arange(x.shape[1], device=x.device)
    order = torch.where(frames < lengths.unsqueeze(1), lengths.unsqueeze(1) - 1 - frames, frames)
    return x[torch.arange(x.shape[0], device=x.device).unsqueeze(1), order]  # copies frame by frame, unlike a gather


def continue_lstm(
    layers: nn.ModuleList, x: Tensor, state: tuple[Tensor, ...], dropout: nn.Module
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Continue LSTM layers from a state.

    Args:
        layers: Of torch's LSTM, one direction and one layer each.
        x: Input of the first layer (B, U, D).
        state: Hidden state and cell (B, hidden) of every layer.
        dropout: Of the input of each layer.

    Returns:
        (B, U, hidden), and the next state.
    """
    next_state: list[Tensor] = []
    for layer, hidden, cell in zip(layers, state[::2], state[1::2], strict=True):
        layer_state = (hidden.unsqueeze(0).contiguous(), cell.unsqueeze(0).contiguous())
        x, (hidden, cell) = layer(dropout(x), layer_state)
        next_state += [hidden.squeeze(0), cell.squeeze(0)]
    return x, tuple(next_state)


class LSTMEncoder(Encoder):
    """Convolutional subsampling, then bidirectional LSTM layers with LayerNorm.

    The subsampling's output has the dimension of the layers' output, so that all layers have the same shape.

    Args:
        input_dimension: Dimension of the features.
        hidden: Units of each direction; the output has D = 2 * hidden.
        layers: LSTM layers.
        channels: Of the subsampling's convolutions.
        subsampling: Input frames per output frame: 2, 4 or 8.
        dropout: After every layer.
    """

    def __init__(
        self, input_dimension: int, hidden: int, layers: int, channels: int, subsampling: int = 4, dropout: float = 0.1
    ) -> None:
        super().__init__(input_dimension, 2 * hidden)
        self.hidden = hidden
        self.subsampling = ConvolutionalSubsampling(input_dimension, self.dimension, channels, subsampling, dropout)
        self.layers = nn.ModuleList(BidirectionalLSTM(self.dimension, hidden) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(self.dimension) for _ in range(layers))
        self.dropout = Dropout(dropout)

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of the layers' inputs and of the norms: directions × units."""
        directions = self.output_axis()
        gates = axis(Fixed(4, "gates"), Units(self.hidden))
        projection = self.subsampling.parameter_axes()["projection.weight"]
        axes: dict[str, tuple[Axis, ...]] = {
            "subsampling.projection.weight": (directions, projection[1]),
            "subsampling.projection.bias": (directions,),
        }
        for layer in range(len(self.layers)):
            axes[f"norms.{layer}.weight"] = axes[f"norms.{layer}.bias"] = (directions,)
            for direction in ("forward_lstm", "backward_lstm"):
                axes[f"layers.{layer}.{direction}.weight_ih_l0"] = (gates, directions)
        return axes

    def output_axis(self) -> Axis:
        """Axis of the output: directions × units."""
        return axis(Fixed(2, "directions"), Units(self.hidden))

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode features x (B, T, input_dimension) as (B, T / subsampling, 2 * hidden)."""
        x, lengths = self.subsampling(x, lengths)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = self.dropout(norm(layer(x, lengths)))
        return x, lengths


class StreamingLSTMEncoder(StreamingEncoder):
    """Convolutional subsampling, then LSTM layers of one direction with LayerNorm.

    Args:
        input_dimension: Dimension of the features.
        hidden: Units, and D of the output.
        layers: LSTM layers.
        channels: Of the subsampling's convolutions.
        subsampling: Input frames per output frame: 2, 4 or 8.
        dropout: After every layer.

    Attributes:
        look_ahead: subsampling frames of features, of which an output frame is made.
    """

    def __init__(
        self, input_dimension: int, hidden: int, layers: int, channels: int, subsampling: int = 4, dropout: float = 0.1
    ) -> None:
        super().__init__(input_dimension, hidden)
        self.subsampling = ConvolutionalSubsampling(input_dimension, hidden, channels, subsampling, dropout)
        self.look_ahead = subsampling
        self.layers = nn.ModuleList(LSTM(hidden, hidden) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(layers))
        self.dropout = Dropout(dropout)

    def output_axis(self) -> Axis:
        """Axis of the output: hidden units."""
        return units(self.dimension)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode features x (B, T, input_dimension) as (B, T / subsampling, hidden)."""
        x, lengths = self.subsampling(x, lengths)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = self.dropout(norm(layer(x)[0]))
        return x, lengths

    def initial_state(self, batch_size: int, device: torch.device) -> State:
        """Return hidden state and cell of every layer, zeros (B, hidden), and the state of the subsampling."""
        subsampling = self.subsampling.initial_state(batch_size, device)
        zeros = subsampling[0].new_zeros(batch_size, self.dimension)
        return (*[zeros] * (2 * len(self.layers)), *subsampling)

    def stream(self, x: Tensor, lengths: Tensor, state: State, last: bool = False) -> tuple[Tensor, Tensor, State]:
        """Encode the complete groups of `subsampling` frames; in the last piece all frames."""
        of_layers = 2 * len(self.layers)
        x, lengths, subsampling = self.subsampling.stream(x, lengths, state[of_layers:], last)
        if not x.shape[1]:
            return x, lengths, (*state[:of_layers], *subsampling)
        next_state: list[Tensor] = []
        for number, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            hidden, cell = (part.unsqueeze(0).contiguous() for part in state[2 * number : 2 * number + 2])
            x, (hidden, cell) = layer(x, (hidden, cell))
            x = self.dropout(norm(x))
            next_state += [hidden.squeeze(0), cell.squeeze(0)]
        return x, lengths, (*next_state, *subsampling)


class PyramidalLSTMEncoder(Encoder):
    """Bidirectional LSTM layers that each read pairs of frames: the listener of LAS [Chan et al. 2016, 3.1].

    An utterance of T frames leaves each layer with T / 2, rounded up. Without a pyramid, the encoder of Chan et al. is
    `layers: 0, plain_layers: 4`.

    Args:
        input_dimension: Dimension of the features.
        hidden: Units of each direction; the output has D = 2 * hidden.
        layers: Layers that read pairs: 3 make 8 times fewer frames.
        plain_layers: Layers below that read single frames; Chan et al. have one.
        dropout: After every layer.

    Raises:
        InputError: There is no layer.
    """

    def __init__(
        self, input_dimension: int, hidden: int, layers: int = 3, plain_layers: int = 0, dropout: float = 0.0
    ) -> None:
        if min(layers, plain_layers) < 0 or layers + plain_layers < 1:
            raise InputError(
                f"PyramidalLSTMEncoder needs at least one of layers and plain_layers, got {layers=}, {plain_layers=}"
            )
        super().__init__(input_dimension, 2 * hidden)
        self.hidden = hidden
        sizes = [input_dimension] + [2 * hidden] * (layers + plain_layers)
        self.plain = nn.ModuleList(BidirectionalLSTM(size, hidden) for size in sizes[:plain_layers])
        self.pyramid = nn.ModuleList(BidirectionalLSTM(2 * size, hidden) for size in sizes[plain_layers:-1])
        self.dropout = Dropout(dropout)

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of the layers' inputs: pairs of frames of features or of directions × units."""
        axes: dict[str, tuple[Axis, ...]] = {}
        gates = axis(Fixed(4, "gates"), Units(self.hidden))
        inputs = [axis(Fixed(self.input_dimension, "features"))]
        inputs += [self.output_axis()] * (len(self.plain) + len(self.pyramid) - 1)
        names = [f"plain.{layer}" for layer in range(len(self.plain))]
        names += [f"pyramid.{layer}" for layer in range(len(self.pyramid))]
        for name, [factors] in zip(names, inputs, strict=True):
            pair = (Fixed(2, "frames of a pair"),) if name.startswith("pyramid") else ()
            for direction in ("forward_lstm", "backward_lstm"):
                axes[f"{name}.{direction}.weight_ih_l0"] = (gates, axis(*pair, *factors))
        return axes

    def output_axis(self) -> Axis:
        """Axis of the output: directions × units."""
        return axis(Fixed(2, "directions"), Units(self.hidden))

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode features x (B, T, input_dimension) as (B, T / 2 ** layers, 2 * hidden)."""
        for layer in self.plain:
            x = self.dropout(layer(x, lengths))
        for layer in self.pyramid:
            x = functional.pad(silence_padding(x, lengths), (0, 0, 0, x.shape[1] % 2))
            lengths = (lengths + 1) // 2
            x = self.dropout(layer(x.unflatten(1, (-1, 2)).flatten(2), lengths))  # (B, T, D) -> (B, T / 2, 2 D)
        return x, lengths


class ProjectedLSTMEncoder(Encoder):
    """Bidirectional LSTM layers, each with a projection and tanh after it: BLSTMP [Lim et al. 2019, 2.3].

    As the class of this name in ESPnet, which Lim et al. used (`src/nets/e2e_asr_attctc_th.py` of 2018). There the
    recipe of LibriSpeech has `subsample=1_2_2_1_1`, whose first number is of the features: layers 1 and 2 pass on every
    second frame, which is [2, 2] here. Tanh after the last projection was removed in October 2019 (pull request 1323),
    since WER on the Wall Street Journal was lower without it.

    Args:
        input_dimension: Dimension of the features.
        hidden: Units of each direction.
        layers: LSTM layers.
        projection: D, of every layer's output.
        subsampling: Input frames per output frame of the first layers; [2, 2] makes 4 times fewer frames.
        dropout: After every layer.
        last_tanh: Whether the last projection has tanh after it too.

    Raises:
        ValueError: There are more numbers than layers in `subsampling`, or one below 1.
    """

    def __init__(
        self,
        input_dimension: int,
        hidden: int,
        layers: int,
        projection: int,
        subsampling: Sequence[int] = (2, 2),
        dropout: float = 0.0,
        last_tanh: bool = True,
    ) -> None:
        super().__init__(input_dimension, projection)
        if len(subsampling) > layers or any(step < 1 for step in subsampling):
            raise ValueError(f"subsampling needs at most {layers} numbers, one per layer, from 1, got {subsampling}")
        self.hidden = hidden
        self.last_tanh = last_tanh
        self.steps = [*subsampling, *[1] * (layers - len(subsampling))]
        inputs = [input_dimension] + [projection] * (layers - 1)
        self.layers = nn.ModuleList(BidirectionalLSTM(size, hidden) for size in inputs)
        self.projections = nn.ModuleList(nn.Linear(2 * hidden, projection) for _ in inputs)
        self.dropout = Dropout(dropout)

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of the first layer's input, features, and of the projections' inputs, directions × units."""
        directions = axis(Fixed(2, "directions"), Units(self.hidden))
        gates = axis(Fixed(4, "gates"), Units(self.hidden))
        features = axis(Fixed(self.input_dimension, "features"))
        projections = {f"projections.{n}.weight": (units(self.dimension), directions) for n in range(len(self.layers))}
        names = ("forward_lstm", "backward_lstm")
        return {**projections, **{f"layers.0.{name}.weight_ih_l0": (gates, features) for name in names}}

    def output_axis(self) -> Axis:
        """Axis of the output: hidden units."""
        return units(self.dimension)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode features x (B, T, input_dimension) as (B, T / all steps, projection)."""
        last = len(self.layers) - 1
        for number, (layer, projection) in enumerate(zip(self.layers, self.projections, strict=True)):
            step = self.steps[number]
            x = projection(layer(x, lengths)[:, ::step])
            lengths = (lengths + step - 1) // step
            x = self.dropout(torch.tanh(x) if number < last or self.last_tanh else x)
        return x, lengths
