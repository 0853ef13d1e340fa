"""Encoder of Deep Speech 2 [Amodei et al. 2016], also as in KoSpeech [Kim, Bae, Won 2021], with attention layers.

It is trained with CTC in `asr_lightning.models.ctc.CTCRecognizer`, or with an attention decoder in `EncoderDecoder`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from asr_lightning.nn.attention import sinusoid_axis
from asr_lightning.nn.axes import Axis, Fixed, Product, Units, axis, axis_size, units
from asr_lightning.nn.batch_norm import InputNorm, MaskedBatchNorm, Term, term_statistics
from asr_lightning.nn.dropout import Dropout
from asr_lightning.nn.extractors import clipped_relu
from asr_lightning.nn.frame_attention import FrameAttention
from asr_lightning.nn.recurrent import LSTM, reverse, weights_cast_once
from asr_lightning.nn.sequences import Encoder

Kind = Literal["vanilla", "gru", "lstm"]
BatchNorm = bool | Literal["input"]
INPUT = ("weight_ih_l0", "bias_ih_l0")  # torch's names of the input-to-hidden matrix and its bias


class DeepSpeech2Encoder(Encoder):
    """Convolutions, bidirectional recurrent layers with BatchNorm, and a fully connected layer.

    Args:
        extractor: A class of `asr_lightning.nn.extractors`.
        hidden: Units of each direction.
        layers: Recurrent layers.
        kind: `vanilla` (with clipped ReLU), `gru` or `lstm`.
        directions: `sum` as in the paper, or `concatenate` as in KoSpeech.
        batch_norm: `true` is BatchNorm of the input-to-hidden term of every recurrent layer, as in the paper; `input`
            is ReLU(BatchNorm(x)) before every recurrent layer, as in KoSpeech. Both also have BatchNorm in the fully
            connected layer; `false` has none.
        shared_input: One input-to-hidden matrix, with its bias and its BatchNorm, for both directions of a layer, as in
            the paper [Amodei et al. 2016, 3.1 and 3.2]; otherwise each direction has its own, as in torch's layers.
        attention: A class of `asr_lightning.nn.frame_attention`, after every recurrent layer.
        fully_connected: Units of the layer after the recurrent ones, D of the output; without it there is a LayerNorm
            instead, as in KoSpeech.
        dropout: Between layers.
    """

    def __init__(
        self,
        extractor: Encoder,
        hidden: int = 512,
        layers: int = 5,
        kind: Kind = "gru",
        directions: Literal["sum", "concatenate"] = "sum",
        batch_norm: BatchNorm = True,
        attention: Callable[[Axis], FrameAttention] | None = None,
        fully_connected: int | None = None,
        dropout: float = 0.0,
        shared_input: bool = False,
    ) -> None:
        width = hidden if directions == "sum" else 2 * hidden
        super().__init__(extractor.input_dimension, fully_connected or width)
        self.extractor = extractor
        self.directions = directions
        self.recurrent_axis = units(hidden) if directions == "sum" else axis(Fixed(2, "directions"), Units(hidden))
        inputs = [extractor.output_axis()] + [self.recurrent_axis] * (layers - 1)
        self.layers = nn.ModuleList(RecurrentLayer(kind, axis_, hidden, batch_norm, shared_input) for axis_ in inputs)
        self.attentions = nn.ModuleList(attention(self.recurrent_axis) for _ in inputs if attention is not None)
        self.fully_connected = nn.Linear(width, fully_connected, bias=not batch_norm) if fully_connected else None
        self.norm = MaskedBatchNorm(fully_connected) if fully_connected and batch_norm else None
        self.layer_norm = None if fully_connected else nn.LayerNorm(width)
        self.dropout = Dropout(dropout)
        if any(layer.positions for layer in self.attentions):
            self._set_sinusoid_axes(hidden)

    def _set_sinusoid_axes(self, hidden: int) -> None:
        """Set the axes of units to which attention adds sinusoids: pairs of sine and cosine."""
        pairs = sinusoid_axis(hidden)[0] if hidden % 2 == 0 else (Fixed(hidden, "units with sinusoids"),)
        self.recurrent_axis = axis(*pairs) if self.directions == "sum" else axis(Fixed(2, "directions"), *pairs)
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, RecurrentLayer)
            layer.set_axes(layer.input_axis if number == 0 else self.recurrent_axis, pairs)
        for attention in self.attentions:
            assert isinstance(attention, FrameAttention)
            attention.input_axis = self.recurrent_axis

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of the last layer."""
        if self.fully_connected is not None:
            return {"fully_connected.weight": (units(self.dimension), self.recurrent_axis)}
        return {"layer_norm.weight": (self.recurrent_axis,), "layer_norm.bias": (self.recurrent_axis,)}

    def output_axis(self) -> Axis:
        """Axis of the output: hidden units, or the output of the recurrent layers."""
        return self.recurrent_axis if self.fully_connected is None else units(self.dimension)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode features x (B, T, F) as (B, T', D)."""
        x, lengths = self.extractor(x, lengths)
        for number, layer in enumerate(self.layers):
            ahead, back = layer(self.dropout(x), lengths)
            x = ahead + back if self.directions == "sum" else torch.cat([ahead, back], dim=2)
            if self.attentions:
                x = self.attentions[number](x, lengths)
        if self.layer_norm is not None:
            return self.layer_norm(x), lengths
        assert self.fully_connected is not None
        x = self.fully_connected(self.dropout(x))
        return clipped_relu(x if self.norm is None else self.norm(x, lengths)), lengths


class RecurrentLayer(nn.Module):
    """Bidirectional recurrent layer, with BatchNorm of the input-to-hidden term or of the input.

    Args:
        kind: Of the recurrent units.
        input_axis: Axis of the input.
        hidden: Units of each direction.
        batch_norm: See `DeepSpeech2Encoder`.
        shared_input: See `DeepSpeech2Encoder`; both directions then use `forward_norm`.
    """

    def __init__(
        self, kind: Kind, input_axis: Axis, hidden: int, batch_norm: BatchNorm = True, shared_input: bool = False
    ) -> None:
        super().__init__()
        kinds: dict[Kind, Callable[[int, int], Any]]
        kinds = {"vanilla": ClippedRNN, "gru": partial(nn.GRU, batch_first=True), "lstm": LSTM}
        make = kinds[kind]
        self.forward_rnn, self.backward_rnn = (make(axis_size(input_axis), hidden) for _ in range(2))
        if shared_input:
            for name in INPUT:
                setattr(self.backward_rnn, name, getattr(self.forward_rnn, name))
        rows = self.forward_rnn.weight_ih_l0.shape[0]
        on_term = batch_norm is True
        self.input_norm = MaskedBatchNorm(axis_size(input_axis)) if batch_norm == "input" else None
        self.forward_norm = InputNorm(rows) if on_term else None
        self.backward_norm = InputNorm(rows) if on_term and not shared_input else None
        self.set_axes(input_axis, (Units(hidden),))

    def set_axes(self, input_axis: Axis, hidden: Product) -> None:
        """Set the axes of the input and of the units of each direction."""
        self.input_axis = input_axis
        self.hidden_axis = axis(*hidden)
        rows = self.forward_rnn.weight_ih_l0.shape[0]
        self.gates = axis(Fixed(rows // axis_size(self.hidden_axis), "gates"), *hidden)

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of both directions and of their BatchNorm, with packed gates."""
        axes: dict[str, tuple[Axis, ...]] = {}
        tensors = [*self.named_parameters(remove_duplicate=False), *self.named_buffers(remove_duplicate=False)]
        for name, _ in tensors:
            axes[name] = (self.input_axis if name.startswith("input_norm") else self.gates,)
            if name.endswith(("weight_ih_l0", "weight_hh_l0")):
                axes[name] += (self.input_axis if "ih" in name else self.hidden_axis,)
        return axes

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs of both directions, (B, T, hidden) each, for x (B, T, D)."""
        if self.input_norm is not None:
            x = functional.relu(self.input_norm(x, lengths))
        ahead_input, back_input = self._normalized_inputs(x, lengths)
        ahead = _run(self.forward_rnn, ahead_input, x)
        back = _run(self.backward_rnn, back_input, reverse(x, lengths))
        return ahead, reverse(back, lengths)

    def _normalized_inputs(self, x: Tensor, lengths: Tensor) -> list[dict[str, Tensor]]:
        """Return input matrix and bias of both directions with BatchNorm folded in; empty without BatchNorm."""
        directions = (self.forward_norm, self.forward_rnn), (self.backward_norm, self.backward_rnn)
        normalized = [(norm, rnn.weight_ih_l0, rnn.bias_ih_l0) for norm, rnn in directions if norm is not None]
        if not normalized:
            return [{}, {}]
        terms: list[Term] | list[None] = [None] * len(normalized)
        if self.training:
            terms = term_statistics(x, lengths, [weight for _, weight, _ in normalized])
        inputs = [
            dict(zip(INPUT, norm(weight, bias, term), strict=True))
            for (norm, weight, bias), term in zip(normalized, terms, strict=True)
        ]
        return inputs if len(inputs) == 2 else inputs * 2  # the same for both directions if they share it


def _run(rnn: nn.Module, inputs: dict[str, Tensor], x: Tensor) -> Tensor:
    """Return (B, T, hidden) for x (B, T, D), computed with `inputs` in place of the layer's input weights, if any."""
    if isinstance(rnn, nn.GRU) and x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # torch's GRU reads them in every step, and autocast remembers only the casts of parameters
        inputs = {name: value.to(torch.get_autocast_dtype("cpu")) for name, value in inputs.items()}
    if isinstance(rnn, nn.RNNBase):
        # Frame by frame in memory, as torch's layers read it. Else they multiply each frame with a copy of the weights
        # of its own where these have no gradients (torch 2.11, `at::matmul`): 29 ms a frame and 7 GB, not 1 ms.
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    with weights_cast_once(x.device):
        return functional_call(rnn, inputs, (x,))[0] if inputs else rnn(x)[0]


class ClippedRNN(nn.Module):
    """h_t = min(max(W x_t + U h_{t-1} + b, 0), 20) [Amodei et al. 2016, 3.1], with the parameter names of torch's RNN.

    Args:
        input_size: Dimension of x.
        hidden_size: Dimension of h.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        bound = hidden_size**-0.5
        self.weight_ih_l0 = nn.Parameter(torch.empty(hidden_size, input_size).uniform_(-bound, bound))
        self.weight_hh_l0 = nn.Parameter(torch.empty(hidden_size, hidden_size).uniform_(-bound, bound))
        self.bias_ih_l0 = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return h of all frames (B, T, hidden) and of the last (B, hidden), for x (B, T, D)."""
        inputs = functional.linear(x, self.weight_ih_l0, self.bias_ih_l0)
        hidden = inputs.new_zeros(len(x), inputs.shape[2])
        weight = self.weight_hh_l0.to(inputs.dtype).T  # under autocast, cast once and not in every step
        states = []
        for frame in inputs.unbind(dim=1):
            hidden = clipped_relu(torch.addmm(frame, hidden, weight))
            states.append(hidden)
        return torch.stack(states, dim=1), hidden
