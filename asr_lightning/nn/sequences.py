"""Sequences of a batch: masks of their padding, and the base classes of encoders and attention decoders."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from asr_lightning.nn.axes import Axis

State = tuple[Tensor, ...]  # each with one row per hypothesis, or per utterance, first


def real_frames(lengths: Tensor, size: int) -> Tensor:
    """True (B, size) where a frame is real, False where it is padding, of rows of the given lengths (B,)."""
    return torch.arange(size, device=lengths.device) < lengths.unsqueeze(1)


def visible_frames(lengths: Tensor, size: int) -> Tensor:
    """Return where attention can look in rows of the given lengths (B,), (B, size): at their real frames.

    A row without any frame would leave nothing to normalise: it sees its first, which is padding.
    """
    return real_frames(lengths.clamp(min=1), size)


def silence_padding(x: Tensor, lengths: Tensor) -> Tensor:
    """Set the padding of x (B, T, ...) to zero."""
    real = real_frames(lengths, x.shape[1])
    return x.masked_fill(~real.view(*real.shape, *[1] * (x.dim() - 2)), 0.0)


class Encoder(nn.Module, ABC):
    """Base class: `(features (B, T, F), lengths (B,)) -> (encoded (B, T', D), lengths (B,))`.

    Args:
        input_dimension: F, dimension of the features it reads.
        dimension: D of its output.
    """

    def __init__(self, input_dimension: int, dimension: int) -> None:
        super().__init__()
        self.input_dimension = input_dimension
        self.dimension = dimension

    @abstractmethod
    def output_axis(self) -> Axis:
        """Say what the output's dimensions mean."""

    @abstractmethod
    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode features x (B, T, F) of the given lengths (B,)."""


class Decoder(nn.Module, ABC):
    """Base class: predicts every token of a transcript from those before it and from an encoded utterance.

    What belongs to the utterances (`memory`, B rows) is computed once; what belongs to hypotheses (`state`, N = B · K
    rows, those of an utterance side by side) changes with every token. `eos_id` stands before the first token.

    Args:
        vocabulary: The V tokens.
    """

    def __init__(self, vocabulary: tuple[str, ...]) -> None:
        super().__init__()
        self.vocabulary = vocabulary

    @abstractmethod
    def remember(self, encoded: Tensor, lengths: Tensor) -> State:
        """Return what every step reads of encoded utterances (B, T, D) of the given lengths (B,)."""

    @abstractmethod
    def initial_state(self, memory: State) -> State:
        """Return the state before any token, one row per utterance."""

    @abstractmethod
    def step(self, tokens: Tensor, state: State, memory: State) -> tuple[Tensor, State]:
        """Read one token id of each hypothesis (N,), return logits of the next (N, V) and the state behind it."""

    @abstractmethod
    def forward(self, tokens: Tensor, memory: State) -> Tensor:
        """Read token ids (B, U), return logits (B, U, V) of what follows each of them."""
