import math
from itertools import product

import pytest
import torch
from torch import Tensor

from asr_lightning.losses.graphs import Graph, GraphBatch
from asr_lightning.losses.lattice_free_mmi import total_log_probability
from tests.oracles.exact_viterbi import best_path


def random_graph(states: int, arcs: int, seed: int) -> Graph:
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randn(2, states, generator=generator, dtype=torch.float64)
    ends[torch.rand(2, states, generator=generator) < 1 / 3] = -math.inf
    return Graph(
        torch.randint(states, (arcs,), generator=generator),
        torch.randint(states, (arcs,), generator=generator),
        torch.randint(4, (arcs,), generator=generator),
        torch.randn(arcs, generator=generator, dtype=torch.float64),
        *ends,
    )


def weight(scores: Tensor, graph: Graph, path: tuple[int, ...]) -> float:
    """The log weight of a path, -inf where its arcs do not fit together."""
    if any(graph.targets[left] != graph.sources[right] for left, right in zip(path, path[1:], strict=False)):
        return -math.inf
    total = float(graph.initial[graph.sources[path[0]]] + graph.final[graph.targets[path[-1]]])
    return total + sum(float(graph.log_weights[arc] + scores[t, graph.pdfs[arc]]) for t, arc in enumerate(path))


def test_no_path_is_better() -> None:
    reached = 0
    for seed in range(20):
        graph = random_graph(2 + seed % 3, 7, seed)
        scores = 2 * torch.randn(4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        paths = {path: weight(scores, graph, path) for path in product(range(7), repeat=4)}
        path, log_probability = best_path(scores, graph)
        assert log_probability == pytest.approx(max(paths.values()), rel=1e-12)
        if log_probability > -math.inf:
            assert paths[tuple(path)] == pytest.approx(log_probability, rel=1e-12)
            reached += 1
        else:
            assert path == []
    assert 10 <= reached < 20  # both kinds are met


def test_a_long_best_path_has_its_weight_and_is_what_great_scores_leave() -> None:
    graph = random_graph(30, 200, seed=1)
    scores = torch.randn(60, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    path, log_probability = best_path(scores, graph)
    assert len(path) == 60 and weight(scores, graph, tuple(path)) == pytest.approx(log_probability, rel=1e-12)
    # With all logs a hundred times as large, the best path is nearly all of the probability.
    hot = Graph(graph.sources, graph.targets, graph.pdfs, 30 * graph.log_weights, 30 * graph.initial, 30 * graph.final)
    total = total_log_probability(30 * scores[None], torch.tensor([60]), GraphBatch.collate([hot]))
    assert total.item() == pytest.approx(30 * log_probability, abs=1.0)


def test_of_equal_arcs_the_first() -> None:
    ends = torch.zeros(2, 1)
    arcs = torch.zeros(3, dtype=torch.int64)
    path, log_probability = best_path(torch.ones(4, 1), Graph(arcs, arcs, arcs, torch.zeros(3), *ends))
    assert path == [0, 0, 0, 0] and log_probability == 4.0


def test_no_frame_and_no_arc() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    point = Graph(none, none, none, torch.zeros(0), torch.tensor([0.5]), torch.tensor([0.25]))
    assert best_path(torch.zeros(0, 4), point) == ([], 0.75)
    assert best_path(torch.zeros(1, 4), point) == ([], -math.inf)
