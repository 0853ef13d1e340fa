"""RNN transducer [Graves 2012, "Sequence transduction with recurrent neural networks"; Han et al. 2024]."""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from asr_lightning.audio.features import AudioState
from asr_lightning.decoding.hypothesis import Hypothesis
from asr_lightning.decoding.transducer import TransducerSearch
from asr_lightning.decoding.transducer_greedy import GreedyState, continue_greedy_search, greedy_state
from asr_lightning.errors import InputError
from asr_lightning.losses.transducer.joint import ExactLoss, TransducerLoss
from asr_lightning.losses.transducer.logits import TorchaudioLoss, unpadded_transducer_loss
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.nn.axes import Axis, Tokens, axis, units
from asr_lightning.nn.dropout import Dropout
from asr_lightning.nn.recurrent import LSTM, continue_lstm
from asr_lightning.nn.sequences import State
from asr_lightning.nn.streaming import StreamingEncoder


class Predictor(nn.Module, ABC):
    """Base class of networks over the embeddings of the tokens emitted so far.

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
        """Return (B, U, D) of embeddings x (B, U, D), and the state after the last."""


class LSTMPredictor(Predictor):
    """LSTM over all tokens.

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
        """Return zeros (B, D), hidden state and cell of every layer."""
        return tuple(torch.zeros(batch_size, self.dimension, device=device) for _ in range(2 * len(self.layers)))

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Return (B, U, D) of embeddings x (B, U, D), and the next state."""
        return continue_lstm(self.layers, x, state, self.dropout)


class StatelessPredictor(Predictor):
    """Convolution over the last few tokens [Ghodsi et al. 2020, "RNN-transducer with stateless prediction network"].

    Args:
        dimension: D of the embeddings and the output.
        context: Number of tokens, the newest included.
        dropout: Of the embeddings.
    """

    def __init__(self, dimension: int, context: int = 2, dropout: float = 0.0) -> None:
        super().__init__(dimension)
        self.context = context
        self.mix = nn.Conv1d(dimension, dimension, kernel_size=context)
        self.dropout = Dropout(dropout)

    def initial_state(self, batch_size: int, device: torch.device) -> State:
        """Return zeros (B, context - 1, D) as embeddings before the first token."""
        return (torch.zeros(batch_size, self.context - 1, self.dimension, device=device),)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Return (B, U, D) of embeddings x (B, U, D), and the next state."""
        tokens = torch.cat([state[0], x], dim=1)  # (B, context - 1 + U, D)
        mixed = self.mix(self.dropout(tokens).transpose(1, 2)).transpose(1, 2)
        return torch.relu(mixed), (tokens[:, tokens.shape[1] - (self.context - 1) :],)


class PredictionNetwork(nn.Module):
    """Prediction network: embedding, predictor, projection for the joint network."""

    def __init__(self, vocabulary: tuple[str, ...], predictor: Predictor, joint_dimension: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.embedding: nn.Module = nn.Embedding(len(vocabulary), predictor.dimension)
        self.predictor = predictor
        self.projection = nn.Linear(predictor.dimension, joint_dimension)

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of the embedding, which has a row per token."""
        return {"embedding.weight": (axis(Tokens(self.vocabulary)), units(self.predictor.dimension))}

    def initial_state(self, batch_size: int, device: torch.device) -> State:
        """Return the state before any token."""
        return self.predictor.initial_state(batch_size, device)

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Return (B, U, joint_dimension) of token ids (B, U), and the state after the last."""
        outputs, state = self.predictor(self.embedding(tokens), state)
        return self.projection(outputs), state


class Joint(nn.Module):
    """Joint network: scores of all tokens for a frame and a history, linear(tanh(frame + history)).

    Searches call it. Losses compute the same from `output`, without the scores of all frames and histories at once: a
    network with a joint network of another form has a `decoder_loss` of its own too, as `NormalizedTransducer`.
    """

    def __init__(self, vocabulary: tuple[str, ...], dimension: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.output = nn.Linear(dimension, len(vocabulary))

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of the output, which has a row per token."""
        tokens = axis(Tokens(self.vocabulary))
        return {"output.weight": (tokens, units(self.output.in_features)), "output.bias": (tokens,)}

    def forward(self, encoded: Tensor, predicted: Tensor) -> Tensor:
        """Return logits (..., V) of projected frames (..., D) and histories (..., D) that broadcast."""
        return self.output(torch.tanh(encoded + predicted))


class StreamState(NamedTuple):
    """State of a transducer after a piece of the audio of its utterances.

    Attributes:
        audio: Samples that wait for the rest of their frame.
        encoder: State of the encoder.
        search: State of the greedy search.
        frames: Encoded by now.
    """

    audio: AudioState
    encoder: State
    search: GreedyState
    frames: int

    def tensors(self) -> list[Tensor]:
        """Return all tensors of the state."""
        return [self.audio.waiting, *self.encoder, self.search.predicted, *self.search.state]


class RNNTransducer(Recognizer):
    """Encoder, prediction network and joint network.

    Args:
        predictor: `LSTMPredictor` or `StatelessPredictor`.
        joint_dimension: Hidden units of the joint network.
        search: Beam search; greedy if None.
        transducer_loss: `ExactLoss`, `PrunedLoss` or `TorchaudioLoss`; `fused` and `torchaudio` are short for the first
            and the last without arguments.
        **recognizer: Arguments of `Recognizer`.

    Raises:
        InputError: No loss has this name.
    """

    def __init__(
        self,
        predictor: Predictor,
        joint_dimension: int,
        search: TransducerSearch | None = None,
        transducer_loss: TransducerLoss | Literal["fused", "torchaudio"] = "fused",
        **recognizer: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**recognizer)
        if transducer_loss == "fused":
            transducer_loss = ExactLoss()
        elif transducer_loss == "torchaudio":
            transducer_loss = TorchaudioLoss()
        elif not isinstance(transducer_loss, TransducerLoss):
            raise InputError(
                f"expected the transducer_loss to be fused, torchaudio or a TransducerLoss, got {transducer_loss}"
            )
        vocabulary = self.tokenizer.tokens
        self.encoder_projection = nn.Linear(self.encoder.dimension, joint_dimension)
        self.prediction = PredictionNetwork(vocabulary, predictor, joint_dimension)
        self.joint = Joint(vocabulary, joint_dimension)
        self.search = search or TransducerSearch()
        self.transducer_loss = transducer_loss

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of the projection of the encoder's output."""
        inner = units(self.encoder_projection.out_features)
        return {"encoder_projection.weight": (inner, self.encoder.output_axis())}

    def project(self, encoded: Tensor) -> Tensor:
        """Return frames (..., D) projected for the joint network, (..., joint_dimension)."""
        return self.encoder_projection(encoded)

    def predict(self, targets: Tensor) -> Tensor:
        """Return histories of targets (B, U) projected for the joint network, (B, U + 1, joint_dimension)."""
        start = targets.new_full((len(targets), 1), self.tokenizer.blank_id)
        state = self.prediction.initial_state(len(targets), targets.device)
        return self.prediction(torch.cat([start, targets], dim=1), state)[0]

    def decoder_loss(self, encoded: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor) -> Tensor:
        """Return the transducer loss of each utterance, (B,).

        Raises:
            InputError: The joint network is of another form than the losses compute.
        """
        if type(self.joint).forward is not Joint.forward:
            raise InputError(
                f"expected linear(tanh(frame + history)) as joint network, which {type(self.transducer_loss).__name__} "
                f"computes by itself, got {type(self.joint).__name__} with a forward of its own: give the network a "
                "decoder_loss too, as NormalizedTransducer has"
            )
        return self.transducer_loss(
            self.project(encoded), self.predict(targets), self.joint.output,
            targets, lengths, target_lengths, self.tokenizer.blank_id,
        )  # fmt: skip

    @torch.no_grad()
    def decode(self, encoded: Tensor, lengths: Tensor) -> list[list[Hypothesis]]:
        """Return the hypotheses of each encoded utterance (B, T, D), the best first."""
        return self.search(self.project(encoded), lengths, self.prediction, self.joint, self.tokenizer)

    def initial_stream(self, batch_size: int) -> StreamState:
        """Return the state of `stream` before any audio.

        Raises:
            InputError: The encoder reads whole utterances only.
        """
        if not isinstance(self.encoder, StreamingEncoder):
            raise InputError(
                f"{type(self.encoder).__name__} reads whole utterances: expected an encoder that streams, as "
                "StreamingConformer, ChunkedConformer, StreamingLSTMEncoder or Emformer"
            )
        return StreamState(
            self.features.initial_state(batch_size, self.device),
            self.encoder.initial_state(batch_size, self.device),
            greedy_state(batch_size, self.prediction, self.tokenizer.blank_id, self.device),
            0,
        )

    @torch.no_grad()
    def stream(self, audio: Tensor, state: StreamState, last: bool = False) -> tuple[list[Hypothesis], StreamState]:
        """Recognize utterances that come in pieces, by greedy search.

        All pieces together have the tokens that greedy search finds in the whole.

        Args:
            audio: The next samples (B, S), all of them real; S may be 0.
            state: As returned by `initial_stream`, or for the previous piece.
            last: Whether no samples follow.

        Returns:
            What the piece adds: B hypotheses of its tokens alone, with frames from the beginning of the utterance; and
            the state after it.

        Raises:
            InputError: The features need whole utterances.
        """
        assert isinstance(self.encoder, StreamingEncoder)
        features, audio_state = self.features.stream(audio, state.audio, last)
        lengths = torch.full((len(audio),), features.shape[1], device=audio.device)
        encoded, lengths, encoder_state = self.encoder.stream(features.to(self.dtype), lengths, state.encoder, last)
        hypotheses, search_state = continue_greedy_search(
            self.project(encoded), lengths, self.prediction, self.joint, self.tokenizer.blank_id, state.search,
            self.search.max_symbols,
        )  # fmt: skip
        hypotheses = [
            replace(hypothesis, frames=tuple(state.frames + frame for frame in hypothesis.frames))
            for hypothesis in hypotheses
        ]
        return hypotheses, StreamState(audio_state, encoder_state, search_state, state.frames + encoded.shape[1])


class FreeJointTransducer(RNNTransducer):
    """Base class of transducers whose joint network is of another form than the losses compute by themselves.

    The loss holds the logits of one utterance at a time.
    """

    def decoder_loss(self, encoded: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor) -> Tensor:
        """Return the transducer loss of each utterance, (B,)."""
        frames, predicted = self.project(encoded), self.predict(targets)
        sizes = torch.stack((lengths, target_lengths), dim=1).tolist()  # read back once
        losses = [
            checkpoint(
                self._utterance_loss, frames[row : row + 1, :length], predicted[row : row + 1, : tokens + 1],
                targets[row : row + 1, :tokens], use_reentrant=False,
            )
            for row, (length, tokens) in enumerate(sizes)
        ]  # fmt: skip
        return torch.cat(losses) if losses else frames.sum().expand(0)

    def _utterance_loss(self, frames: Tensor, predicted: Tensor, targets: Tensor) -> Tensor:
        """Return the loss (1,) of frames (1, T, D), histories (1, U + 1, D) and targets (1, U)."""
        logits = self.joint(frames.unsqueeze(2), predicted.unsqueeze(1))
        return unpadded_transducer_loss(logits, targets, self.tokenizer.blank_id)
