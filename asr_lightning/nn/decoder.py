"""What every attention decoder is."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

State = tuple[Tensor, ...]  # each with one row per hypothesis, or per utterance, first


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

    @abstractmethod
    def attention_weights(self, tokens: Tensor, memory: State) -> Tensor:
        """Return how strongly each frame is attended to when what follows each token is predicted.

        Args:
            tokens: (B, U) token ids.
            memory: Of `remember`.

        Returns:
            (B, U, T), the mean of the heads; of several layers, of the last one.
        """
