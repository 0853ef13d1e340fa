"""RNN transducer [Graves 2012, "Sequence transduction with recurrent neural networks"; Han et al. 2024]."""

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from asr_lightning.batch import Batch
from asr_lightning.decoding.hypothesis import Hypothesis
from asr_lightning.decoding.transducer import TransducerSearch
from asr_lightning.errors import InputError
from asr_lightning.losses.joint_transducer import joint_transducer_loss
from asr_lightning.losses.transducer import torchaudio_loss
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.nn.axes import Axis, Tokens, axis, units
from asr_lightning.nn.dropout import Dropout
from asr_lightning.nn.recurrent import LSTM, read_on

State = tuple[Tensor, ...]  # each with the batch first


class Predictor(nn.Module, ABC):
    """Base class: reads embeddings of the tokens emitted so far.

    Args:
        dimension: D of the embeddings and of the output.
    """

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.dimension = dimension

    @abstractmethod
    def initial_state(self, batch_size: int, device: torch.device) -> State:
        """Return the state before any token."""

    @abstractmethod
    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Read embeddings x (B, U, D), return (B, U, D) and the state behind them."""


class LSTMPredictor(Predictor):
    """Remembers all tokens.

    Args:
        dimension: D of the embeddings and the output.
        layers: LSTM layers.
        dropout: Of the embeddings and between layers.
    """

    def __init__(self, dimension: int, layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__(dimension)
        self.layers = nn.ModuleList(LSTM(dimension, dimension) for _ in range(layers))
        self.dropout = Dropout(dropout)

    def initial_state(self, batch_size: int, device: torch.device) -> State:
        """Return zeros, (B, D) twice for every layer."""
        return tuple(torch.zeros(batch_size, self.dimension, device=device) for _ in range(2 * len(self.layers)))

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Read embeddings x (B, U, D)."""
        return read_on(self.layers, x, state, self.dropout)


class StatelessPredictor(Predictor):
    """Remembers the last few tokens only [Ghodsi et al. 2020, "RNN-transducer with stateless prediction network"].

    Args:
        dimension: D of the embeddings and the output.
        context: Tokens it sees, the newest included.
        dropout: Of the embeddings.
    """

    def __init__(self, dimension: int, context: int = 2, dropout: float = 0.0) -> None:
        super().__init__(dimension)
        self.context = context
        self.mix = nn.Conv1d(dimension, dimension, kernel_size=context)
        self.dropout = Dropout(dropout)

    def initial_state(self, batch_size: int, device: torch.device) -> State:
        """Return zeros (B, context - 1, D) in the place of embeddings before the first."""
        return (torch.zeros(batch_size, self.context - 1, self.dimension, device=device),)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Read embeddings x (B, U, D)."""
        seen = torch.cat([state[0], x], dim=1)
        mixed = self.mix(self.dropout(seen).transpose(1, 2)).transpose(1, 2)
        return torch.relu(mixed), (seen[:, seen.shape[1] - (self.context - 1) :],)


class PredictionNetwork(nn.Module):
    """Embeds tokens, reads them, and projects what was read for the joint network."""

    def __init__(self, vocabulary: tuple[str, ...], predictor: Predictor, joint_dimension: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.embedding = nn.Embedding(len(vocabulary), predictor.dimension)
        self.predictor = predictor
        self.projection = nn.Linear(predictor.dimension, joint_dimension)

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Say that the embedding has a row per token."""
        return {"embedding.weight": (axis(Tokens(self.vocabulary)), units(self.embedding.embedding_dim))}

    def initial_state(self, batch_size: int, device: torch.device) -> State:
        """Return the state before any token."""
        return self.predictor.initial_state(batch_size, device)

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Read token ids (B, U), return (B, U, joint_dimension) and the state behind them."""
        outputs, state = self.predictor(self.embedding(tokens), state)
        return self.projection(outputs), state


class Joint(nn.Module):
    """Scores every token for a frame and a history: linear(tanh(frame + history))."""

    def __init__(self, vocabulary: tuple[str, ...], dimension: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.output = nn.Linear(dimension, len(vocabulary))

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Say that the output has a row per token."""
        tokens = axis(Tokens(self.vocabulary))
        return {"output.weight": (tokens, units(self.output.in_features)), "output.bias": (tokens,)}

    def forward(self, encoded: Tensor, predicted: Tensor) -> Tensor:
        """Return logits (..., V) of projected frames (..., D) and histories (..., D) that broadcast."""
        return self.output(torch.tanh(encoded + predicted))


class RNNTransducer(Recognizer):
    """Encoder, prediction network and joint network.

    Args:
        predictor: `LSTMPredictor` or `StatelessPredictor`.
        joint_dimension: Hidden units of the joint network.
        search: How to decode; greedily if None.
        transducer_loss: `fused` computes the loss together with the joint network, a block at a time; `torchaudio`
            holds the logits of all frames and tokens, and gives them to torchaudio's kernel.
        **recognizer: Arguments of `Recognizer`.

    Raises:
        InputError: There is no such loss.
    """

    def __init__(
        self,
        predictor: Predictor,
        joint_dimension: int,
        search: TransducerSearch | None = None,
        transducer_loss: Literal["fused", "torchaudio"] = "fused",
        **recognizer: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**recognizer)
        if transducer_loss not in ("fused", "torchaudio"):
            raise InputError(f"expected the transducer_loss to be fused or torchaudio, got {transducer_loss}")
        vocabulary = self.tokenizer.tokens
        self.encoder_projection = nn.Linear(self.encoder.dimension, joint_dimension)
        self.prediction = PredictionNetwork(vocabulary, predictor, joint_dimension)
        self.joint = Joint(vocabulary, joint_dimension)
        self.search = search or TransducerSearch()
        self.transducer_loss = transducer_loss

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Say what the encoder's output means."""
        inner = units(self.encoder_projection.out_features)
        return {"encoder_projection.weight": (inner, self.encoder.output_axis())}

    def decoder_loss(self, encoded: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor) -> Tensor:
        """Return the transducer loss of each utterance, (B,)."""
        start = targets.new_full((len(targets), 1), self.tokenizer.blank_id)
        predicted, _ = self.prediction(
            torch.cat([start, targets], dim=1), self.prediction.initial_state(len(targets), targets.device)
        )  # (B, U + 1, D)
        frames, blank_id = self.encoder_projection(encoded), self.tokenizer.blank_id
        if self.transducer_loss == "torchaudio":
            logits = self.joint(frames.unsqueeze(2), predicted.unsqueeze(1))  # (B, T, U + 1, V)
            return torchaudio_loss(logits, targets, lengths, target_lengths, blank_id)
        output = self.joint.output
        return joint_transducer_loss(
            frames, predicted, output.weight, output.bias, targets, lengths, target_lengths, blank_id
        )

    @torch.no_grad()
    def recognize(self, batch: Batch) -> list[list[Hypothesis]]:
        """Return the hypotheses of each of the B utterances, the best first."""
        encoded, lengths = self(batch.audio, batch.audio_lengths)
        frames = self.encoder_projection(encoded)
        return self.search(frames, lengths, self.prediction, self.joint, self.tokenizer)
