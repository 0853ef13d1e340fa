"""An LSTM with layer norms inside, as torchaudio's public transducers have it."""

import torch
from torch import Tensor, nn

from asr_lightning.nn.axes import Axis, Fixed, Units, axis, units
from asr_lightning.nn.recurrent import weights_cast_once


class NormalizedLSTM(nn.Module):
    """One layer whose gates, all four together, and whose cell are normalized in every step.

    Args:
        dimension: D of input and output.
        epsilon: Of the layer norms.
    """

    def __init__(self, dimension: int, epsilon: float = 1e-3) -> None:
        super().__init__()
        self.dimension = dimension
        self.input = nn.Linear(dimension, 4 * dimension, bias=False)
        self.recurrence = nn.Linear(dimension, 4 * dimension, bias=False)
        self.gate_norm = nn.LayerNorm(4 * dimension, eps=epsilon)
        self.cell_norm = nn.LayerNorm(dimension, eps=epsilon)

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Return the axes: gates are packed as input, forget, cell, output."""
        gates, inner = axis(Fixed(4, "gates"), Units(self.dimension)), units(self.dimension)
        weights = {f"{name}.weight": (gates, inner) for name in ("input", "recurrence")}
        return {**weights, "gate_norm.weight": (gates,), "gate_norm.bias": (gates,)}

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Read x (B, U, D) from a state (B, D) twice; return (B, U, D) and the next state."""
        hidden, cell = state
        outputs = []
        with weights_cast_once(x.device):
            for step in self.input(x).unbind(dim=1):
                entry, forget, content, output = self.gate_norm(step + self.recurrence(hidden)).chunk(4, dim=1)
                cell = self.cell_norm(forget.sigmoid() * cell + entry.sigmoid() * content.tanh())
                hidden = output.sigmoid() * cell.tanh()
                outputs.append(hidden)
        return torch.stack(outputs, dim=1) if outputs else x, (hidden, cell)
