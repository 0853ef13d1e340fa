"""Language models: n-grams of words."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from asr_lightning.decoding.language_model import State
from asr_lightning.decoding.ngram import ArpaLanguageModel
from asr_lightning.errors import InputError
from asr_lightning.text.arpa import read_arpa
from asr_lightning.text.ngram import ABSENT, SENTENCE_END, SENTENCE_START, UNKNOWN
from asr_lightning.text.tokenizers import Tokenizer

KEPT_CONTEXTS = 1 << 16  # that are known to the next batch; some 40 MiB

Context = tuple[tuple[int, ...], tuple[int, ...]]  # the model's ids of the last words, and tokens of an unfinished one


class WordNGramLanguageModel(ArpaLanguageModel):
    """A word n-gram model in an ARPA file, as `asr ngram estimate` makes it.

    In the search a word counts when it is finished, by a token that begins the next or by the end; until then every
    token is certain. A word that the model does not know is as probable as its `<unk>`, and impossible if it has none.
    The state is the index (N,) of each hypothesis in a list of contexts, which begins anew with a batch where it has
    become long.

    Args:
        arpa: Path of the file.
    """

    def __init__(self, arpa: str) -> None:
        super().__init__(arpa)
        self._starts_word = np.zeros(0, dtype=bool)  # (V,) whether a token begins a word
        self._forget()

    def prepare(self, tokenizer: Tokenizer, device: torch.device) -> None:
        """Read the model, and find which of a recognizer's tokens begin a word.

        Raises:
            InputError: The model cannot be read, is one of the recognizer's tokens, or has words that these cannot
                write, as of another case.
        """
        if self._model is None:
            self._model = read_arpa(self.arpa)
        self._device = device
        if tokenizer is not self._tokenizer:
            written = {token: tokenizer.decode([number]) for number, token in enumerate(tokenizer.tokens)}
            special = (UNKNOWN, SENTENCE_START, SENTENCE_END)
            pieces = [
                token for token in self._model.tokens if token not in special and written.get(token, token) != token
            ]
            if pieces:
                raise InputError(
                    f"{self.arpa}: expected a language model of words, found {', '.join(map(repr, pieces[:3]))} in it, "
                    "as in one of the recognizer's tokens; if it is one, use NGramLanguageModel"
                )
            self._check_words([word for word in self._model.tokens if word not in special], tokenizer)
            self._starts_word = beginnings(tokenizer)
            self._tokenizer = tokenizer
            self._forget()

    def _check_words(self, words: Sequence[str], tokenizer: Tokenizer) -> None:
        """Check that the recognizer's tokens can write at least some of a thousand words as the model has them."""
        sample = words[:: max(1, len(words) // 1000)]
        if sample and not any(tokenizer.decode(tokenizer.encode(word)) == word for word in sample):
            written = tokenizer.decode(tokenizer.encode(sample[0]))
            raise InputError(
                f"{self.arpa}: expected words that the recognizer's tokens can write, found {sample[0]!r}, written "
                f"{written!r}, and no other: each would be unknown; estimate the model from texts in the recognizer's "
                "case and letters"
            )

    def _forget(self) -> None:
        """Forget all contexts."""
        self._contexts: list[Context] = []
        self._histories: list[tuple[int, ...]] = []  # the words of each context after its unfinished one
        self._context_numbers: dict[Context, int] = {}
        self._following: dict[tuple[int, int], int] = {}  # index of the context after another one and a token
        self._ends = np.zeros((0, 2), dtype=np.float32)  # log probability of the unfinished word, without and with </s>
        self._cached_log_probs: dict[tuple[int, ...], float] = {}  # log probabilities by the model's ids

    def initial_state(self, batch_size: int) -> State:
        """Return the state before any token."""
        model, _ = self._prepared()
        if not 0 < len(self._contexts) <= KEPT_CONTEXTS:
            self._forget()
            self._index(((model.start_id,)[: model.order - 1], ()))
        return (torch.zeros(batch_size, dtype=torch.int64, device=self._device),)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Read one token id of each hypothesis (N,), `eos_id` before the first.

        Returns:
            Natural log probabilities (N, V): of the finished word for tokens that begin another, and with the end of
            the sentence for `eos_id`; 0 for others, and minus infinity for the blank, unless it is the end.
        """
        _, tokenizer = self._prepared()
        steps = list(zip(state[0].tolist(), tokens.tolist(), strict=True))
        indices = [self._following[step] if step in self._following else self._read(*step) for step in steps]
        ends = self._ends[indices]  # (N, 2)
        rows = np.where(self._starts_word, ends[:, :1], np.float32(0.0))
        rows[:, tokenizer.blank_id] = -np.inf
        rows[:, tokenizer.eos_id] = ends[:, 1]  # may be the blank
        return torch.from_numpy(rows).to(self._device), (torch.tensor(indices, device=self._device),)

    def _read(self, index: int, token: int) -> int:
        """Return the index of the context after another one and a token."""
        words, word = self._contexts[index]
        if token == self._prepared()[1].eos_id:
            after = index
        elif self._starts_word[token]:
            after = self._index((self._histories[index], (token,)))
        else:
            after = self._index((words, (*word, token)))
        self._following[index, token] = after
        return after

    def _index(self, context: Context) -> int:
        """Return the index of a context, which is computed where it is new."""
        index = self._context_numbers.setdefault(context, len(self._contexts))
        if index == len(self._contexts):
            history, log_prob = self._finish(*context)
            self._contexts.append(context)
            self._histories.append(history)
            if index == len(self._ends):
                self._ends = np.resize(self._ends, (max(64, 2 * index), 2))  # doubled, so that growing costs little
            self._ends[index] = log_prob, log_prob + self._log_prob(history, self._prepared()[0].end_id)
        return index

    def _finish(self, words: tuple[int, ...], word: tuple[int, ...]) -> tuple[tuple[int, ...], float]:
        """Return the context after a word, and the word's log probability."""
        model, tokenizer = self._prepared()
        text = tokenizer.decode(word)
        if not text:
            return words, 0.0
        word_id = model.id_of(text)
        return (*words, word_id)[max(0, len(words) + 2 - model.order) :], self._log_prob(words, word_id)

    def _log_prob(self, words: tuple[int, ...], word_id: int) -> float:
        if word_id == ABSENT:
            return -np.inf
        key = (*words, word_id)
        if key not in self._cached_log_probs:
            self._cached_log_probs[key] = float(self._prepared()[0].log_probs(np.array([key]))[0])
        return self._cached_log_probs[key]

    def score(self, texts: Sequence[str]) -> list[float]:
        """Return the natural log probability of each text, its end included."""
        return [self._prepared()[0].score(text.split()) for text in texts]


def beginnings(tokenizer: Tokenizer) -> np.ndarray:
    """Return which tokens begin a word, (V,): those that part the text before them from the text after."""
    inner = next(
        (n for n in range(len(tokenizer)) if n != tokenizer.unk_id and len(tokenizer.decode([n, n]).split()) == 1
         and len(tokenizer.decode([n, n])) > len(tokenizer.decode([n]))),
        None,
    )  # fmt: skip
    if inner is None:
        raise InputError(
            "a language model of words needs tokens of which words are made, and these are all whole words"
        )
    return np.array([" " in tokenizer.decode([inner, number, inner]) for number in range(len(tokenizer))])
