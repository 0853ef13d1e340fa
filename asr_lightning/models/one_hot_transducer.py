"""RNN transducer of the form of SpeechBrain's, whose prediction network reads one-hot vectors."""

from typing import Any

import torch
from torch import Tensor, nn

from asr_lightning.errors import InputError
from asr_lightning.models.rnn_transducer import FreeJointTransducer, Joint, LSTMPredictor, PredictionNetwork
from asr_lightning.nn.axes import Axis, Fixed, Tokens, Units, axis, units
from asr_lightning.nn.emformer import make_activation
from asr_lightning.nn.recurrent import LSTM


class OneHot(nn.Module):
    """One-hot vectors (B, U, V - 1) of token ids (B, U): zeros for the blank.

    Args:
        count: V.
        blank_id: The blank's token id.
    """

    value: Tensor

    def __init__(self, count: int, blank_id: int) -> None:
        super().__init__()
        self.count, self.blank_id = count, blank_id
        self.register_buffer("value", torch.ones(()), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the vectors."""
        ids = torch.arange(self.count - 1, device=tokens.device)
        ids = ids + (ids >= self.blank_id)  # without the blank's
        return (tokens.unsqueeze(2) == ids) * self.value


class OneHotPredictionNetwork(PredictionNetwork):
    """Prediction network whose LSTM reads tokens as one-hot vectors.

    Args:
        vocabulary: The V tokens.
        blank_id: The blank's token id.
        predictor: Its first layer is replaced by one that reads V - 1 values.
        joint_dimension: Hidden units of the joint network.

    Raises:
        InputError: The predictor is no LSTM, or has no layer.
    """

    def __init__(
        self, vocabulary: tuple[str, ...], blank_id: int, predictor: LSTMPredictor, joint_dimension: int
    ) -> None:
        if not isinstance(predictor, LSTMPredictor) or not predictor.layers:
            raise InputError(f"expected an LSTMPredictor with a layer or more, got {predictor}")
        super().__init__(vocabulary, predictor, joint_dimension)
        self.non_blank = tuple(token for number, token in enumerate(vocabulary) if number != blank_id)
        self.embedding = OneHot(len(vocabulary), blank_id)
        predictor.layers[0] = LSTM(len(self.non_blank), predictor.dimension)
        self.projection = nn.Linear(predictor.dimension, joint_dimension, bias=False)

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of the weights that read one-hot vectors, which have a column per token but the blank."""
        gates = axis(Fixed(4, "gates"), Units(self.predictor.dimension))
        return {"predictor.layers.0.weight_ih_l0": (gates, axis(Tokens(self.non_blank)))}


class ActivatedJoint(Joint):
    """Scores every token for a frame and a history: linear(activation(frame + history)), without a bias."""

    def __init__(self, vocabulary: tuple[str, ...], dimension: int, activation: str) -> None:
        super().__init__(vocabulary, dimension)
        self.activation = make_activation(activation)
        self.output = nn.Linear(dimension, len(vocabulary), bias=False)

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of the output, which has a row per token."""
        return {"output.weight": (axis(Tokens(self.vocabulary)), units(self.output.in_features))}

    def forward(self, encoded: Tensor, predicted: Tensor) -> Tensor:
        """Return logits (..., V) of projected frames (..., D) and histories (..., D) that broadcast."""
        return self.output(self.activation(encoded + predicted))


class OneHotTransducer(FreeJointTransducer):
    """Encoder, prediction network and joint network as in SpeechBrain's Conformer transducers, without biases.

    Args:
        predictor: An `LSTMPredictor`, which reads one-hot vectors here.
        joint_dimension: Hidden units of the joint network.
        activation: Of the joint network: `gelu`, `relu` or `silu`.
        **recognizer: Arguments of `RNNTransducer`, but `transducer_loss`.
    """

    def __init__(
        self,
        predictor: LSTMPredictor,
        joint_dimension: int = 640,
        activation: str = "gelu",
        **recognizer: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(predictor, joint_dimension, **recognizer)
        vocabulary = self.tokenizer.tokens
        self.encoder_projection = nn.Linear(self.encoder.dimension, joint_dimension, bias=False)
        self.prediction = OneHotPredictionNetwork(vocabulary, self.tokenizer.blank_id, predictor, joint_dimension)
        self.joint = ActivatedJoint(vocabulary, joint_dimension, activation)
