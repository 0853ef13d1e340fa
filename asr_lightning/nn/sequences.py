"""Masks of padding, and the base classes of encoders and attention decoders."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from asr_lightning.nn.axes import Axis

State = tuple[Tensor, ...]  # each with one row per hypothesis, or per utterance, first


def real_frames(lengths: Tensor, size: int) -> Tensor:
    """Return a mask (B, size), True for real frames and False for padding, of rows of the given lengths (B,)."""
    return torch.arange(size, device=lengths.device) < lengths.unsqueeze(1)


def visible_frames(lengths: Tensor, size: int) -> Tensor:
    """Return the attention mask (B, size) of rows of the given lengths (B,): True for real frames.

    A row without frames attends to its first, which is padding, since the softmax needs at least one.
    """
    return real_frames(lengths.clamp(min=1), size)


def silence_padding(x: Tensor, lengths: Tensor) -> Tensor:
    """Set the padding of x (B, T, ...) to zero."""
    mask = real_frames(lengths, x.shape[1])
    return x.masked_fill(~mask.view(*mask.shape, *[1] * (x.dim() - 2)), 0.0)


class Encoder(nn.Module, ABC):
    """Base class: `(features (B, T, F), lengths (B,)) -> (encoded (B, T', D), lengths (B,))`.

    Args:
        input_dimension: F, dimension of the features.
        dimension: D of its output.
    """

    def __init__(self, input_dimension: int, dimension: int) -> None:
        super().__init__()
        self.input_dimension = input_dimension
        self.dimension = dimension

    @abstractmethod
    def output_axis(self) -> Axis:
        """Return the axis of the output."""

    @abstractmethod
    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode features x (B, T, F) of the given lengths (B,)."""


class AttentionDecoder(nn.Module, ABC):
    """Base class: predicts every token of a transcript from the tokens before it and from an encoded utterance.

    The `memory` of the utterances (B rows) is computed once; the `state` of the hypotheses (N = B · K rows, those of an
    utterance adjacent) changes with every token. `eos_id` stands before the first token.

    Args:
        vocabulary: The V tokens.
    """

    def __init__(self, vocabulary: tuple[str, ...]) -> None:
        super().__init__()
        self.vocabulary = vocabulary

    @abstractmethod
    def remember(self, encoded: Tensor, lengths: Tensor) -> State:
        """Return the memory of encoded utterances (B, T, D) of the given lengths (B,), which every step reads."""

    @abstractmethod
    def initial_state(self, memory: State) -> State:
        """Return the state before any token, one row per utterance."""

    @abstractmethod
    def step(self, tokens: Tensor, state: State, memory: State) -> tuple[Tensor, State]:
        """Return logits (N, V) of the token after the last token id of each hypothesis (N,), and the next state."""

    @abstractmethod
    def forward(self, tokens: Tensor, memory: State) -> Tensor:
        """Return logits (B, U, V) of the token after each of the token ids (B, U)."""

    @abstractmethod
    def attention_weights(self, tokens: Tensor, memory: State) -> Tensor:
        """Return the attention weights of frames for the prediction of the token after each token.

        Args:
            tokens: (B, U) token ids.
            memory: Of `remember`.

        Returns:
            (B, U, T), the mean of the heads; of several layers, of the last one.
        """
