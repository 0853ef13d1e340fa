"""The transducer of torchaudio: layer norms around the joint network and inside the prediction network.

This is the network behind torchaudio's public weights [Shi et al. 2021 for the encoder; torchaudio's
`models/rnnt.py` and `pipelines/rnnt_pipeline.py` for the rest]. `asr import torchaudio` makes a checkpoint of it.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from asr_lightning.losses.transducer import transducer_loss
from asr_lightning.models.rnn_transducer import Joint, PredictionNetwork, Predictor, RNNTransducer, State
from asr_lightning.nn.axes import Axis, Fixed, Units, axis, units
from asr_lightning.nn.dropout import Dropout
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
        """Say that gates are packed: input, forget, cell, output."""
        gates, inner = axis(Fixed(4, "gates"), Units(self.dimension)), units(self.dimension)
        weights = {f"{name}.weight": (gates, inner) for name in ("input", "recurrence")}
        return {**weights, "gate_norm.weight": (gates,), "gate_norm.bias": (gates,)}

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Read x (B, U, D) from a state (B, D) twice; return (B, U, D) and the state behind it."""
        hidden, cell = state
        outputs = []
        with weights_cast_once(x.device):
            for step in self.input(x).unbind(dim=1):
                into, forget, new, out = self.gate_norm(step + self.recurrence(hidden)).chunk(4, dim=1)
                cell = self.cell_norm(forget.sigmoid() * cell + into.sigmoid() * new.tanh())
                hidden = out.sigmoid() * cell.tanh()
                outputs.append(hidden)
        return torch.stack(outputs, dim=1) if outputs else x, (hidden, cell)


class NormalizedLSTMPredictor(Predictor):
    """Remembers all tokens, with layer norms on embeddings, gates and cells.

    Args:
        dimension: D of the embeddings and the output.
        layers: LSTM layers.
        dropout: After every layer.
        epsilon: Of the layer norms in the LSTM.
    """

    def __init__(self, dimension: int = 512, layers: int = 3, dropout: float = 0.3, epsilon: float = 1e-3) -> None:
        super().__init__(dimension)
        self.norm = nn.LayerNorm(dimension)
        self.layers = nn.ModuleList(NormalizedLSTM(dimension, epsilon) for _ in range(layers))
        self.dropout = Dropout(dropout)

    def initial_state(self, batch_size: int, device: torch.device) -> State:
        """Return zeros, (B, D) twice for every layer."""
        return tuple(torch.zeros(batch_size, self.dimension, device=device) for _ in range(2 * len(self.layers)))

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Read embeddings x (B, U, D)."""
        x, after = self.norm(x), []
        for layer, hidden, cell in zip(self.layers, state[::2], state[1::2], strict=True):
            x, behind = layer(x, (hidden, cell))
            x = self.dropout(x)
            after += behind
        return x, tuple(after)


class NormalizedPredictionNetwork(PredictionNetwork):
    """The prediction network with a layer norm on its output."""

    def __init__(self, vocabulary: tuple[str, ...], predictor: Predictor, joint_dimension: int) -> None:
        super().__init__(vocabulary, predictor, joint_dimension)
        self.norm = nn.LayerNorm(joint_dimension)

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Read token ids (B, U), return (B, U, joint_dimension) and the state behind them."""
        predicted, state = super().forward(tokens, state)
        return self.norm(predicted), state


class RectifiedJoint(Joint):
    """Scores every token for a frame and a history: linear(relu(frame + history))."""

    def forward(self, encoded: Tensor, predicted: Tensor) -> Tensor:
        """Return logits (..., V) of projected frames (..., D) and histories (..., D) that broadcast."""
        return self.output(torch.relu(encoded + predicted))


class NormalizedTransducer(RNNTransducer):
    """Encoder, prediction network and joint network as in torchaudio's RNN-T.

    The loss holds the logits of one utterance at a time.

    Args:
        predictor: `NormalizedLSTMPredictor`.
        joint_dimension: Hidden units of the joint network.
        **recognizer: Arguments of `RNNTransducer`, but `transducer_loss`.
    """

    def __init__(self, predictor: Predictor, joint_dimension: int = 1024, **recognizer: Any) -> None:  # noqa: ANN401
        super().__init__(predictor, joint_dimension, **recognizer)
        self.encoder_norm = nn.LayerNorm(joint_dimension)
        self.prediction = NormalizedPredictionNetwork(self.tokenizer.tokens, predictor, joint_dimension)
        self.joint = RectifiedJoint(self.tokenizer.tokens, joint_dimension)

    def project(self, encoded: Tensor) -> Tensor:
        """Return what the joint network adds of frames (..., D): (..., joint_dimension)."""
        return self.encoder_norm(self.encoder_projection(encoded))

    def decoder_loss(self, encoded: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor) -> Tensor:
        """Return the transducer loss of each utterance, (B,)."""
        frames, predicted = self.project(encoded), self.predict(targets)
        losses = [
            checkpoint(
                self._loss_of_one, frames[row : row + 1, : int(length)], predicted[row : row + 1, : int(tokens) + 1],
                targets[row : row + 1, : int(tokens)], use_reentrant=False,
            )
            for row, (length, tokens) in enumerate(zip(lengths.tolist(), target_lengths.tolist(), strict=True))
        ]  # fmt: skip
        return torch.cat(losses) if losses else frames.sum().expand(0)

    def _loss_of_one(self, frames: Tensor, predicted: Tensor, targets: Tensor) -> Tensor:
        """Return the loss (1,) of frames (1, T, D), histories (1, U + 1, D) and targets (1, U)."""
        logits = self.joint(frames.unsqueeze(2), predicted.unsqueeze(1))
        length, tokens = (torch.tensor([x.shape[1]], device=x.device) for x in (frames, targets))
        return transducer_loss(logits, targets, length, tokens, self.tokenizer.blank_id)
