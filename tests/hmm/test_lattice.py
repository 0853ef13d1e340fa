import math
from itertools import pairwise

import numpy as np
import pytest

from asr_lightning.errors import InputError
from asr_lightning.hmm.lattice import Arc, Lattice, best_sentences, compact, empty_lattice

Sentences = dict[tuple[str, ...], float]


def random_arcs(nodes: int, count: int, seed: int, wordless: float = 0.5) -> list[Arc]:
    """Arcs that lead forwards, at least from every node to the next; costs of the graph may be below 0."""
    generator = np.random.default_rng(seed)
    arcs = []
    for number in range(count):
        chosen = sorted(generator.choice(nodes, 2, replace=False).tolist())
        source, target = (number, number + 1) if number < nodes - 1 else chosen
        word = "" if generator.random() < wordless else str(generator.choice(["A", "B", "C"]))
        arcs.append((source, target, word, (float(generator.normal()), float(10 * generator.random()))))
    return arcs


def as_lattice(nodes: int, arcs: list[Arc]) -> Lattice:
    """The lattice of all arcs as they are."""
    return Lattice(
        np.arange(nodes),
        np.array([arc[0] for arc in arcs]),
        np.array([arc[1] for arc in arcs]),
        tuple(arc[2] for arc in arcs),
        np.array([arc[3][0] for arc in arcs]),
        np.array([arc[3][1] for arc in arcs]),
    )


def enumerated(lattice: Lattice) -> Sentences:
    """The sentences of all paths, and the lowest cost of each."""
    costs: Sentences = {}

    def walk(node: int, words: tuple[str, ...], cost: float) -> None:
        if node == len(lattice.frames) - 1:
            costs[words] = min(cost, costs.get(words, math.inf))
        for arc in np.flatnonzero(lattice.sources == node).tolist():
            more = (lattice.words[arc],) if lattice.words[arc] else ()
            walk(int(lattice.targets[arc]), words + more, cost + float(lattice.costs[arc]))

    walk(0, (), 0.0)
    return costs


def cheapest(sentences: Sentences, count: int) -> list[tuple[tuple[str, ...], float]]:
    return sorted(sentences.items(), key=lambda item: item[1])[:count]


@pytest.mark.parametrize("seed", range(20))
def test_the_best_sentences_are_those_of_all_paths(seed: int) -> None:
    lattice = as_lattice(8, random_arcs(8, 20, seed))
    everything = enumerated(lattice)
    for count in (1, 3, 10, 1000):
        sentences, expected = best_sentences(lattice, count), cheapest(everything, count)
        assert [words for words, _ in sentences] == [words for words, _ in expected]
        assert [cost for _, cost in sentences] == pytest.approx([cost for _, cost in expected], abs=1e-4)
    assert len(everything) > 3


def test_costs_are_exact_where_sums_are_large() -> None:
    arcs: list[Arc] = [(node, node + 1, "A", (0.0, 9999.125)) for node in range(100)]
    lattice = as_lattice(101, [*arcs, (99, 100, "B", (0.0, 9999.126))])
    (_, first), (words, second) = best_sentences(lattice, 5)
    assert words[-1] == "B" and first == 999912.5 and second - first == pytest.approx(0.001, abs=1e-5)


def test_many_alternatives_in_a_row_take_no_time() -> None:
    """There are 3 ** 60 sentences, none of which shares a state with another in a determinized lattice."""
    arcs: list[Arc] = []
    generator = np.random.default_rng(0)
    for step in range(60):
        for word in "ABC":  # each ends at two nodes, at costs that are unlike all others
            for source in (2 * step, 2 * step + 1):
                for target in (2 * step + 2, 2 * step + 3):
                    arcs.append((source, target, word, (0.0, float(10 * generator.random()))))
    arcs += [(120, 122, "", (0.0, 0.0)), (121, 122, "", (0.0, 0.0))]
    sentences = best_sentences(as_lattice(123, [arc for arc in arcs if arc[0] != 1]), 20)
    assert len({words for words, _ in sentences}) == 20 and all(
        left[1] <= right[1] for left, right in pairwise(sentences)
    )


@pytest.mark.parametrize("seed", range(20))
def test_a_compact_lattice_says_the_same(seed: int) -> None:
    arcs = random_arcs(12, 24, seed, wordless=0.8)
    original, compacted = as_lattice(12, arcs), compact(range(12), arcs)
    assert enumerated(compacted) == pytest.approx(enumerated(original))
    assert len(compacted.words) <= len(original.words) and len(compacted.frames) < 12
    assert compacted.frames[0] == 0 and compacted.frames[-1] == 11


def test_compact_joins_chains_and_keeps_the_best_of_two_ways() -> None:
    arcs: list[Arc] = [
        (0, 1, "", (1.0, 0.5)), (1, 2, "A", (0.25, 2.0)), (2, 3, "", (0.0, 4.0)), (0, 3, "A", (7.0, 0.0)),
        (3, 4, "B", (1.0, 1.0)),
    ]  # fmt: skip
    lattice = compact([0, 5, 6, 7, 9], arcs)
    assert lattice.frames.tolist() == [0, 7, 9] and lattice.words == ("A", "B")
    assert lattice.graph_costs.tolist() == [7.0, 1.0] and lattice.acoustic_costs.tolist() == [0.0, 1.0]


def test_a_lattice_without_a_way_says_nothing() -> None:
    dead_end = as_lattice(4, [(0, 1, "A", (0.0, 0.0)), (2, 3, "B", (0.0, 0.0))])
    for lattice in (empty_lattice(7), dead_end):
        assert best_sentences(lattice, 3) == []
    assert empty_lattice(7).frames.tolist() == [0, 7]


def test_a_way_without_words_is_one() -> None:
    lattice = compact([0, 3], [(0, 1, "", (1.5, 2.0))])
    assert best_sentences(lattice, 3) == [((), 3.5)]


def test_arcs_must_lead_forwards() -> None:
    for arc in ((1, 0), (1, 1), (1, 2), (-1, 1)):
        with pytest.raises(InputError, match=rf"nodes 0 to 1, got arc 1 from node {arc[0]} to {arc[1]}"):
            as_lattice(2, [(0, 1, "A", (0.0, 0.0)), (*arc, "", (0.0, 0.0))])
    with pytest.raises(InputError, match=r"of every arc, got \[0, 1\]"):
        Lattice(np.arange(2), np.array([0]), np.array([1]), ("A",), np.zeros(1), np.zeros(0))
