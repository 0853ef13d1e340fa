"""Language models: n-grams of tokens."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from asr_lightning.decoding.language_model import LanguageModel, State
from asr_lightning.errors import InputError
from asr_lightning.text.arpa import read_arpa
from asr_lightning.text.ngram import ABSENT, SENTENCE_END, SENTENCE_START, UNKNOWN, NGram
from asr_lightning.text.tokenizers import Tokenizer

CACHED_VALUES = 1 << 24  # log probabilities that are kept: 64 MiB

Row = npt.NDArray[np.float32]


class ArpaLanguageModel(LanguageModel):
    """Base class: an n-gram model in an ARPA file, which is read when it is first used.

    Args:
        arpa: Path of the file.
    """

    def __init__(self, arpa: str) -> None:
        self.arpa = arpa
        self._model: NGram | None = None
        self._tokenizer: Tokenizer | None = None
        self._device = torch.device("cpu")

    def _prepared(self) -> tuple[NGram, Tokenizer]:
        assert self._model is not None and self._tokenizer is not None, "prepare comes first"
        return self._model, self._tokenizer


class NGramLanguageModel(ArpaLanguageModel):
    """A model of the recognizer's tokens, in an ARPA file as `asr ngram estimate` makes it.

    A token that the model does not know is as probable as its `<unk>`, and impossible if it has none. The state is the
    context: the model's ids (N, order - 1) of the last tokens, -1 before the first. Distributions are computed on the
    CPU, and kept for contexts that come again.

    Args:
        arpa: Path of the file.
    """

    def __init__(self, arpa: str) -> None:
        super().__init__(arpa)
        self._columns = np.zeros(0, np.int64)  # (V,) the model's token that stands for each of the recognizer's
        self._read_as = torch.zeros(0, dtype=torch.int64)  # (V,) and in the context
        self._rows: dict[tuple[int, ...], Row] = {}  # by context, the least recently used first

    def prepare(self, tokenizer: Tokenizer, device: torch.device) -> None:
        """Read the model, and get ready to score the tokens of a recognizer.

        Raises:
            InputError: The model cannot be read, or is one of other tokens.
        """
        if self._model is None:
            self._model = read_arpa(self.arpa)
        self._device = device
        if tokenizer is not self._tokenizer:
            self._match(self._model, tokenizer)
            self._tokenizer = tokenizer
        self._read_as = self._read_as.to(device)

    def _match(self, model: NGram, tokenizer: Tokenizer) -> None:
        """Find the recognizer's tokens in the model."""
        known = {SENTENCE_START, SENTENCE_END, UNKNOWN, *tokenizer.tokens}
        foreign = [token for token in model.tokens if token not in known]
        if foreign:
            raise InputError(
                f"{self.arpa}: expected a language model of the recognizer's {len(tokenizer)} tokens, found "
                f"{', '.join(map(repr, foreign[:3]))} in it; estimate one with `asr ngram "
                "estimate --units tokens`, or, if these are words, use WordNGramLanguageModel"
            )
        columns = np.array([model.id_of(token) for token in tokenizer.tokens])
        columns[tokenizer.blank_id] = ABSENT
        read_as = torch.from_numpy(columns.copy())
        columns[tokenizer.eos_id], read_as[tokenizer.eos_id] = model.end_id, model.start_id
        self._columns, self._read_as = columns, read_as
        self._rows = {}

    def initial_state(self, batch_size: int) -> State:
        """Return the state before any token: an empty context."""
        size = (batch_size, self._prepared()[0].order - 1)
        return (torch.full(size, ABSENT, dtype=torch.int64, device=self._device),)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Read one token id of each hypothesis (N,), `eos_id` before the first.

        Returns:
            Natural log probabilities (N, V) of the next token, `eos_id` for the end; minus infinity for the blank.
        """
        context = torch.cat([state[0], self._read_as[tokens].unsqueeze(1)], dim=1)[:, 1:]
        rows = [self._row(tuple(ids)) for ids in context.tolist()]
        return torch.from_numpy(np.stack(rows)).to(self._device), (context,)

    def _row(self, context: tuple[int, ...]) -> Row:
        """Return the log probabilities (V,) of the recognizer's tokens in a context of the model's."""
        row = self._rows.pop(context, None)
        if row is None:
            log_probs = self._prepared()[0].distribution(context)
            row = np.where(self._columns == ABSENT, -np.inf, log_probs[self._columns]).astype(np.float32)
            if len(self._rows) >= max(1, CACHED_VALUES // len(row)):
                del self._rows[next(iter(self._rows))]
        self._rows[context] = row
        return row

    def score(self, texts: Sequence[str]) -> list[float]:
        """Return the natural log probability of each text, its end included."""
        model, tokenizer = self._prepared()
        return [model.score([tokenizer.tokens[number] for number in tokenizer.encode(text)]) for text in texts]
