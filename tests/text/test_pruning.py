"""Against the relative entropy between whole distributions, one n-gram taken out at a time."""

import math
from pathlib import Path

import numpy as np
import pytest

from asr_lightning.text.arpa import read_arpa, write_arpa
from asr_lightning.text.ngram import Level, NGram
from asr_lightning.text.pruning import prune, relative_entropies
from asr_lightning.text.smoothing import kneser_ney, witten_bell
from tests.support.small_texts import zipf_text

TEXT = zipf_text(30, 200)
MODELS = [witten_bell(TEXT, 3), kneser_ney(TEXT, 3), witten_bell(TEXT, 2)]
Grams = set[tuple[int, ...]]


def grams(model: NGram, length: int) -> Grams:
    return {tuple(row) for row in model.rows(length).tolist()} if length <= model.order else set()


def contexts(model: NGram) -> list[tuple[int, ...]]:
    return [()] + [gram for length in range(1, model.order) for gram in sorted(grams(model, length))]


def without(model: NGram, length: int, row: int) -> NGram:
    """Take out one of the longest n-grams, and give its context the weight that makes it add up to 1."""
    levels = [Level(level.keys, level.log_probs, level.backoffs.copy()) for level in model.levels[:length]]
    level = levels[-1]
    levels[-1] = Level(*(np.delete(array, row) for array in (level.keys, level.log_probs, level.backoffs)))
    context = int(level.keys[row]) // len(model.tokens)
    rest = levels[-1].keys[levels[-1].keys // len(model.tokens) == context] % len(model.tokens)
    smaller = NGram(model.tokens, levels)
    ids = model.rows(length)[row, :-1].tolist()
    mass = math.fsum(math.exp(smaller.distribution(ids)[token]) for token in rest)
    shorter_mass = math.fsum(math.exp(smaller.distribution(ids[1:])[token]) for token in rest)
    levels[-2].backoffs[context] = math.log((1 - mass) / (1 - shorter_mass)) if len(rest) else 0.0
    return smaller


@pytest.mark.parametrize("model", MODELS, ids=["Witten-Bell", "Kneser-Ney", "bigrams"])
def test_relative_entropies_are_those_of_whole_distributions(model: NGram) -> None:
    for length in range(2, model.order + 1):
        entropies = relative_entropies(model, length)
        whole = NGram(model.tokens, model.levels[:length])
        for row in range(0, len(entropies), 7):
            ids = model.rows(length)[row, :-1].tolist()
            full, reduced = (ngram.distribution(ids) for ngram in (whole, without(model, length, row)))
            finite = np.isfinite(full)
            divergence = float(np.exp(full[finite]) @ (full[finite] - reduced[finite]))
            words = [model.tokens[token_id] for token_id in ids]
            log_prob = sum(
                model.log_prob(word, words[:position])
                for position, word in enumerate(words)
                if (position, word) != (0, "<s>")
            )
            assert entropies[row] == pytest.approx(math.exp(log_prob) * divergence, rel=1e-6, abs=1e-15)


@pytest.mark.parametrize("model", MODELS, ids=["Witten-Bell", "Kneser-Ney", "bigrams"])
@pytest.mark.parametrize("threshold", [1e-6, 1e-4, 1e-3, 1e-2, 10])
def test_what_stays(model: NGram, threshold: float) -> None:
    pruned = prune(model, threshold)
    needed: Grams = set()
    for length in range(model.order, 1, -1):
        pruned_grams = grams(pruned, length)
        rises = np.expm1(relative_entropies(model, length)) >= threshold
        significant = {tuple(row) for row in model.rows(length)[rises].tolist()}
        assert pruned_grams == significant | needed
        needed = {gram[:-1] for gram in pruned_grams}
    assert pruned.order == max([length for length in (1, 2, 3) if grams(pruned, length)])
    for context in contexts(model):
        assert np.exp(pruned.distribution(context)).sum() == pytest.approx(1, abs=1e-9)
    for length, level in enumerate(pruned.levels, 1):
        old = model.levels[length - 1].log_probs[model.find(pruned.rows(length))]
        np.testing.assert_array_equal(level.log_probs, old)


def test_nothing_goes_at_0_and_the_model_is_left_alone() -> None:
    backoffs = [level.backoffs.copy() for level in MODELS[0].levels]
    same = prune(MODELS[0], 0.0)
    prune(MODELS[0], 1e-3)
    for old, level, new in zip(backoffs, MODELS[0].levels, same.levels, strict=True):
        np.testing.assert_array_equal(level.backoffs, old)
        np.testing.assert_array_equal(new.keys, level.keys)
        np.testing.assert_allclose(new.backoffs, old, atol=1e-9)


def test_perplexity_rises_the_more_the_more_goes(tmp_path: Path) -> None:
    held_out = zipf_text(30, 100, seed=1)
    sizes, perplexities = [], []
    for threshold in (0.0, 1e-4, 3e-4, 1e-3, 10.0):
        write_arpa(prune(MODELS[0], threshold), tmp_path / "lm.arpa")
        model = read_arpa(tmp_path / "lm.arpa")
        sizes.append(sum(len(level.keys) for level in model.levels))
        perplexities.append(model.perplexity(held_out).with_unknown)
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)
    assert perplexities[-1] > perplexities[0] and perplexities[1] < 1.01 * perplexities[0]
    unigrams = NGram(MODELS[0].tokens, MODELS[0].levels[:1])
    assert perplexities[-1] == pytest.approx(unigrams.perplexity(held_out).with_unknown, rel=1e-5)
