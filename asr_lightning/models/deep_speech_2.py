"""Deep Speech 2 [Amodei et al. 2016; seed 004], and with attention between its recurrent layers [seed 003].

Trained with CTC it is an encoder of `asr_lightning.models.ctc`; beside a text decoder, one of `EncoderDecoder`.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from asr_lightning.nn.axes import Axis, Fixed, Product, Units, axis, axis_size, units
from asr_lightning.nn.convolution import MaskedBatchNorm, follow
from asr_lightning.nn.dropout import Dropout
from asr_lightning.nn.encoder import Encoder
from asr_lightning.nn.extractors import clipped_relu
from asr_lightning.nn.frame_attention import FrameAttention
from asr_lightning.nn.masks import silence_padding
from asr_lightning.nn.positions import sinusoid_axis
from asr_lightning.nn.recurrent import reverse

Kind = Literal["vanilla", "gru", "lstm"]
Term = tuple[Tensor, Tensor, Tensor]  # mean (G,) and variance (G,) of W x over real frames, and their number


class DeepSpeech2Encoder(Encoder):
    """Convolutions, bidirectional recurrent layers with BatchNorm, and a fully connected layer.

    Args:
        extractor: A class of `asr_lightning.nn.extractors`.
        hidden: Units of each direction.
        layers: Recurrent layers.
        kind: `vanilla` (with clipped rectification), `gru` or `lstm`.
        directions: `sum` as in the paper, or `concatenate` as in seed 003.
        batch_norm: Whether there is one on the input-to-hidden term of every recurrent layer, and in the fully
            connected one.
        attention: Behind every recurrent layer, a class of `asr_lightning.nn.frame_attention`.
        fully_connected: Units of the layer behind the recurrent ones, D of the output; without it there is a LayerNorm
            in its place, as in seed 003.
        dropout: Of what each layer gives to the next.
    """

    def __init__(
        self,
        extractor: Encoder,
        hidden: int = 512,
        layers: int = 5,
        kind: Kind = "gru",
        directions: Literal["sum", "concatenate"] = "sum",
        batch_norm: bool = True,
        attention: Callable[[Axis], FrameAttention] | None = None,
        fully_connected: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        width = hidden if directions == "sum" else 2 * hidden
        super().__init__(extractor.input_dimension, fully_connected or width)
        self.extractor = extractor
        self.directions = directions
        self.recurrent_axis = units(hidden) if directions == "sum" else axis(Fixed(2, "directions"), Units(hidden))
        read = [extractor.output_axis()] + [self.recurrent_axis] * (layers - 1)
        self.layers = nn.ModuleList(RecurrentLayer(kind, one, hidden, batch_norm) for one in read)
        self.attentions = nn.ModuleList(attention(self.recurrent_axis) for _ in read if attention is not None)
        self.fully_connected = nn.Linear(width, fully_connected, bias=not batch_norm) if fully_connected else None
        self.norm = MaskedBatchNorm(fully_connected) if fully_connected and batch_norm else None
        self.layer_norm = None if fully_connected else nn.LayerNorm(width)
        self.dropout = Dropout(dropout)
        if any(one.positions for one in self.attentions):
            self._name_sinusoids(hidden)

    def _name_sinusoids(self, hidden: int) -> None:
        """Let axes say that attention adds sinusoids to the units: a sine stays beside its cosine."""
        pairs = sinusoid_axis(hidden)[0] if hidden % 2 == 0 else (Fixed(hidden, "units with sinusoids"),)
        self.recurrent_axis = axis(*pairs) if self.directions == "sum" else axis(Fixed(2, "directions"), *pairs)
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, RecurrentLayer)
            layer.name_units(layer.read if number == 0 else self.recurrent_axis, pairs)
        for attention in self.attentions:
            assert isinstance(attention, FrameAttention)
            attention.read = self.recurrent_axis

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Say what the last layer reads."""
        if self.fully_connected is not None:
            return {"fully_connected.weight": (units(self.dimension), self.recurrent_axis)}
        return {"layer_norm.weight": (self.recurrent_axis,), "layer_norm.bias": (self.recurrent_axis,)}

    def output_axis(self) -> Axis:
        """Say that the output is plain units, or what the recurrent layers give."""
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
    """Two directions over the frames, each with its own BatchNorm on the input-to-hidden term.

    Args:
        kind: Of the recurrent units.
        read: What the dimensions of the input mean.
        hidden: Units of each direction.
        batch_norm: Whether there is one.
    """

    def __init__(self, kind: Kind, read: Axis, hidden: int, batch_norm: bool) -> None:
        super().__init__()
        make = {"vanilla": ClippedRNN, "gru": nn.GRU, "lstm": nn.LSTM}[kind]
        self.forward_rnn, self.backward_rnn = (make(axis_size(read), hidden, batch_first=True) for _ in range(2))
        self.forward_norm = InputNorm(self.forward_rnn.weight_ih_l0.shape[0]) if batch_norm else None
        self.backward_norm = InputNorm(self.backward_rnn.weight_ih_l0.shape[0]) if batch_norm else None
        self.name_units(read, (Units(hidden),))

    def name_units(self, read: Axis, hidden: Product) -> None:
        """Note what the dimensions of the input and of each direction mean."""
        self.read = read
        self.hidden_axis = axis(*hidden)
        rows = self.forward_rnn.weight_ih_l0.shape[0]
        self.gates = axis(Fixed(rows // axis_size(self.hidden_axis), "gates"), *hidden)

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Say what both directions read, and that gates are packed, also in their BatchNorm."""
        axes: dict[str, tuple[Axis, ...]] = {}
        for name, _ in [*self.named_parameters(), *self.named_buffers()]:
            axes[name] = (self.gates,)
            if name.endswith(("weight_ih_l0", "weight_hh_l0")):
                axes[name] += (self.read if "ih" in name else self.hidden_axis,)
        return axes

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Read x (B, T, D), return what each direction says, (B, T, hidden)."""
        rnns = self.forward_rnn, self.backward_rnn
        terms: list[Term] | list[None] = [None, None]
        if self.training and self.forward_norm is not None:
            terms = term_statistics(x, lengths, [rnn.weight_ih_l0 for rnn in rnns])
        ahead = self._run(self.forward_rnn, self.forward_norm, x, terms[0])
        back = self._run(self.backward_rnn, self.backward_norm, reverse(x, lengths), terms[1])
        return ahead, reverse(back, lengths)

    @staticmethod
    def _run(rnn: nn.Module, norm: "InputNorm | None", x: Tensor, term: Term | None) -> Tensor:
        if norm is None:
            return rnn(x)[0]
        weight, bias = norm(rnn.weight_ih_l0, rnn.bias_ih_l0, term)
        return functional_call(rnn, {"weight_ih_l0": weight, "bias_ih_l0": bias}, (x,))[0]


class InputNorm(nn.Module):
    """BatchNorm of W x over all real frames [Amodei et al. 2016, §3.2], folded into W and the bias.

    The mean of W x over frames is W μ, its variance diag(W Σ Wᵀ), with mean μ and covariance Σ of x. So the normalised
    term is again a matrix times x plus a bias, and the libraries' fastest recurrent kernels apply.

    Args:
        rows: Of W.
        momentum: Weight of a batch in the running statistics.
        epsilon: Added to the variance.
    """

    running_mean: Tensor
    running_variance: Tensor

    def __init__(self, rows: int, momentum: float = 0.1, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.momentum = momentum
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(rows))
        self.register_buffer("running_mean", torch.zeros(rows))
        self.register_buffer("running_variance", torch.ones(rows))

    def forward(self, weight: Tensor, bias: Tensor, term: Term | None) -> tuple[Tensor, Tensor]:
        """Return matrix and bias with the normalisation in them; without a term's statistics by the running ones."""
        with torch.autocast(device_type=weight.device.type, enabled=False):
            if term is None:
                mean, variance = self.running_mean, self.running_variance
            else:
                mean, variance, count = term
                follow(self, mean, variance, count)
            scale = self.weight * torch.rsqrt(variance + self.epsilon)
            return weight * scale.unsqueeze(1), bias - mean * scale


def term_statistics(x: Tensor, lengths: Tensor, weights: list[Tensor]) -> list[Term]:
    """Return mean and variance (G,) of W x over the real frames of x (B, T, D), and their number, for every W."""
    with torch.autocast(device_type=x.device.type, enabled=False):
        count = lengths.sum()
        some = count.clamp(min=1)
        mean = silence_padding(x.float(), lengths).sum(dim=(0, 1)) / some
        centred = silence_padding(x.float() - mean, lengths).flatten(0, 1)
        variances = _TermVariance.apply(torch.cat(weights), centred, some).chunk(len(weights))
        return [(weight @ mean, variance, count) for weight, variance in zip(weights, variances, strict=True)]


class _TermVariance(torch.autograd.Function):
    """diag(W Σ Wᵀ) with the covariance Σ of frames, in half the products that autograd would need for its gradient."""

    @staticmethod
    def forward(context: Any, weight: Tensor, centred: Tensor, count: Tensor) -> Tensor:  # noqa: ANN401
        """Return the variance (G,) of W x, for W (G, D) and centred frames x (N, D), zero where they are padding."""
        terms = weight @ (symmetric_product(centred, centred) / count)
        context.save_for_backward(weight, centred, count, terms)
        return (terms * weight).sum(dim=1).clamp(min=0.0)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: ANN401
        """Return the gradients of W and x."""
        weight, centred, count, terms = context.saved_tensors
        scaled = weight * gradient.unsqueeze(1)
        of_frames = centred @ (symmetric_product(scaled, weight) * (2.0 / count))
        return 2.0 * terms * gradient.unsqueeze(1), of_frames, None


def symmetric_product(a: Tensor, b: Tensor, blocks: int = 4) -> Tensor:
    """Return aᵀ b (D, D) of matrices (N, D) for which it is symmetric, from the blocks on its diagonal and above."""
    size = max(1, -(-a.shape[1] // blocks))
    product = a.new_empty(a.shape[1], a.shape[1])
    for start in range(0, a.shape[1], size):
        stop = start + size
        rows = a[:, start:stop].T @ b[:, start:]
        product[start:stop, start:] = rows
        product[start:, start:stop] = rows.T
    return product


class ClippedRNN(nn.Module):
    """h_t = min(max(W x_t + U h_{t-1} + b, 0), 20) [seed 004], with the names that torch's RNN has.

    Args:
        input_size: Dimension of x.
        hidden_size: Dimension of h.
        batch_first: As torch has it; always true.
    """

    def __init__(self, input_size: int, hidden_size: int, batch_first: bool = True) -> None:
        super().__init__()
        assert batch_first
        bound = hidden_size**-0.5
        self.weight_ih_l0 = nn.Parameter(torch.empty(hidden_size, input_size).uniform_(-bound, bound))
        self.weight_hh_l0 = nn.Parameter(torch.empty(hidden_size, hidden_size).uniform_(-bound, bound))
        self.bias_ih_l0 = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Read x (B, T, D), return h of all frames (B, T, hidden) and of the last (B, hidden)."""
        inputs = functional.linear(x, self.weight_ih_l0, self.bias_ih_l0)
        hidden = inputs.new_zeros(len(x), inputs.shape[2])
        states = []
        for one in inputs.unbind(dim=1):
            hidden = clipped_relu(torch.addmm(one, hidden, self.weight_hh_l0.T))
            states.append(hidden)
        return torch.stack(states, dim=1), hidden
