from collections.abc import Callable
from itertools import product

import kaldifst
import numpy as np
import pytest

from asr_lightning.errors import InputError
from asr_lightning.hmm.graph import SELF_LOOP_SCALE, decoding_graph
from asr_lightning.hmm.model import STATES, HiddenMarkovModel
from asr_lightning.hmm.search import FoundSentence, GraphSearch, by_transition
from asr_lightning.text.ngram import NGram
from asr_lightning.text.smoothing import kneser_ney
from tests.support.small_models import (
    LEXICON,
    SIL,
    TEXT,
    A,
    B,
    S,
    best_score,
    durations,
    monophone,
    parses,
    tied,
    transition_ids,
    transition_log_probs,
)

PAUSE = np.log(0.5)


@pytest.fixture(scope="module")
def ngram() -> NGram:
    return kneser_ney([text.split() for text in TEXT], 2)


def best_of_all(model: HiddenMarkovModel, ngram: NGram, scores: np.ndarray) -> FoundSentence:
    """The best of all state paths of all sentences."""
    log_probs = SELF_LOOP_SCALE * transition_log_probs(model)
    best = FoundSentence((), -np.inf)
    for phones in (
        sequence for length in range(1, len(scores) // 3 + 1) for sequence in product((SIL, A, B, S), repeat=length)
    ):
        for words in parses(LEXICON, tuple(model.phones[phone - 1] for phone in phones)):
            weight = best_score(ngram, words) + (len(words) + 1) * PAUSE if "SAY" not in words else -np.inf
            for lengths in durations(len(scores), STATES * len(phones)) if weight > best.score - 100 else ():
                ids = transition_ids(model, phones, lengths)
                total = weight + scores[range(len(scores)), model.pdf_of[ids]].sum() + log_probs[ids].sum()
                best = max(best, FoundSentence(words, total, tuple(ids)), key=lambda sentence: sentence.score)
    return best


@pytest.mark.parametrize("make", [monophone, tied])
@pytest.mark.parametrize(("frames", "scale"), [(3, 1.0), (9, 0.5), (10, 1.0)])
def test_no_sentence_is_better(make: Callable[[], HiddenMarkovModel], frames: int, scale: float, ngram: NGram) -> None:
    model = make()
    graph = decoding_graph(model, ngram)
    search = GraphSearch(scale, beam=200.0)
    sentences = set()
    for seed in range(10):
        scores = 4 * np.random.default_rng(seed).standard_normal((frames, model.pdfs)).astype(np.float32)
        best = best_of_all(model, ngram, scale * scores)
        [sentence] = search(scores, model, graph)
        assert (sentence.words, sentence.transition_ids) == (best.words, best.transition_ids)
        assert sentence.score == pytest.approx(best.score, abs=0.02)
        sentences.add(sentence.words)
    assert len(sentences) >= (2 if frames == 3 else 3)


def scores_of_phones(model: HiddenMarkovModel, phones: list[int], loud: float) -> np.ndarray:
    """Log likelihoods by which every state of some phones is likely for two frames."""
    ids = transition_ids(model, phones, [2] * STATES * len(phones))
    scores = np.zeros((len(ids), model.pdfs), dtype=np.float32)
    scores[range(len(ids)), model.pdf_of[ids]] = loud
    return scores


@pytest.fixture(scope="module")
def model() -> HiddenMarkovModel:
    return HiddenMarkovModel.monophone(LEXICON)


@pytest.fixture(scope="module")
def graph(model: HiddenMarkovModel, ngram: NGram) -> kaldifst.StdVectorFst:
    return decoding_graph(model, ngram)


def test_the_acoustic_scale_says_whom_to_believe(
    model: HiddenMarkovModel, graph: kaldifst.StdVectorFst, ngram: NGram
) -> None:
    preferred = best_score(ngram, ("A",)) - best_score(ngram, ("BE",))
    assert preferred > 0.5  # A is the likelier word, but sounds by 6 worse
    scores = scores_of_phones(model, [B], 1.0)
    scores[:, model.pdf_of[model.phone_of == SIL]] = -100.0
    limit = preferred / 6
    assert GraphSearch(0.9 * limit)(scores, model, graph)[0].words == ("A",)
    assert GraphSearch(1.1 * limit)(scores, model, graph)[0].words == ("BE",)


def test_silence_has_no_words(model: HiddenMarkovModel, graph: kaldifst.StdVectorFst) -> None:
    [sentence] = GraphSearch(1.0)(scores_of_phones(model, [SIL], 3.0), model, graph)
    assert sentence.words == () and sentence.transition_ids == tuple(transition_ids(model, [SIL], [2] * STATES))


def test_loud_sentences_are_heard(model: HiddenMarkovModel, graph: kaldifst.StdVectorFst) -> None:
    [sentence] = GraphSearch(1.0)(scores_of_phones(model, [SIL, B, A, SIL, A, B, A], 9.0), model, graph)
    assert "".join(sentence.words) in ("BEAAA", "BEABEA", "BEEAAA", "BEEABEA") and len(sentence.transition_ids) == 42


def test_without_frames_nothing_is_found(model: HiddenMarkovModel, graph: kaldifst.StdVectorFst) -> None:
    [sentence] = GraphSearch()(np.zeros((0, model.pdfs), dtype=np.float32), model, graph)
    assert sentence.words == () and sentence.transition_ids == ()


def test_too_few_frames_have_the_beginning_of_a_sentence(
    model: HiddenMarkovModel, graph: kaldifst.StdVectorFst
) -> None:
    [sentence] = GraphSearch(1.0)(scores_of_phones(model, [B], 9.0)[:5], model, graph)
    assert sentence.transition_ids == tuple(transition_ids(model, [B], [2, 2, 1]))
    [sentence] = GraphSearch(1.0)(scores_of_phones(model, [B], 9.0)[:2], model, graph)
    assert model.phone_of[list(sentence.transition_ids)].tolist() == [B, B] and np.isfinite(sentence.score)


@pytest.mark.parametrize("numbers", [(0.0, 1.0, 1), (1.0, -1.0, 1), (1.0, 1.0, 0)])
def test_numbers_out_of_range_are_refused(numbers: tuple[float, float, int]) -> None:
    with pytest.raises(InputError, match="must be above 0, got"):
        GraphSearch(*numbers)


def test_scores_of_pdfs_become_those_of_transitions() -> None:
    model = tied()
    scores = np.random.default_rng(0).standard_normal((4, model.pdfs))
    transition_scores = by_transition(model, scores)
    assert (
        transition_scores.shape == (4, len(model.pdf_of) - 1)
        and transition_scores.dtype == np.float32
        and transition_scores.flags.c_contiguous
    )
    for id in range(1, len(model.pdf_of)):
        assert np.allclose(transition_scores[:, id - 1], scores[:, model.pdf_of[id]])
