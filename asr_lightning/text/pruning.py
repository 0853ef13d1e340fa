"""Pruning of n-gram models by relative entropy."""

from itertools import pairwise

import numpy as np

from asr_lightning.text.ngram import Floats, Integers, Level, NGram

LEAST_MASS = 1e-12  # of probability: less than this is rounding


def prune(model: NGram, threshold: float) -> NGram:
    """Remove n-grams whose removal raises the perplexity by less than a relative threshold [Stolcke 1998].

    Each n-gram is judged alone, by the relative entropy between the model with and without it, weighted with the
    probability of its context; single tokens stay, and so do the contexts of longer n-grams that stay.
    The weights for backing off are computed anew. Contexts are weighted with the model's own probabilities of shorter
    n-grams, which after Kneser-Ney smoothing are not their frequencies: such models lose more than others
    [Chelba et al. 2010].

    Args:
        model: Its distributions add up to 1.
        threshold: Relative rise of perplexity, such as 1e-8: what SRILM calls `-prune`. 0 leaves all n-grams.

    Returns:
        A model of the same order, or of a lower one if none of the longest n-grams stays.
    """
    levels = list(model.levels)
    for length in range(model.order, 1, -1):
        level = levels[length - 1]
        stays = np.expm1(relative_entropies(model, length)) >= threshold
        if length < len(levels):
            stays[levels[length].keys // len(model.tokens)] = True
        levels[length - 1] = Level(level.keys[stays], level.log_probs[stays], level.backoffs[stays])
        if length < len(levels):
            levels[length] = _renumber_contexts(levels[length], stays.cumsum() - 1, len(model.tokens))
        if not stays.any():
            levels.pop()
    return _normalized(NGram(model.tokens, levels))


def relative_entropies(model: NGram, length: int) -> Floats:
    """Return the relative entropy (G,), in nats, between a model and the same without one n-gram [Stolcke 1998, eq. 3].

    Args:
        model: Its distributions add up to 1.
        length: Of the G n-grams, 2 or more.
    """
    rows = model.rows(length)
    longer, shorter = np.exp(model.levels[length - 1].log_probs), np.exp(model.log_probs(rows[:, 1:]))
    contexts = model.levels[length - 1].keys // len(model.tokens)
    rest, shorter_rest = _remaining_mass(longer, shorter, contexts, len(model.levels[length - 2].keys))
    with np.errstate(divide="ignore", invalid="ignore"):
        log_backoffs = np.log(rest / shorter_rest)
        new_log_backoffs = np.log((rest[contexts] + longer) / (shorter_rest[contexts] + shorter))
        direct_loss = longer * (np.log(longer) - np.log(shorter) - new_log_backoffs)
        backoff_loss = rest[contexts] * (log_backoffs[contexts] - new_log_backoffs)
    direct_loss, backoff_loss = (
        np.where(mass > LEAST_MASS, values, 0.0)
        for mass, values in ((longer, direct_loss), (rest[contexts], backoff_loss))
    )
    return np.maximum(_context_probs(model, length - 1)[contexts] * (direct_loss + backoff_loss), 0)


def _context_probs(model: NGram, length: int) -> Floats:
    """Return the probabilities (C,) of the n-grams of a length; a start of a sentence is certain."""
    rows = model.rows(length)
    first = np.where(rows[:, 0] == model.start_id, 0.0, model.log_probs(rows[:, :1]))
    return np.exp(first + sum(model.log_probs(rows[:, :end]) for end in range(2, length + 1)))


def _remaining_mass(longer: Floats, shorter: Floats, contexts: Integers, size: int) -> tuple[Floats, Floats]:
    """Return the probability mass (C,) left for other tokens in each context, and that of the shorter context."""
    rest, shorter_rest = (1 - np.bincount(contexts, probs, size) for probs in (longer, shorter))
    return np.maximum(rest, 0), np.maximum(shorter_rest, LEAST_MASS)


def _renumber_contexts(level: Level, renumbered: Integers, vocabulary: int) -> Level:
    """Return a level with renumbered contexts."""
    contexts, tokens = np.divmod(level.keys, vocabulary)
    return Level(renumbered[contexts] * vocabulary + tokens, level.log_probs, level.backoffs)


def _normalized(model: NGram) -> NGram:
    """Return a model whose weights for backing off make all distributions add up to 1."""
    levels = [Level(level.keys, level.log_probs, np.zeros(len(level.keys))) for level in model.levels]
    model = NGram(model.tokens, levels)
    for length, (below, level) in enumerate(pairwise(levels), 2):  # short contexts first: longer ones need them
        contexts = level.keys // len(model.tokens)
        shorter = np.exp(model.log_probs(model.rows(length)[:, 1:]))
        rest, shorter_rest = _remaining_mass(np.exp(level.log_probs), shorter, contexts, len(below.keys))
        with np.errstate(divide="ignore"):
            below.backoffs[:] = np.where(np.isin(np.arange(len(rest)), contexts), np.log(rest / shorter_rest), 0.0)
    return model
