"""What a search asks of a language model."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, device

from asr_lightning.text.tokenizers import Tokenizer

State = tuple[Tensor, ...]  # each with one row per hypothesis first


class LanguageModel(ABC):
    """Base class: says how probable texts are, token by token for fusion, or whole for rescoring.

    It is made by a class path in an experiment, from the path of a file that is only read when it is first used.
    """

    @abstractmethod
    def prepare(self, tokenizer: Tokenizer, device: device) -> None:
        """Read the model, and get ready to score the tokens of a recogniser; called before every batch.

        Raises:
            InputError: The model cannot be read.
        """

    @abstractmethod
    def initial_state(self, batch_size: int) -> State:
        """Return the state before any token.

        Raises:
            InputError: The model's tokens are not the recogniser's, so it can only rescore.
        """

    @abstractmethod
    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Read one token id of each hypothesis (N,), `eos_id` before the first.

        Returns:
            Natural log probabilities (N, V) of the next token, `eos_id` for the end; and the state behind.
        """

    @abstractmethod
    def score(self, texts: Sequence[str]) -> list[float]:
        """Return the natural log probability of each text, its end included."""
