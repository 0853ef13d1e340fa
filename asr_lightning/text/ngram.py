"""N-gram language models with back-off."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from asr_lightning.errors import InputError

SENTENCE_START, SENTENCE_END, UNKNOWN = "<s>", "</s>", "<unk>"
ABSENT = -1  # the id of a token that the model does not have, and the index of an n-gram that it does not have
CHUNK = 4096  # sentences that are scored at once

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Level:
    """The G n-grams of one length n: a trie, as every n-gram points to its first n - 1 tokens in the level below.

    Attributes:
        keys: (G,) sorted, each once; the index of the first n - 1 tokens in the level below · V + the id of the last
            token. The keys of the first level are the V ids.
        log_probs: (G,) natural log probabilities of the last token, given those before.
        backoffs: (G,) natural logs of the weights for tokens that follow in no n-gram of the level above; 0 where none
            follows there.
    """

    keys: Integers
    log_probs: Floats
    backoffs: Floats


@dataclass(frozen=True)
class Perplexity:
    """Log probabilities of a text. The ends of sentences are predicted, their starts are not.

    Attributes:
        sentences: How many.
        tokens: How many, without the sentences' ends.
        unknown: How many of them the model does not know (OOV), those that are written `<unk>` among them.
        log_prob: Natural log probability of the known tokens and of the ends; unknown ones before them are `<unk>`.
        unknown_log_prob: The same of the unknown tokens; minus infinity where a model without `<unk>` meets any.
    """

    sentences: int
    tokens: int
    unknown: int
    log_prob: float
    unknown_log_prob: float

    @property
    def with_unknown(self) -> float:
        """Perplexity per token or end, with unknown tokens as probable as `<unk>`: "including OOVs" of KenLM."""
        return math.exp(-(self.log_prob + self.unknown_log_prob) / (self.tokens + self.sentences))

    @property
    def without_unknown(self) -> float:
        """Perplexity per known token or end: "excluding OOVs" of KenLM, `ppl` of SRILM."""
        return math.exp(-self.log_prob / (self.tokens + self.sentences - self.unknown))


class NGram:
    """A back-off model [Katz 1987]: a token that follows its context in no n-gram is predicted from less of it.

        log P(w | c₁ … cₖ) = log_prob(c₁ … cₖ w) if there is this n-gram, else backoff(c₁ … cₖ) + log P(w | c₂ … cₖ)

    A token that is not in the vocabulary is read as `<unk>`. In a model without `<unk>`, a closed one, it is
    impossible, and in a context it hides the tokens before it. `arpa` reads models from files, `smoothing` estimates.

    Args:
        tokens: The V tokens; the index of a token is its id. `<s>` and `</s>` are among them, and `<unk>` may be.
        levels: For the lengths 1 to `order`; the first has all tokens, others may be empty: the back-off weights below
            an empty one count.
    """

    def __init__(self, tokens: Sequence[str], levels: Sequence[Level]) -> None:
        self.tokens = tuple(tokens)
        self.levels = tuple(levels)
        self.order = len(self.levels)
        self.ids = {token: number for number, token in enumerate(self.tokens)}
        self.start_id, self.end_id = self.ids[SENTENCE_START], self.ids[SENTENCE_END]
        self.unk_id = self.ids.get(UNKNOWN, ABSENT)

    def id_of(self, token: str) -> int:
        """Return the id of a token, or else of `<unk>`, or else `ABSENT`."""
        return self.ids.get(token, self.unk_id)

    def log_prob(self, token: str, context: Sequence[str] = ()) -> float:
        """Return the natural log probability of a token.

        Args:
            token: `</s>` for the end of the sentence.
            context: The tokens before it, `<s>` first where they are the whole sentence so far. At most the last
                `order - 1` matter.
        """
        return float(self.log_probs(np.array([[self.id_of(word) for word in (*context, token)]]))[0])

    def score(self, tokens: Sequence[str]) -> float:
        """Return the natural log probability of a whole sentence, its end included."""
        return float(self._predict([tokens])[1].sum())

    def perplexity(self, sentences: Iterable[Sequence[str]]) -> Perplexity:
        """Measure how well sentences are predicted; a few thousand are held at a time.

        Raises:
            InputError: There is none.
        """
        sentences = iter(sentences)
        count = tokens = unknown = 0
        log_prob = unknown_log_prob = 0.0
        while chunk := list(islice(sentences, CHUNK)):
            ids, log_probs = self._predict(chunk)
            oov = ids == self.unk_id
            count += len(chunk)
            tokens += len(ids) - len(chunk)
            unknown += int(oov.sum())
            log_prob += float(log_probs[~oov].sum())
            unknown_log_prob += float(log_probs[oov].sum())
        if not count:
            raise InputError("a perplexity needs sentences, got none")
        return Perplexity(count, tokens, unknown, log_prob, unknown_log_prob)

    def _predict(self, sentences: Sequence[Sequence[str]]) -> tuple[Integers, Floats]:
        """Return the ids of all tokens and ends, one sentence after another, and their log probabilities."""
        flat: list[int] = []
        positions: list[int] = []  # in their sentences
        for sentence in sentences:
            flat += [self.start_id, *map(self.id_of, sentence), self.end_id]
            positions += range(len(sentence) + 2)
        ids, position = np.array(flat), np.array(positions)
        predicted = np.flatnonzero(position)
        rows = np.full((len(predicted), self.order), ABSENT)
        for back in range(self.order):
            within = position[predicted] >= back
            rows[within, self.order - 1 - back] = ids[predicted[within] - back]
        return ids[predicted], self.log_probs(rows)

    def log_probs(self, rows: Integers) -> Floats:
        """Predict the last token of each row from those before it.

        Args:
            rows: (M, any number from 1) ids; `ABSENT` for what the model does not have, or before a sentence.

        Returns:
            (M,) natural log probabilities.
        """
        rows = rows[:, -self.order :]
        token = rows[:, -1]
        result = np.where(token == ABSENT, -np.inf, self.levels[0].log_probs[token])
        for length in range(2, rows.shape[1] + 1):
            below, level = self.levels[length - 2 : length]
            context = self.find(rows[:, -length:-1])
            indices = _children(level, context, token, len(self.tokens))
            backoff = np.where(context == ABSENT, 0.0, below.backoffs[context])
            result = result + backoff
            exists = indices != ABSENT
            result[exists] = level.log_probs[indices[exists]]
        return result

    def find(self, rows: Integers) -> Integers:
        """Return the indices (M,) of n-grams (M, n) in their level, `ABSENT` where the model does not have them."""
        return find(self.levels, rows, len(self.tokens))

    def distribution(self, context: Sequence[int]) -> Floats:
        """Return the natural log probabilities (V,) of all tokens after a context of ids, as of `log_prob`."""
        vocabulary = len(self.tokens)
        row = self.levels[0].log_probs.copy()
        for length in range(1, min(len(context), self.order - 1) + 1):
            index = self._find_single(context[-length:])
            if index == ABSENT:
                continue  # longer ones may exist: pruning can leave such gaps
            row += self.levels[length - 1].backoffs[index]
            level = self.levels[length]
            first, last = level.keys.searchsorted([index * vocabulary, (index + 1) * vocabulary])
            row[level.keys[first:last] - index * vocabulary] = level.log_probs[first:last]
        return row

    def _find_single(self, ids: Sequence[int]) -> int:
        """Return what `find` returns for a single n-gram, ten times as fast."""
        index = 0
        for level, number in zip(self.levels, ids, strict=False):
            key = index * len(self.tokens) + number
            index = int(level.keys.searchsorted(key))
            if number == ABSENT or index == len(level.keys) or level.keys[index] != key:
                return ABSENT
        return index

    def rows(self, length: int) -> Integers:
        """Return the n-grams (G, length) of a level as ids."""
        rows = np.zeros((1, 0), np.int64)
        for level in self.levels[:length]:
            contexts, last = np.divmod(level.keys, len(self.tokens))
            rows = np.concatenate([rows[contexts], last[:, None]], axis=1)
        return rows


def find(levels: Sequence[Level], rows: Integers, vocabulary: int) -> Integers:
    """Return the indices (M,) of n-grams in level n, `ABSENT` for those that do not exist.

    Args:
        levels: For the lengths 1 to n, at least.
        rows: (M, n) ids; `ABSENT` is part of no n-gram.
        vocabulary: V.
    """
    indices = np.zeros(len(rows), np.int64)
    for level, column in zip(levels, rows.T, strict=False):
        indices = _children(level, indices, column, vocabulary)
    return indices


def _children(level: Level, contexts: Integers, tokens: Integers, vocabulary: int) -> Integers:
    """Return the indices (M,) of the n-grams that extend contexts by a token."""
    keys = contexts * vocabulary + tokens  # negative where the context is absent, as no key is
    if not len(level.keys):
        return np.full(len(keys), ABSENT)
    indices = level.keys.searchsorted(keys)
    indices[indices == len(level.keys)] = 0
    exists = (tokens != ABSENT) & (level.keys[indices] == keys)
    return np.where(exists, indices, ABSENT)
