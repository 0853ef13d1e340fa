import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from asr_lightning.losses.graphs import Graph, GraphBatch
from asr_lightning.losses.lattice_free_mmi import lattice_free_mmi_loss, total_log_probability

PDFS = 4


def random_graph(states: int, arcs: int, seed: int, pdfs: int = PDFS) -> Graph:
    """Parallel arcs and loops included; a third of the states starts no path, a third ends none."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randn(2, states, generator=generator, dtype=torch.float64)
    ends[torch.rand(2, states, generator=generator) < 1 / 3] = -math.inf
    return Graph(
        torch.randint(states, (arcs,), generator=generator),
        torch.randint(states, (arcs,), generator=generator),
        torch.randint(pdfs, (arcs,), generator=generator),
        torch.randn(arcs, generator=generator, dtype=torch.float64),
        *ends,
    )


def chain(pdfs: list[int]) -> Graph:
    """One after the other, each for one frame or more."""
    states = torch.arange(len(pdfs))
    ends = torch.full((2, len(pdfs) + 1), -math.inf, dtype=torch.float64)
    ends[0, 0] = ends[1, -1] = 0.0
    weights = torch.full((2 * len(pdfs),), math.log(0.5), dtype=torch.float64)
    return Graph(
        torch.cat([states, states + 1]),
        torch.cat([states + 1, states + 1]),
        torch.tensor(pdfs + pdfs),
        weights,
        *ends,
    )


def random_scores(shape: tuple[int, ...], seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def all_paths(scores: Tensor, graph: Graph) -> Tensor:
    """The log of the summed weight of every sequence of T arcs that fit together; scores is (T, P), T > 0."""
    weights = []
    for arcs in product(range(len(graph.sources)), repeat=len(scores)):
        if all(graph.targets[left] == graph.sources[right] for left, right in zip(arcs, arcs[1:], strict=False)):
            path = graph.initial[graph.sources[arcs[0]]] + graph.final[graph.targets[arcs[-1]]]
            for frame, arc in enumerate(arcs):
                path = path + graph.log_weights[arc] + scores[frame, graph.pdfs[arc]]
            if path > -math.inf:
                weights.append(path)
    return torch.stack(weights).logsumexp(0) if weights else scores.new_tensor(-math.inf)


def log_recursion(scores: Tensor, graph: Graph) -> Tensor:
    """The same by dynamic programming over a dense matrix of arcs in the log semiring, differentiable."""
    alpha = graph.initial
    states = len(alpha)
    for row in scores:
        arcs = torch.full((len(graph.sources), states, states), -math.inf, dtype=torch.float64)
        arcs[torch.arange(len(arcs)), graph.sources, graph.targets] = graph.log_weights + row[graph.pdfs]
        alpha = (alpha[:, None] + arcs.logsumexp(0)).logsumexp(0)
    return (alpha + graph.final).logsumexp(0)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("seed", range(1, 5))
def test_total_and_posteriors_are_those_of_all_paths(shared: bool, seed: int) -> None:
    graphs = [random_graph(states, 6, seed=10 * seed + states) for states in (2, 3, 4)]
    lengths = torch.tensor([4, 2, 3])
    ours = random_scores((3, 4, PDFS), seed).requires_grad_()
    exact = ours.detach().clone().requires_grad_()
    weights = torch.tensor([1.0, -2.0, 0.5])
    totals = total_log_probability(ours, lengths, GraphBatch.collate(graphs[:1] if shared else graphs))
    expected = torch.stack(
        [all_paths(exact[row, : lengths[row]], graphs[0 if shared else row]) for row in range(len(lengths))]
    )
    torch.testing.assert_close(totals, expected, rtol=1e-12, atol=1e-12)
    possible = expected.isfinite()
    assert possible.any()
    (totals * weights)[possible].sum().backward()
    (expected * weights)[possible].sum().backward()
    assert exact.grad is not None and exact.grad.abs().max() > 0.1
    torch.testing.assert_close(ours.grad, exact.grad, rtol=1e-12, atol=1e-12)


def test_gradcheck() -> None:
    graphs = GraphBatch.collate([random_graph(3, 8, seed) for seed in (1, 2)])
    scores = random_scores((2, 5, PDFS)).requires_grad_()
    lengths = torch.tensor([5, 3])
    assert total_log_probability(scores, lengths, graphs).isfinite().all()
    assert torch.autograd.gradcheck(lambda leaf: total_log_probability(leaf, lengths, graphs), scores)


def test_a_dense_graph_is_as_by_autograd_in_the_log_semiring() -> None:
    graph = random_graph(20, 150, seed=3, pdfs=9)
    ours = random_scores((1, 50, 9)).requires_grad_()
    exact = ours.detach().clone().requires_grad_()
    total = total_log_probability(ours, torch.tensor([50]), GraphBatch.collate([graph]))
    expected = log_recursion(exact[0], graph)
    torch.testing.assert_close(total[0], expected, rtol=1e-12, atol=0)
    total.sum().backward()
    expected.backward()
    assert exact.grad is not None
    torch.testing.assert_close(ours.grad, exact.grad, rtol=0, atol=1e-11)
    torch.testing.assert_close(exact.grad.sum(dim=2), torch.ones(1, 50, dtype=torch.float64))  # they are posteriors


@pytest.mark.parametrize("shared", [False, True])
def test_a_batch_is_as_one_by_one_and_its_padding_of_any_content(shared: bool) -> None:
    graphs = [random_graph(states, 30, seed=states) for states in (5, 9, 7, 6)]
    lengths = [13, 1, 9, 13]
    scores = random_scores((4, 15, PDFS))
    for row, length in enumerate(lengths):
        scores[row, length:] = (math.nan, math.inf, -math.inf, 1e300)[row]
    scores.requires_grad_()
    totals = total_log_probability(scores, torch.tensor(lengths), GraphBatch.collate(graphs[:1] if shared else graphs))
    totals.sum().backward()
    assert scores.grad is not None
    for row, length in enumerate(lengths):
        alone = scores.detach()[row : row + 1, :length].requires_grad_()
        graph = GraphBatch.collate([graphs[0 if shared else row]])
        total = total_log_probability(alone, torch.tensor([length]), graph)
        total.sum().backward()
        assert alone.grad is not None and total.isfinite().all()
        torch.testing.assert_close(totals[row], total[0], rtol=1e-13, atol=0)
        torch.testing.assert_close(scores.grad[row, :length], alone.grad[0], rtol=1e-11, atol=1e-13)
        assert (scores.grad[row, length:] == 0).all()


@pytest.mark.parametrize("one_numerator", [False, True])
@pytest.mark.parametrize("one_denominator", [False, True])
def test_loss_of_graphs_of_one_or_of_each(one_numerator: bool, one_denominator: bool) -> None:
    spoken = [random_graph(4, 12, seed) for seed in (1, 2, 3)]
    possible = [random_graph(6, 25, seed) for seed in (4, 5, 6)]
    ours = random_scores((3, 6, PDFS)).requires_grad_()
    exact = ours.detach().clone().requires_grad_()
    lengths = torch.tensor([6, 4, 5])
    numerators = GraphBatch.collate(spoken[:1] if one_numerator else spoken)
    denominator = GraphBatch.collate(possible[:1] if one_denominator else possible)
    losses = lattice_free_mmi_loss(ours, lengths, numerators, denominator)
    expected = torch.stack(
        [
            log_recursion(exact[row, : lengths[row]], possible[0 if one_denominator else row])
            - log_recursion(exact[row, : lengths[row]], spoken[0 if one_numerator else row])
            for row in range(3)
        ]
    )
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-12)
    losses.sum().backward()
    expected.sum().backward()
    assert exact.grad is not None and exact.grad.abs().max() > 0.1
    torch.testing.assert_close(ours.grad, exact.grad, rtol=0, atol=1e-12)


def test_an_impossible_utterance_is_infinite_and_alone_in_it() -> None:
    graphs = [chain([0, 1, 2]), chain([3, 1, 0]), chain([1, 2])]
    scores = random_scores((3, 5, PDFS)).requires_grad_()
    totals = total_log_probability(scores, torch.tensor([5, 2, 0]), GraphBatch.collate(graphs))
    assert totals[0].isfinite() and totals[1:].tolist() == [-math.inf, -math.inf]
    totals.sum().backward()
    assert scores.grad is not None and scores.grad[0].abs().max() > 0.1 and (scores.grad[1:] == 0).all()
    denominator = GraphBatch.collate([random_graph(5, 30, seed=0)])
    leaf = scores.detach().clone().requires_grad_()
    losses = lattice_free_mmi_loss(leaf, torch.tensor([5, 2, 0]), GraphBatch.collate(graphs), denominator)
    assert losses[0].isfinite() and losses[1:].tolist() == [math.inf, math.inf]
    losses.sum().backward()
    assert leaf.grad is not None and leaf.grad[0].abs().max() > 0.1 and (leaf.grad[1:] == 0).all()
    swapped = lattice_free_mmi_loss(leaf, torch.tensor([5, 2, 0]), denominator, GraphBatch.collate(graphs))
    assert swapped[0].isfinite() and swapped[1:].tolist() == [math.inf, math.inf]  # never -inf


def test_no_frame_no_arc_and_no_utterance() -> None:
    ends = torch.tensor([math.log(0.25)], dtype=torch.float64)
    none = torch.zeros(0, dtype=torch.int64)
    point = GraphBatch.collate([Graph(none, none, none, torch.zeros(0), ends, ends)])
    totals = total_log_probability(random_scores((2, 3, PDFS)), torch.tensor([0, 1]), point)
    torch.testing.assert_close(totals, torch.tensor([2 * math.log(0.25), -math.inf], dtype=torch.float64))
    assert total_log_probability(torch.zeros(0, 3, PDFS), none, point).shape == (0,)
    assert total_log_probability(torch.zeros(2, 0, PDFS), torch.tensor([0, 0]), point).isfinite().all()


def test_extreme_scores() -> None:
    """At ±500 a path that is more than e^667 behind at some frame may be lost, the others are exact; never NaN."""
    graph = random_graph(6, 40, seed=1)
    exact = []
    for seed in range(10):
        scores = (random_scores((2, 12, PDFS), seed).sign() * 500).requires_grad_()
        totals = total_log_probability(scores, torch.tensor([12, 11]), GraphBatch.collate([graph]))
        totals.sum().backward()
        assert scores.grad is not None and not totals.isnan().any() and scores.grad.isfinite().all()
        assert scores.grad.min() >= 0 and scores.grad.sum(dim=2).max() < 1 + 1e-9
        for total, row, length in zip(totals.detach(), scores.detach(), (12, 11), strict=True):
            exact.append(abs(float(total - log_recursion(row[:length], graph))) < 1e-9)
    assert sum(exact) >= 10  # of 20
    for shift in (-500.0, 500.0):  # the same of all pdfs cancels out
        scores = random_scores((1, 12, PDFS))
        total = total_log_probability(scores + shift, torch.tensor([12]), GraphBatch.collate([graph]))
        torch.testing.assert_close(total[0], log_recursion(scores[0], graph) + 12 * shift, rtol=1e-12, atol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_no_numbers_spoil_their_utterance_only(value: float) -> None:
    scores = random_scores((3, 8, PDFS))
    graphs = GraphBatch.collate([random_graph(6, 40, seed=1)])
    expected = total_log_probability(scores, torch.tensor([8, 8, 8]), graphs)
    scores[1, 4] = value
    scores.requires_grad_()
    totals = total_log_probability(scores, torch.tensor([8, 8, 8]), graphs)
    totals.sum().backward()
    assert totals[1] == -math.inf and torch.equal(totals[[0, 2]], expected[[0, 2]])
    assert scores.grad is not None and (scores.grad[1] == 0).all() and scores.grad.isfinite().all()


def test_a_pdf_of_probability_zero_is_only_avoided() -> None:
    graph = random_graph(6, 40, seed=1)
    scores = random_scores((1, 8, PDFS))
    scores[0, 3, 2] = -math.inf
    total = total_log_probability(scores, torch.tensor([8]), GraphBatch.collate([graph]))
    torch.testing.assert_close(total[0], log_recursion(scores[0], graph), rtol=1e-12, atol=0)


def test_what_falls_below_the_floor_is_lost_and_what_stays_above_is_not() -> None:
    """Two ways of two frames: one loses 700 in the first frame and gains 1400 in the second."""
    ends = torch.tensor([[0.0, -math.inf, -math.inf], [-math.inf, 0.0, 0.0]], dtype=torch.float64)
    graph = Graph(
        torch.tensor([0, 0, 1, 2]), torch.tensor([1, 2, 1, 2]), torch.tensor([0, 1, 2, 3]), torch.zeros(4), *ends
    )
    scores = torch.tensor([[[0.0, -700.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1400.0]]], dtype=torch.float64)
    scores.requires_grad_()
    total = total_log_probability(scores, torch.tensor([2]), GraphBatch.collate([graph]))
    total.sum().backward()
    assert scores.grad is not None and scores.grad.isfinite().all()
    assert total.item() == -math.inf and (scores.grad == 0).all()
    lighter = scores.detach() / 1.2  # 583 behind is not lost
    total = total_log_probability(lighter, torch.tensor([2]), GraphBatch.collate([graph]))
    torch.testing.assert_close(total[0], torch.tensor(700.0 / 1.2, dtype=torch.float64), rtol=1e-12, atol=0)


def test_a_part_of_the_denominators_paths_is_less_probable() -> None:
    """And equal to all of them is as probable."""
    possible = random_graph(8, 40, seed=2)
    mask = torch.rand(40, generator=torch.Generator().manual_seed(0)) < 0.8
    part = replace(
        possible,
        sources=possible.sources[mask],
        targets=possible.targets[mask],
        pdfs=possible.pdfs[mask],
        log_weights=possible.log_weights[mask],
    )
    scores, lengths = random_scores((5, 12, PDFS), scale=5.0), torch.tensor([12, 11, 10, 7, 4])
    denominator = GraphBatch.collate([possible])
    losses = lattice_free_mmi_loss(scores, lengths, GraphBatch.collate([part]), denominator)
    assert losses.isfinite().all() and (losses > 0).all()
    same = lattice_free_mmi_loss(scores, lengths, GraphBatch.collate([possible] * 5), denominator)
    torch.testing.assert_close(same, torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-11)


def test_minimizing_the_loss_makes_what_was_said_certain() -> None:
    """The denominator is any sequence of pdfs; its posteriors become the numerators'."""
    loop = torch.zeros(PDFS, dtype=torch.int64)
    weights = torch.full((PDFS,), math.log(0.5), dtype=torch.float64)  # as in the chains, whose paths are among these
    end = torch.zeros(1, dtype=torch.float64)
    denominator = GraphBatch.collate([Graph(loop, loop, torch.arange(PDFS), weights, end, end)])
    numerators = GraphBatch.collate([chain([0, 1, 2]), chain([3, 1])])
    lengths = torch.tensor([6, 5])
    scores = random_scores((2, 6, PDFS)).requires_grad_()
    optimizer = torch.optim.Adam([scores], lr=0.5)
    losses = []
    for _ in range(60):
        loss = lattice_free_mmi_loss(scores, lengths, numerators, denominator).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1.0 and 0 <= losses[-1] < 0.01
    [numerator_gradient] = torch.autograd.grad(total_log_probability(scores, lengths, numerators).sum(), scores)
    [denominator_gradient] = torch.autograd.grad(total_log_probability(scores, lengths, denominator).sum(), scores)
    torch.testing.assert_close(denominator_gradient, numerator_gradient, rtol=0, atol=0.01)
    best = denominator_gradient[0].argmax(dim=1).tolist()
    assert best == sorted(best) and set(best) == {0, 1, 2}  # the chain, in its order


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_computed_in_double_under_autocast_too(dtype: torch.dtype) -> None:
    graphs = GraphBatch.collate([random_graph(6, 40, seed=1)])
    scores = random_scores((2, 8, PDFS)).to(dtype).requires_grad_()
    lengths = torch.tensor([8, 5])
    with torch.autocast("cpu", torch.bfloat16):
        totals = total_log_probability(scores, lengths, graphs)
        losses = lattice_free_mmi_loss(scores, lengths, graphs, graphs)
    assert losses.dtype == torch.float32
    assert torch.equal(totals, total_log_probability(scores.detach().double(), lengths, graphs))
    totals.sum().backward()
    assert scores.grad is not None and scores.grad.dtype == dtype and scores.grad.abs().max() > 0.1


def test_what_does_not_fit_is_refused() -> None:
    graphs = [random_graph(4, 12, seed) for seed in range(2)]
    scores = random_scores((3, 5, PDFS))
    with pytest.raises(ValueError, match=r"2 graphs .* \(3, 5, 4\)"):
        total_log_probability(scores, torch.tensor([5, 5, 5]), GraphBatch.collate(graphs))
    with pytest.raises(ValueError, match=r"pdfs up to 3 .* \(3, 5, 3\)"):
        total_log_probability(scores[:, :, :3], torch.tensor([5, 5, 5]), GraphBatch.collate(graphs[:1]))
    with pytest.raises(ValueError, match=r"lengths \[5, 6, 5\]"):
        total_log_probability(scores, torch.tensor([5, 6, 5]), GraphBatch.collate(graphs[:1]))
    with pytest.raises(ValueError, match="at least one"):
        GraphBatch.collate([])
    with pytest.raises(ValueError, match="expected targets to be integers from 0 to below 3"):
        replace(graphs[0], initial=graphs[0].initial[:3], final=graphs[0].final[:3], sources=graphs[0].sources * 0)
    with pytest.raises(ValueError, match="four"):
        replace(graphs[0], pdfs=graphs[0].pdfs[:-1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same() -> None:
    graphs = [random_graph(8, 40, seed) for seed in range(3)]
    scores = random_scores((3, 30, PDFS))
    lengths = torch.tensor([30, 21, 7])
    for batch in (GraphBatch.collate(graphs), GraphBatch.collate(graphs[:1])):
        gpu_scores = scores.cuda().requires_grad_()
        cpu_scores = scores.clone().requires_grad_()
        totals = total_log_probability(gpu_scores, lengths.cuda(), batch)
        expected = total_log_probability(cpu_scores, lengths, batch)
        totals.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(totals.cpu(), expected, rtol=1e-12, atol=0)
        assert gpu_scores.grad is not None and cpu_scores.grad is not None
        torch.testing.assert_close(gpu_scores.grad.cpu(), cpu_scores.grad, rtol=0, atol=1e-11)
