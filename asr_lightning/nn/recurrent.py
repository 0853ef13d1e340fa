"""Recurrent layers that never see padding."""

import torch
from torch import Tensor, nn

from asr_lightning.nn.axes import Axis, Fixed, Units, axis
from asr_lightning.nn.encoder import Encoder
from asr_lightning.nn.subsampling import ConvolutionalSubsampling


class BidirectionalLSTM(nn.Module):
    """One layer read from both ends; the backward direction begins at each utterance's own last frame.

    Rows are reversed within their lengths instead of packed: no length has to come back from the device, and the
    libraries' fastest kernels apply.

    Args:
        input_dimension: D of the input.
        hidden: Units of each direction; the output has twice as many, forward ones first.
    """

    def __init__(self, input_dimension: int, hidden: int) -> None:
        super().__init__()
        self.forward_lstm = nn.LSTM(input_dimension, hidden, batch_first=True)
        self.backward_lstm = nn.LSTM(input_dimension, hidden, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Read x (B, T, D), return (B, T, 2 * hidden)."""
        places = torch.arange(x.shape[1], device=x.device)
        # Padding stays behind the real frames in both orders.
        reverse = torch.where(places < lengths.unsqueeze(1), lengths.unsqueeze(1) - 1 - places, places).unsqueeze(2)
        ahead, _ = self.forward_lstm(x)
        back, _ = self.backward_lstm(torch.take_along_dim(x, reverse, dim=1))
        return torch.cat([ahead, torch.take_along_dim(back, reverse, dim=1)], dim=2)


class LSTMEncoder(Encoder):
    """Convolutional subsampling, then bidirectional LSTM layers with LayerNorm.

    The subsampling's output is as wide as that of the layers, so all layers have one shape.

    Args:
        input_dimension: Dimension of the features.
        hidden: Units of each direction; the output has D = 2 * hidden.
        layers: LSTM layers.
        channels: Of the subsampling's convolutions.
        subsampling: How many times fewer frames come out than go in: 2, 4 or 8.
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
        self.dropout = nn.Dropout(dropout)

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Say that everything between the layers is directions × units."""
        both = self.output_axis()
        gates = axis(Fixed(4, "gates"), Units(self.hidden))
        projection = self.subsampling.parameter_axes()["projection.weight"]
        axes: dict[str, tuple[Axis, ...]] = {
            "subsampling.projection.weight": (both, projection[1]),
            "subsampling.projection.bias": (both,),
        }
        for layer in range(len(self.layers)):
            axes[f"norms.{layer}.weight"] = axes[f"norms.{layer}.bias"] = (both,)
            for direction in ("forward_lstm", "backward_lstm"):
                axes[f"layers.{layer}.{direction}.weight_ih_l0"] = (gates, both)
        return axes

    def output_axis(self) -> Axis:
        """Say that the output is directions × units."""
        return axis(Fixed(2, "directions"), Units(self.hidden))

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode features x (B, T, input_dimension) as (B, T / subsampling, 2 * hidden)."""
        x, lengths = self.subsampling(x, lengths)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = self.dropout(norm(layer(x, lengths)))
        return x, lengths
