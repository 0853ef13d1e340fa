"""LSTM layers with a recurrent projection: the BLSTMP layers of the hybrid of Lim et al. 2019."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from asr_lightning.nn.axes import Axis, Fixed, Units, axis
from asr_lightning.nn.dropout import Dropout
from asr_lightning.nn.recurrent import lstm_autocast, reverse
from asr_lightning.nn.sequences import Encoder, silence_padding


class RecurrentProjectionLSTM(nn.Module):
    """One direction: LSTM cells with a recurrent and a non-recurrent projection [Sak, Senior and Beaufays 2014].

        m_t = o_t ⊙ tanh(c_t),   r_t = W_r m_t,   p_t = W_p m_t,   gates_t = W_x x_t + W_g r_{t-1} + b

    The gates read m through the product W_g W_r. With this product as its recurrent weight a plain LSTM computes the
    same m, so torch's fastest kernels can be used, and both projections of all frames are one product after it. torch's
    `proj_size`, with zeros in the columns of its recurrent weight for p, computes the same; but it has no fast kernel
    on the CPU (`benchmarks/projected_lstm.py`) and must be smaller than the number of cells.

    Kaldi's `fast-lstmp-layer` also has peepholes from the cells to the gates and biases of the projections; this layer
    has neither.

    Args:
        input_dimension: D of the input.
        hidden: Cells.
        recurrent_projection: R, dimension of r.
        projection: P, dimension of p; 0 for none.
    """

    def __init__(self, input_dimension: int, hidden: int, recurrent_projection: int, projection: int) -> None:
        super().__init__()
        self.input_dimension, self.hidden = input_dimension, hidden
        self.recurrent_projection, self.projection = recurrent_projection, projection
        self.weight_ih = nn.Parameter(torch.empty(4 * hidden, input_dimension))  # W_x; gates as in torch: i, f, g, o
        self.weight_hh = nn.Parameter(torch.empty(4 * hidden, recurrent_projection))  # W_g
        self.weight_hr = nn.Parameter(torch.empty(recurrent_projection + projection, hidden))  # W_r above W_p
        self.bias = nn.Parameter(torch.empty(4 * hidden))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(hidden**-0.5), hidden**-0.5)  # as torch's LSTM

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of the weights, with packed gates, and r and p concatenated."""
        gates, cells = axis(Fixed(4, "gates"), Units(self.hidden)), axis(Units(self.hidden))
        return {
            "weight_ih": (gates, axis(Units(self.input_dimension))),
            "weight_hh": (gates, axis(Units(self.recurrent_projection))),
            "weight_hr": (self.output_axis(), cells),
            "bias": (gates,),
        }

    def output_axis(self) -> Axis:
        """Axis of the output: r, then p."""
        return tuple((Units(size),) for size in (self.recurrent_projection, self.projection) if size)

    def forward(self, x: Tensor) -> Tensor:
        """Return [r_t, p_t] of all frames (B, T, R + P), for x (B, T, D)."""
        with torch.autocast(x.device.type, enabled=False):  # the product is rounded once, as other weights
            recurrent = self.weight_hh @ self.weight_hr[: self.recurrent_projection]  # (4 · hidden, hidden)
        weights = [self.weight_ih, recurrent, self.bias, torch.zeros_like(self.bias)]
        has_biases, layers, dropout, bidirectional, batch_first = True, 1, 0.0, False, True
        with lstm_autocast(x.device) as precise:
            x = x.float() if precise else x
            start = x.new_zeros(1, len(x), self.hidden)
            cells, _, _ = torch.lstm(
                x, (start, start), weights, has_biases, layers, dropout, self.training, bidirectional, batch_first
            )
        return functional.linear(cells, self.weight_hr)


class BidirectionalRecurrentProjectionLSTM(nn.Module):
    """Bidirectional layer; the backward direction begins at the last real frame of each utterance.

    Args:
        input_dimension: D of the input.
        hidden: Cells of each direction.
        recurrent_projection: R, of each direction.
        projection: P, of each direction, not recurrent.
    """

    def __init__(self, input_dimension: int, hidden: int, recurrent_projection: int, projection: int) -> None:
        super().__init__()
        self.forward_lstm = RecurrentProjectionLSTM(input_dimension, hidden, recurrent_projection, projection)
        self.backward_lstm = RecurrentProjectionLSTM(input_dimension, hidden, recurrent_projection, projection)

    def output_axis(self) -> Axis:
        """Axis of the output: r and p of the forward direction, then of the backward direction."""
        return self.forward_lstm.output_axis() + self.backward_lstm.output_axis()

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return (B, T, 2 * (R + P)) for x (B, T, D)."""
        ahead, back = self.forward_lstm(x), self.backward_lstm(reverse(x, lengths))
        return torch.cat([ahead, reverse(back, lengths)], dim=2)


class RecurrentProjectionEncoder(Encoder):
    """Bidirectional LSTM layers with recurrent and other projections, BLSTMP, of the hybrid [Lim et al. 2019 §2.3].

    The output of the paper's layers has 512 recurrent and 512 non-recurrent dimensions, 1,024 in all. This is the
    output of both directions: each has 256 + 256, as in the BLSTM recipe of Kaldi's chain models (three such layers of
    1,024 cells, `egs/swbd/s5c/local/chain/run_blstm_6h.sh`); the paper names Kaldi, but not its number of cells. So the
    paper's network is hidden=1024, layers=3, recurrent_projection=256, projection=256.

    The recipe also stacks two neighbouring frames on each side, and computes every third frame, from the state three
    frames before: this is context=2 and subsampling=3.

    Args:
        input_dimension: F, dimension of the features.
        hidden: Cells of each direction.
        layers: Number of layers.
        recurrent_projection: R, of each direction.
        projection: P, of each direction; the output has D = 2 * (R + P).
        dropout: After every layer.
        context: Neighbouring frames on each side that are stacked with each input frame of the first layer; beyond the
            utterance they are zeros.
        subsampling: Input frames per output frame, of which the first layer reads the first one, with its neighbours. T
            frames become T / subsampling, rounded up.

    Raises:
        ValueError: A size is too small.
    """

    def __init__(
        self,
        input_dimension: int,
        hidden: int,
        layers: int,
        recurrent_projection: int,
        projection: int,
        dropout: float = 0.0,
        context: int = 0,
        subsampling: int = 1,
    ) -> None:
        if min(hidden, layers, recurrent_projection, subsampling) < 1 or min(projection, context) < 0:
            raise ValueError(
                "hidden, layers, recurrent_projection and subsampling must be at least 1, projection and context at "
                f"least 0, got {hidden=}, {layers=}, {recurrent_projection=}, {subsampling=}, {projection=}, {context=}"
            )
        super().__init__(input_dimension, 2 * (recurrent_projection + projection))
        self.hidden, self.context, self.subsampling = hidden, context, subsampling
        sizes = [(2 * context + 1) * input_dimension] + [self.dimension] * (layers - 1)
        self.layers = nn.ModuleList(
            BidirectionalRecurrentProjectionLSTM(size, hidden, recurrent_projection, projection) for size in sizes
        )
        self.dropout = Dropout(dropout)

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of the layers' inputs: features of neighbouring frames, or the output of the layer below."""
        gates = axis(Fixed(4, "gates"), Units(self.hidden))
        stacked = axis(Fixed(2 * self.context + 1, "frames"), Fixed(self.input_dimension, "features"))
        inputs = [stacked] + [self.output_axis()] * (len(self.layers) - 1)
        names = ("forward_lstm", "backward_lstm")
        return {f"layers.{n}.{name}.weight_ih": (gates, axis_) for n, axis_ in enumerate(inputs) for name in names}

    def output_axis(self) -> Axis:
        """Axis of the output: r and p of the forward direction, then of the backward direction."""
        layer = self.layers[-1]
        assert isinstance(layer, BidirectionalRecurrentProjectionLSTM)
        return layer.output_axis()

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode features x (B, T, F) as (B, T / subsampling, D)."""
        x = stack_neighbours(silence_padding(x, lengths), self.context, self.subsampling)
        lengths = (lengths + self.subsampling - 1) // self.subsampling
        for layer in self.layers:
            x = self.dropout(layer(x, lengths))
        return x, lengths


def stack_neighbours(x: Tensor, context: int, step: int = 1) -> Tensor:
    """Stack every step-th frame of x (B, T, F) with `context` frames on each side: (B, T / step, (2 context + 1) F)."""
    padded = functional.pad(x, (0, 0, context, context))
    return padded.unfold(1, 2 * context + 1, step).transpose(2, 3).flatten(2)  # (B, T', F, frames) -> (B, T', frames F)
