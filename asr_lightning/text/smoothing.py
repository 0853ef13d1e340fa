"""Estimation of n-gram models: Kneser-Ney and Witten-Bell smoothing, interpolated.

Conventions are those of KenLM. A sentence is `<s>`, its tokens, `</s>`; `<s>` is context only, its probability is 0.
Single tokens are interpolated with a uniform distribution over the whole vocabulary, `</s>` and `<unk>` included;
tokens that are not in the texts, as `<unk>` itself, get nothing else.
Counting takes about 100 bytes of memory for each token of the text.
"""

import logging
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from asr_lightning.errors import InputError
from asr_lightning.text.ngram import ABSENT, SENTENCE_END, SENTENCE_START, UNKNOWN, Floats, Integers, Level, NGram

DISCOUNTS = (0.5, 1.0, 1.5)  # for counts of 1, 2 and 3 or more, where they cannot be estimated

_logger = logging.getLogger(__name__)


def kneser_ney(sentences: Iterable[Sequence[str]], order: int, vocabulary: Iterable[str] | None = None) -> NGram:
    """Estimate by interpolated modified Kneser-Ney smoothing [Chen and Goodman 1998, §3; Heafield et al. 2013, §3].

    N-grams below the highest order count by the number of different tokens before them, except those that begin with
    `<s>`, before which there is none. Each order has three discounts. Where counts of 1, 2, 3 and 4 are not all found,
    or a discount would not be above 0, as in tiny texts and in small closed vocabularies, the discounts of that order
    are `DISCOUNTS`; a line in the log says so.

    Args:
        sentences: Of tokens; read once.
        order: Tokens in the longest n-grams; 3 for trigrams.
        vocabulary: The tokens that the model knows; others are read as `<unk>`. None: all in the sentences.

    Raises:
        InputError: There are no sentences or none is long enough, or a token cannot be one.
    """
    tokens, grams = _count(sentences, order, vocabulary)
    shares = []
    for length, level in enumerate(grams, 1):
        counts = level.counts
        if length < order:
            continuations = np.bincount(grams[length].suffixes, minlength=len(counts))
            counts = np.where(level.starts, counts, continuations)
        amounts, estimated = discounts(counts)
        if not estimated:
            _logger.warning(
                "%d-grams: too few counts of 1 to 4 to estimate discounts from; they are %g, %g and %g",
                length,
                *amounts,
            )
        discount = np.array([0.0, *amounts])[np.minimum(counts, 3)]
        totals = _sum(counts, level)
        share = (counts - discount) / np.maximum(totals, 1)[level.contexts]
        shares.append((share, _sum(discount, level) / np.maximum(totals, 1)))
    return _interpolate(tokens, grams, shares)


def discounts(counts: Integers) -> tuple[tuple[float, float, float], bool]:
    """Return the discounts of n-grams that occur once, twice, and more often [Chen and Goodman 1998, eq. 17].

    Args:
        counts: (G,) of the n-grams of one length.

    Returns:
        The three, and whether they could be estimated; else they are `DISCOUNTS`.
    """
    frequencies = np.bincount(counts, minlength=5)[1:5].tolist()
    if all(frequencies):
        scale = frequencies[0] / (frequencies[0] + 2 * frequencies[1])
        first, second, third = (k - (k + 1) * scale * frequencies[k] / frequencies[k - 1] for k in (1, 2, 3))
        if 0 < first and 0 < second and 0 < third:
            return (first, second, third), True
    return DISCOUNTS, False


def witten_bell(sentences: Iterable[Sequence[str]], order: int, vocabulary: Iterable[str] | None = None) -> NGram:
    """Estimate by interpolated Witten-Bell smoothing [Chen and Goodman 1998, §2.4; Witten and Bell 1991, method C].

    A context with T different tokens after it leaves to shorter contexts the share of T more tokens.
    Counts of counts play no part, which suits tiny texts and small closed vocabularies.

    Args:
        sentences: As of `kneser_ney`.
        order: As of `kneser_ney`.
        vocabulary: As of `kneser_ney`.

    Raises:
        InputError: As of `kneser_ney`.
    """
    tokens, grams = _count(sentences, order, vocabulary)
    shares = []
    for level in grams:
        distinct = _sum(level.counts > 0, level)
        totals = np.maximum(_sum(level.counts, level) + distinct, 1)
        shares.append((level.counts / totals[level.contexts], distinct / totals))
    return _interpolate(tokens, grams, shares)


@dataclass
class _Grams:
    """The G n-grams of one length in a text; C is the number of those one shorter, which are their contexts.

    Attributes:
        keys: (G,) as of `Level`.
        counts: (G,) number of occurrences; 0 for tokens that are never predicted.
        contexts: (G,) index of the first n - 1 tokens in the level below.
        suffixes: (G,) index of the last n - 1 tokens in the level below.
        starts: (G,) whether the first token is `<s>`.
        size: C.
    """

    keys: Integers
    counts: Integers
    contexts: Integers
    suffixes: Integers
    starts: np.ndarray
    size: int


def _sum(values: np.ndarray, grams: _Grams) -> Floats:
    """Add up values (G,) by contexts, (C,)."""
    return np.bincount(grams.contexts, values, grams.size).astype(np.float64)


def _interpolate(tokens: Sequence[str], grams: Sequence[_Grams], shares: Sequence[tuple[Floats, Floats]]) -> NGram:
    """Make a model.

    Args:
        tokens: The vocabulary.
        grams: Of the lengths from 1.
        shares: For each length, the discounted share of n-grams (G,), and the rest in their contexts (C,).
    """
    probs = np.array([1 / (len(tokens) - 1)])  # no `<s>`
    levels: list[Level] = []
    for level, (share, rest) in zip(grams, shares, strict=True):
        with np.errstate(divide="ignore"):
            if levels:
                levels[-1].backoffs[:] = np.log(np.where(_sum(level.counts, level) > 0, rest, 1.0))
            probs = share + rest[level.contexts] * probs[level.suffixes]
            if not levels:
                probs[level.starts] = 0.0
            levels.append(Level(level.keys, np.log(probs), np.zeros(len(probs))))
    return NGram(tokens, levels)


class _Vocabulary(dict[str, int]):
    """Token ids in the order of appearance; unknown tokens of a closed vocabulary are `<unk>`."""

    def __init__(self, vocabulary: Iterable[str] | None) -> None:
        self.tokens = [UNKNOWN, SENTENCE_START, SENTENCE_END]
        self.open = True
        self.sentence = 0  # number of the one that is being read
        self[UNKNOWN] = 0
        if vocabulary is not None:
            for token in vocabulary:
                self[token]
            self.open = False

    def __missing__(self, token: str) -> int:
        if token in (SENTENCE_START, SENTENCE_END) or token.encode().split() != [token.encode()]:
            raise InputError(
                f"sentence {self.sentence}: expected tokens without white space that are not {SENTENCE_START} or "
                f"{SENTENCE_END}, found {token!r}; take it out of the text"
            )
        self[token] = len(self.tokens) if self.open else 0
        if self.open:
            self.tokens.append(token)
        return self[token]


def _read(sentences: Iterable[Sequence[str]], vocabulary: Iterable[str] | None) -> tuple[list[str], Integers]:
    """Return the vocabulary and all sentences in a row, as ids, with `<s>` and `</s>`."""
    token_ids = _Vocabulary(vocabulary)
    start, end = token_ids.tokens.index(SENTENCE_START), token_ids.tokens.index(SENTENCE_END)
    ids = array("i")
    for sentence in sentences:
        token_ids.sentence += 1
        ids.append(start)
        ids.extend(map(token_ids.__getitem__, sentence))
        ids.append(end)
    return token_ids.tokens, np.array(ids, np.int64)


def _count(
    sentences: Iterable[Sequence[str]], order: int, vocabulary: Iterable[str] | None
) -> tuple[list[str], list[_Grams]]:
    """Return the vocabulary and its n-grams of the lengths 1 to `order`."""
    if order < 1:
        raise InputError(f"expected an order of 1 or more, got {order}")
    tokens, text = _read(sentences, vocabulary)
    if not len(text):
        raise InputError("expected sentences to estimate a language model from, found none")
    start = tokens.index(SENTENCE_START)
    token_ids = np.arange(len(tokens))
    counts = np.bincount(text, minlength=len(tokens))
    counts[start] = 0
    zeros = np.zeros_like(token_ids)
    grams = [_Grams(token_ids, counts, zeros, zeros, token_ids == start, 1)]
    indices = text  # of the n-gram that ends here, in its level
    for length in range(2, order + 1):
        ends = np.flatnonzero((indices[:-1] != ABSENT) & (text[1:] != start)) + 1
        if not len(ends):
            raise InputError(
                f"expected a sentence of {order - 1} or more tokens for an order of {order}, the longest has "
                f"{length - 3}; give a smaller order"
            )
        keys, first, inverse, counts = np.unique(
            indices[ends - 1] * len(tokens) + text[ends], return_index=True, return_inverse=True, return_counts=True
        )
        first = ends[first]
        starts = text[first - length + 1] == start
        grams.append(_Grams(keys, counts, keys // len(tokens), indices[first], starts, len(grams[-1].keys)))
        indices = np.full(len(text), ABSENT)
        indices[ends] = inverse
    return tokens, grams
