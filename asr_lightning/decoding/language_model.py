"""The interface of language models in a search."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, device

from asr_lightning.text.tokenizers import Tokenizer

State = tuple[Tensor, ...]  # each with one row per hypothesis first


class LanguageModel(ABC):
    """Base class: log probabilities of texts, token by token for fusion, or of whole texts for rescoring.

    It is made by a class path in an experiment, from the path of a file that is only read when it is first used.
    """

    @abstractmethod
    def prepare(self, tokenizer: Tokenizer, device: device) -> None:
        """Read the model, and get ready to score the tokens of a recognizer; called before every batch.

        Raises:
            InputError: The model cannot be read.
        """

    @abstractmethod
    def initial_state(self, batch_size: int) -> State:
        """Return the state before any token.

        Raises:
            InputError: The model's tokens are not the recognizer's, so it can only rescore.
        """

    @abstractmethod
    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Read one token id of each hypothesis (N,), `eos_id` before the first.

        Returns:
            Natural log probabilities (N, V) of the next token, `eos_id` for the end; and the new state.
        """

    @abstractmethod
    def score(self, texts: Sequence[str]) -> list[float]:
        """Return the natural log probability of each text, its end included."""
