import math
from collections.abc import Callable

import kaldifst
import numpy as np
import pytest

from asr_lightning.errors import InputError
from asr_lightning.hmm import beam_search
from asr_lightning.hmm.beam_search import BeamSearch
from asr_lightning.hmm.graph import decoding_graph
from asr_lightning.hmm.lattice import Lattice, best_sentences
from asr_lightning.hmm.model import HiddenMarkovModel
from asr_lightning.hmm.search import FoundSentence, GraphSearch, by_transition
from asr_lightning.hmm.search_graph import search_graph
from asr_lightning.text.lexicon import Lexicon
from asr_lightning.text.smoothing import kneser_ney

WIDE, ALL = 1e4, 1_000_000
Sentences = dict[tuple[str, ...], float]


def tiny(words: int, seed: int) -> tuple[HiddenMarkovModel, kaldifst.StdVectorFst]:
    """A lexicon of random words, some alike, and the graph of a trigram of random sentences."""
    generator = np.random.default_rng(seed)
    names = [f"W{number}" for number in range(words)]
    pronunciations = {
        name: [tuple(generator.choice(["P", "Q", "R"], generator.integers(1, 3)).tolist())] for name in names
    }
    texts = [generator.choice(names, generator.integers(1, 5)).tolist() for _ in range(4 * words)]
    model = HiddenMarkovModel.monophone(Lexicon({name: tuple(pronunciations[name]) for name in names}))
    return model, decoding_graph(model, kneser_ney(texts, 3))


def random_scores(model: HiddenMarkovModel, frames: int, seed: int) -> np.ndarray:
    return 10 * np.random.default_rng(seed).normal(size=(frames, model.pdfs)).astype(np.float32)


def random_graph(model: HiddenMarkovModel, seed: int) -> kaldifst.StdVectorFst:
    """Arcs with random words; those that read no frame, some of negative cost, lead forwards."""
    generator = np.random.default_rng(seed)
    fst = kaldifst.StdVectorFst()
    for _ in range(6):
        fst.add_state()
    fst.start = int(generator.integers(3))
    for number in range(18):
        source, target = generator.integers(6, size=2).tolist()
        reads = int(generator.integers(1, len(model.pdf_of)))
        if number < 7 and source != target:
            source, target, reads = min(source, target), max(source, target), 0
        says = int(generator.integers(1, 3)) if generator.random() < 0.3 else 0
        fst.add_arc(source, kaldifst.StdArc(reads, says, float(generator.normal()), target))
    fst.set_final(5, 0.5)
    fst.set_final(2, -0.25)
    return fst


def enumerated(graph: kaldifst.StdVectorFst, scores: np.ndarray, words: tuple[str, ...]) -> Sentences:
    """The cost of every sentence, by a search that keeps every pair of a state and the words up to it."""

    def step(old: dict[tuple[int, tuple[str, ...]], float], row: np.ndarray | None) -> dict:
        new = {} if row is not None else dict(old)
        waiting = list(old)
        while waiting:
            state, sentence = key = waiting.pop()
            for arc in kaldifst.ArcIterator(graph, state):
                if (arc.ilabel > 0) != (row is not None):
                    continue
                cost = old[key] if row is not None else new[key]
                cost += arc.weight.value - (0.0 if row is None else float(row[arc.ilabel - 1]))
                goal = arc.nextstate, sentence + ((words[arc.olabel - 1],) if arc.olabel else ())
                if cost < new.get(goal, math.inf):
                    new[goal] = cost
                    if row is None:
                        waiting.append(goal)
        return new

    costs = step({(graph.start, ()): 0.0}, None)
    for row in scores:
        costs = step(step(costs, row), None)
    totals: Sentences = {}
    for (state, sentence), cost in costs.items():
        totals[sentence] = min(cost + graph.final(state).value, totals.get(sentence, math.inf))
    return {sentence: cost for sentence, cost in totals.items() if cost < math.inf}


def search(graph: kaldifst.StdVectorFst, model: HiddenMarkovModel, scores: np.ndarray, lattice_beam: float) -> Lattice:
    scores = by_transition(model, scores)
    return BeamSearch(search_graph(graph), WIDE, ALL, lattice_beam)(scores, model.words)


@pytest.mark.parametrize("make", [lambda model, seed: tiny(3, seed)[1], random_graph], ids=["words", "random"])
@pytest.mark.parametrize("seed", range(8))
def test_the_sentences_are_those_of_all_paths(make: Callable, seed: int) -> None:
    model, _ = tiny(3, seed)
    graph, scores = make(model, seed), random_scores(model, 9 if make is not random_graph else 6, seed)
    expected = enumerated(graph, by_transition(model, scores), model.words)
    if not expected:
        assert make is random_graph  # it has no way to an end: see below
        return
    for lattice_beam in (WIDE, 30.0, 5.0, 0.01):
        within = {words: cost for words, cost in expected.items() if cost <= min(expected.values()) + lattice_beam}
        sentences = best_sentences(search(graph, model, scores, lattice_beam), len(expected))
        assert dict(sentences[: len(within)]) == pytest.approx(within, abs=1e-3)
        assert [cost for _, cost in sentences] == sorted(cost for _, cost in sentences) and len(dict(sentences)) == len(
            sentences
        )


@pytest.mark.parametrize("frames", [1, 5, 40, 130])
@pytest.mark.parametrize("seed", range(6))
def test_the_best_sentence_is_that_of_kaldi(seed: int, frames: int) -> None:
    model, graph = tiny(12, seed)
    log_likelihoods = random_scores(model, frames, seed)
    (best,) = GraphSearch(0.3, WIDE, ALL)(log_likelihoods, model, graph)
    several = GraphSearch(0.3, WIDE, ALL, hypotheses=4, lattice_beam=3.0)(log_likelihoods, model, graph)
    assert several[0].words == best.words and several[0].score == pytest.approx(best.score, abs=1e-3)
    assert len(best.transition_ids) == frames
    assert len({hypothesis.words for hypothesis in several}) == len(several) <= 4
    assert frames < 40 or len(several) == 4


@pytest.mark.parametrize("seed", range(12))
def test_so_it_is_where_no_path_ends(seed: int) -> None:
    model, _ = tiny(3, seed)
    graph = random_graph(model, seed)
    graph.set_final(5, math.inf)
    graph.set_final(2, math.inf)
    log_likelihoods = random_scores(model, 6, seed)
    (best,) = GraphSearch(1.0, WIDE, ALL)(log_likelihoods, model, graph)
    several = GraphSearch(1.0, WIDE, ALL, hypotheses=5)(log_likelihoods, model, graph)
    assert several[0].words == best.words and several[0].score == pytest.approx(best.score, abs=1e-3)


@pytest.mark.parametrize("hypotheses", [1, 3])
def test_where_there_is_no_path_nothing_is_found(hypotheses: int) -> None:
    model, graph = tiny(3, 0)
    find = GraphSearch(hypotheses=hypotheses)
    assert find(np.full((7, model.pdfs), -np.inf, np.float32), model, graph) == [FoundSentence((), -math.inf)]
    scores = np.zeros((7, model.pdfs), np.float32)
    scores[3] = -np.inf
    assert find(scores, model, graph) == [FoundSentence((), -math.inf)]


@pytest.mark.parametrize("hypotheses", [1, 3])
def test_without_frames_there_is_the_empty_sentence(hypotheses: int) -> None:
    model, graph = tiny(3, 0)
    (hypothesis,) = GraphSearch(hypotheses=hypotheses)(np.zeros((0, model.pdfs), np.float32), model, graph)
    ((words, cost),) = enumerated(graph, np.zeros((0, 1)), model.words).items()
    assert hypothesis.words == words == () and hypothesis.score == pytest.approx(-cost, abs=1e-6)


def test_searches_do_not_disturb_each_other() -> None:
    model, graph = tiny(12, 0)
    find = BeamSearch(search_graph(graph), 13.0, 7000, 5.0)
    for frames in (30, 0, 80, 3):  # the second after a search that broke off
        scores = by_transition(model, random_scores(model, frames, frames))
        assert not find(np.full((4, scores.shape[1]), -np.inf), model.words).words
        again = BeamSearch(search_graph(graph), 13.0, 7000, 5.0)(scores, model.words)
        assert best_sentences(find(scores, model.words), 9) == best_sentences(again, 9)


@pytest.mark.parametrize("lattice_beam", [1e-3, 1.0, 6.0])
def test_what_is_pruned_on_the_way_was_not_needed(monkeypatch: pytest.MonkeyPatch, lattice_beam: float) -> None:
    model, graph = tiny(6, 1)
    for frames in (24, 25, 26, 50, 51, 111):
        scores = random_scores(model, frames, frames) / 5
        monkeypatch.setattr(beam_search, "PRUNE_INTERVAL", 1000)
        at_once = search(graph, model, scores, lattice_beam)
        for interval in (1, 7, 25):
            monkeypatch.setattr(beam_search, "PRUNE_INTERVAL", interval)
            bit_by_bit = search(graph, model, scores, lattice_beam)
            for name in ("frames", "sources", "targets", "words"):
                assert list(getattr(bit_by_bit, name)) == list(getattr(at_once, name))
            assert bit_by_bit.costs == pytest.approx(at_once.costs, abs=1e-6)


def test_a_narrow_beam_finds_a_sentence_that_is_none_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beam_search, "MIN_ACTIVE", 1)
    model, graph = tiny(4, 2)
    for state in range(graph.num_states):  # a narrow beam may not reach an end
        graph.set_final(state, 0.0)
    worse = 0
    for seed in range(10):
        scores = by_transition(model, random_scores(model, 9, seed) / 5)
        everything = enumerated(graph, scores, model.words)
        for beam, max_active in ((2.0, ALL), (WIDE, 3)):
            lattice = BeamSearch(search_graph(graph), beam, max_active, 5.0)(scores, model.words)
            for words, cost in best_sentences(lattice, 3):
                assert cost >= everything[words] - 1e-3
                worse += cost > everything[words] + 1e-3
    assert worse > 5


def test_frames_and_costs_of_a_lattice() -> None:
    model, graph = tiny(12, 3)
    scores = random_scores(model, 30, 0)
    lattice = search(graph, model, scores, 5.0)
    assert lattice.frames[0] == 0 and lattice.frames[-1] == 30
    assert (lattice.frames[lattice.sources] <= lattice.frames[lattice.targets]).all()
    still = lattice.frames[lattice.sources] == lattice.frames[lattice.targets]
    assert (lattice.acoustic_costs[still] == 0).all() and (lattice.acoustic_costs[~still] != 0).all()
    louder = search(graph, model, scores + 1.0, 5.0)  # every frame counts once on every way
    steps = louder.frames[louder.targets] - louder.frames[louder.sources]
    assert louder.words == lattice.words
    assert louder.acoustic_costs == pytest.approx(lattice.acoustic_costs - steps, abs=1e-3)
    assert louder.graph_costs == pytest.approx(lattice.graph_costs)


def test_a_silent_circle_is_refused() -> None:
    model, graph = tiny(3, 0)
    graph.add_arc(0, kaldifst.StdArc(0, 0, 1.0, 0))
    with pytest.raises(InputError, match=r"form no cycle, found \d+ states in or behind one"):
        GraphSearch(hypotheses=2)(np.zeros((3, model.pdfs), np.float32), model, graph)


@pytest.mark.parametrize("name", ["acoustic_scale", "beam", "max_active", "hypotheses", "lattice_beam"])
def test_numbers_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} must be above 0, got -1"):
        GraphSearch(**{name: -1})
