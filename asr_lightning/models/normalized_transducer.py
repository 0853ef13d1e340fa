"""RNN transducer of the form of torchaudio's, with layer norms and a rectified joint network."""

from typing import Any

import torch
from torch import Tensor, nn

from asr_lightning.models.rnn_transducer import FreeJointTransducer, Joint, PredictionNetwork, Predictor
from asr_lightning.nn.dropout import Dropout
from asr_lightning.nn.normalized_lstm import NormalizedLSTM
from asr_lightning.nn.sequences import State


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
        x, next_state = self.norm(x), []
        for layer, hidden, cell in zip(self.layers, state[::2], state[1::2], strict=True):
            x, layer_state = layer(x, (hidden, cell))
            x = self.dropout(x)
            next_state += layer_state
        return x, tuple(next_state)


class NormalizedPredictionNetwork(PredictionNetwork):
    """The prediction network with a layer norm on its output."""

    def __init__(self, vocabulary: tuple[str, ...], predictor: Predictor, joint_dimension: int) -> None:
        super().__init__(vocabulary, predictor, joint_dimension)
        self.norm = nn.LayerNorm(joint_dimension)

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Read token ids (B, U), return (B, U, joint_dimension) and the state after them."""
        predicted, state = super().forward(tokens, state)
        return self.norm(predicted), state


class RectifiedJoint(Joint):
    """Scores every token for a frame and a history: linear(relu(frame + history))."""

    def forward(self, encoded: Tensor, predicted: Tensor) -> Tensor:
        """Return logits (..., V) of projected frames (..., D) and histories (..., D) that broadcast."""
        return self.output(torch.relu(encoded + predicted))


class NormalizedTransducer(FreeJointTransducer):
    """Encoder, prediction network and joint network as in torchaudio's RNN-T.

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
        """Return frames (..., D) projected for the joint network, (..., joint_dimension)."""
        return self.encoder_norm(self.encoder_projection(encoded))
