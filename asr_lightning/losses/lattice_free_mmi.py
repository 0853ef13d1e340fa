"""Lattice-free MMI: the forward-backward algorithm over graphs of HMM states, and the loss made of two of them.

[Povey et al. 2016, "Purely sequence-trained neural networks for ASR based on lattice-free MMI"; Hadian et al. 2018,
"End-to-end speech recognition using lattice-free MMI"].

The letters of this file besides B and T: P pdfs, A arcs, S states, G graphs, K utterances that share a graph, and N
nodes. A node is a pair of a state and the pdf with which arcs enter it: per frame, one sparse product takes the states'
probabilities along the arcs to the nodes, the network's scores weight the nodes, and another sparse product adds the
nodes of each state. One graph for all utterances is a matrix of K = B columns; one graph for each is a block-diagonal
matrix of one column.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from asr_lightning.nn.masks import real_frames

FLOOR = 1e-290  # smaller probabilities, relative to all paths up to a frame, count as zero; its reciprocal is finite


@dataclass(frozen=True, eq=False)
class Graph:
    """A weighted automaton over pdfs, the outputs of the network; every arc consumes one frame.

    Weights are natural logarithms; e^-290 ln 10 and less may be taken as zero.

    Attributes:
        sources: (A,) int64 states that the arcs leave.
        targets: (A,) int64 states that they enter.
        pdfs: (A,) int64 pdfs that they consume a frame with.
        log_weights: (A,) log weights of the arcs.
        initial: (S,) log weights of starting in a state; -inf where no path starts.
        final: (S,) log weights of ending in a state; -inf where no path ends.

    Raises:
        ValueError: Arrays of one kind are of different lengths, or a number is out of range.
    """

    sources: Tensor
    targets: Tensor
    pdfs: Tensor
    log_weights: Tensor
    initial: Tensor
    final: Tensor

    def __post_init__(self) -> None:
        arcs = [tuple(array.shape) for array in (self.sources, self.targets, self.pdfs, self.log_weights)]
        if len({*arcs}) != 1 or len(arcs[0]) != 1 or self.initial.shape != self.final.shape or self.initial.dim() != 1:
            raise ValueError(
                f"a graph needs four (A,) arrays of arcs and two (S,) arrays of states, got {arcs} and "
                f"{[tuple(self.initial.shape), tuple(self.final.shape)]}"
            )
        for name, numbers, size in [
            ("sources", self.sources, len(self.initial)),
            ("targets", self.targets, len(self.initial)),
            ("pdfs", self.pdfs, math.inf),
        ]:
            if numbers.is_floating_point() or (len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < size):
                raise ValueError(f"{name} are integers from 0 to below {size}, got {numbers}")


@dataclass(frozen=True, eq=False)
class GraphBatch:
    """Graphs made ready for the recursions, by `collate`: either one for all utterances of a batch, or one for each.

    Attributes:
        arrivals: (N, S) sparse, the weights of the arcs from states to nodes, as probabilities.
        departures: (S, N) sparse, its transpose.
        merging: (S, N) sparse, 1 where a node belongs to a state.
        members: (G, S) sparse, 1 where a state belongs to a graph.
        node_states: (N,) int64.
        node_pdfs: (N,) int64.
        node_graphs: (N,) int64.
        state_graphs: (S,) int64.
        initial: (S, 1) float64 weights, as probabilities.
        final: (S, 1) float64 weights, as probabilities.
    """

    arrivals: Tensor
    departures: Tensor
    merging: Tensor
    members: Tensor
    node_states: Tensor
    node_pdfs: Tensor
    node_graphs: Tensor
    state_graphs: Tensor
    initial: Tensor
    final: Tensor

    @classmethod
    def collate(cls, graphs: Sequence[Graph]) -> "GraphBatch":
        """Put graphs side by side, on their device.

        Raises:
            ValueError: There is no graph.
        """
        if not graphs:
            raise ValueError("a batch of graphs needs at least one, got none")
        sizes = torch.tensor([len(graph.initial) for graph in graphs])
        starts = (sizes.cumsum(0) - sizes).tolist()
        device = graphs[0].sources.device
        sources = torch.cat([graph.sources + start for graph, start in zip(graphs, starts, strict=True)])
        targets = torch.cat([graph.targets + start for graph, start in zip(graphs, starts, strict=True)])
        pdfs = torch.cat([graph.pdfs for graph in graphs])
        weights = torch.cat([graph.log_weights for graph in graphs]).double().exp()
        states = int(sizes.sum())
        kinds = int(pdfs.max()) + 1 if len(pdfs) else 1
        nodes, arc_nodes = torch.unique(targets * kinds + pdfs, return_inverse=True)
        node_states = nodes // kinds
        state_graphs = torch.arange(len(graphs)).repeat_interleave(sizes).to(device)
        arrivals = _sparse(arc_nodes, sources, weights, (len(nodes), states))
        return cls(
            arrivals=arrivals,
            departures=_sparse(sources, arc_nodes, weights, (states, len(nodes))),
            merging=_summing(node_states, states),
            members=_summing(state_graphs, len(graphs)),
            node_states=node_states,
            node_pdfs=nodes % kinds,
            node_graphs=state_graphs[node_states],
            state_graphs=state_graphs,
            initial=torch.cat([graph.initial for graph in graphs]).double().exp().unsqueeze(1),
            final=torch.cat([graph.final for graph in graphs]).double().exp().unsqueeze(1),
        )

    def __len__(self) -> int:
        return self.members.shape[0]

    def to(self, device: torch.device | str) -> "GraphBatch":
        """Move the tensors to a device."""
        return GraphBatch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def lattice_free_mmi_loss(scores: Tensor, lengths: Tensor, numerators: GraphBatch, denominator: GraphBatch) -> Tensor:
    """Return -(log p(numerator) - log p(denominator)) of each utterance.

    The leaky HMM of Povey et al. is left out: all frames of an utterance count, and float64 needs no leak.

    Args:
        scores: (B, T, P) outputs of the network, in any floating type; they need not be normalised.
        lengths: (B,) real frames.
        numerators: What was said, usually one graph per utterance.
        denominator: What can be said, usually one graph for all.

    Returns:
        (B,) losses, float64 where the scores are and else float32; infinite, with a gradient of zero, where a numerator
        or denominator has no path, as where an utterance has fewer frames than its numerator needs.

    Raises:
        ValueError: As `total_log_probability`.
    """
    said = total_log_probability(scores, lengths, numerators)
    possible = total_log_probability(scores, lengths, denominator)
    usable = said.isfinite() & possible.isfinite()
    losses = torch.where(usable, possible - said, torch.full_like(said, torch.inf))
    return losses.to(torch.promote_types(scores.dtype, torch.float32))


def total_log_probability(scores: Tensor, lengths: Tensor, graphs: GraphBatch) -> Tensor:
    """Return the log of the summed weight of all paths of each utterance's length, from an initial to a final state.

    A path weighs the product of its initial, arc and final weights and, per frame, of e^score of the arc's pdf; the
    gradient is each pdf's posterior probability. The recursions are in float64 and rescaled at every frame, so that
    only ratios matter: what has less than `FLOOR` of the weight of all paths up to a frame is lost. For a network whose
    scores differ by tens that is nothing; a path that is to win in the end, but is 667 behind at some frame, is.

    Args:
        scores: (B, T, P) logs, in any floating type; what lies beyond the lengths is ignored.
        lengths: (B,) real frames.
        graphs: One graph for all utterances, or B; moved to the scores' device if they are elsewhere.

    Returns:
        (B,) float64; -inf, with a gradient of zero, where no path has this length or all are lost, also where scores
        are not numbers.

    Raises:
        ValueError: The number of graphs, the pdfs or the lengths do not fit the scores.
    """
    batch, frames, pdfs = scores.shape
    highest = max(graphs.node_pdfs.tolist(), default=-1)
    if len(graphs) not in (1, batch) or highest >= pdfs or (batch and int(lengths.max()) > frames):
        raise ValueError(
            f"{len(graphs)} graphs with pdfs up to {highest} and lengths {lengths.tolist()} do not fit scores of "
            f"(B, T, P) = {tuple(scores.shape)}: one graph or B, pdfs below P, lengths up to T"
        )
    if not batch:
        return scores.sum(dim=(1, 2)).double()
    return _Total.apply(scores, lengths, graphs.to(scores.device))


class _Total(Function):
    """The recursions; of the forward one, every ⌈√T⌉-th frame is kept, the frames between are computed twice."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, lengths: Tensor, graphs: GraphBatch) -> Tensor:  # noqa: ANN401
        emissions = _Emissions(scores, lengths, graphs)
        groups = (len(graphs), len(scores) // len(graphs))  # (G, K)
        alpha = graphs.initial.expand(-1, groups[1]).contiguous()  # (S, K)
        ended = torch.zeros(groups, dtype=torch.float64, device=scores.device)
        ends = set(lengths.tolist())
        every = math.isqrt(max(ends)) + 1
        kept = []
        arrived, nodes = alpha.new_empty(2, len(graphs.node_states), groups[1])
        for frame in range(max(ends) + 1):
            if frame in ends:
                here = _product(graphs.members, alpha * graphs.final)
                ended = torch.where((lengths == frame).view(groups), here, ended)
            if frame == max(ends):
                break
            if frame % every == 0:
                kept.append(alpha)
            alpha = emissions.take(alpha, frame, arrived, nodes)
            sums = _product(graphs.members, alpha)  # (G, K)
            alpha *= torch.where(sums > FLOOR, 1 / sums, 0.0).index_select(0, graphs.state_graphs)
            emissions.rescale(frame, sums.reshape(-1))
        ended = ended.view(-1)
        alive = ended > FLOOR
        real = real_frames(lengths, scores.shape[1])
        totals = emissions.normalisers.masked_fill(~real, 0.0).sum(dim=1) + ended.log()
        ctx.save_for_backward(scores, lengths, emissions.normalisers, torch.where(alive, 1 / ended, 0.0))
        ctx.graphs, ctx.kept, ctx.every = graphs, kept, every
        return torch.where(alive, totals, -torch.inf)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        scores, lengths, normalisers, endings = ctx.saved_tensors
        graphs = ctx.graphs
        emissions = _Emissions(scores, lengths, graphs, normalisers)
        groups = (len(graphs), len(scores) // len(graphs))
        posteriors = torch.zeros_like(scores)
        last = graphs.final * endings.view(groups).index_select(0, graphs.state_graphs)  # (S, K)
        beta = torch.zeros_like(last)
        ends = set(lengths.tolist())
        summing = _summing(emissions.rows, len(graphs) * scores.shape[2])
        buffers = beta.new_empty(ctx.every, 2, len(graphs.node_states), groups[1])
        for block in reversed(range(len(ctx.kept))):
            alpha, first = ctx.kept[block], block * ctx.every
            frames = range(first, min(first + ctx.every, max(ends)))
            for frame in frames:
                alpha = emissions.take(alpha, frame, *buffers[frame - first])
            for frame in reversed(frames):
                if frame + 1 in ends:
                    ending = (lengths == frame + 1).view(groups).index_select(0, graphs.state_graphs)
                    beta = torch.where(ending, last, beta)
                arrived, nodes = buffers[frame - first]
                occupied = nodes.mul_(beta.index_select(0, graphs.node_states))  # (N, K), sums to 1 per utterance
                by_pdf = _product(summing, occupied).view(groups[0], -1, groups[1]).transpose(1, 2)  # (G, K, P)
                posteriors[:, frame] = by_pdf.reshape(len(scores), -1)
                beta = _product(graphs.departures, occupied.div_(arrived.clamp_(min=FLOOR)))
        posteriors.mul_(gradient[:, None, None])
        return posteriors.masked_fill_((endings == 0)[:, None, None], 0.0), None, None


class _Emissions:
    """The network's weights of the nodes, frame by frame, divided by e^normaliser.

    The normalisers (B, T) are the highest scores of a frame at first, so that no exponential overflows; the forward
    recursion adds the logs of its sums to them.
    """

    def __init__(
        self, scores: Tensor, lengths: Tensor, graphs: GraphBatch, normalisers: Tensor | None = None
    ) -> None:
        self.scores = scores
        self.graphs = graphs
        self.rows = graphs.node_graphs * scores.shape[2] + graphs.node_pdfs  # (N,) of a (G P, K) table
        if normalisers is None:
            used = torch.zeros(len(graphs), 1, scores.shape[2], dtype=torch.bool, device=scores.device)
            used.view(-1)[self.rows] = True
            highest = scores.masked_fill(~used, -torch.inf).amax(dim=2).double()
            normalisers = highest.masked_fill(~real_frames(lengths, scores.shape[1]), torch.inf)
        self.normalisers = normalisers

    def take(self, alpha: Tensor, frame: int, arrived: Tensor, nodes: Tensor) -> Tensor:
        """Go on from the states' probabilities (S, K), to those of a frame later, before any rescaling.

        Writes what arrives at the nodes before and after the frame is weighted, (N, K), into the last two arguments.
        """
        weights = (self.scores[:, frame].double() - self.normalisers[:, frame, None]).exp_()
        weights.nan_to_num_(nan=0.0, posinf=0.0)  # padding, frames whose scores are all -inf, and pdfs that are not used
        groups = len(self.graphs)
        table = weights.view(groups, -1, weights.shape[1]).transpose(1, 2).contiguous().flatten(0, 1)
        functional.threshold_(_product(self.graphs.arrivals, alpha, out=arrived), FLOOR, 0.0)
        torch.index_select(table, 0, self.rows, out=nodes).mul_(arrived)
        return _product(self.graphs.merging, nodes)

    def rescale(self, frame: int, sums: Tensor) -> None:
        """Divide all weights of a frame by sums (B,); a sum of zero makes them zero."""
        self.normalisers[:, frame] += torch.where(sums > FLOOR, sums.log(), torch.inf)


def _sparse(rows: Tensor, columns: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a CSR matrix; values of the same place are added."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse")  # torch calls CSR a beta, once per process
        return torch.sparse_coo_tensor(torch.stack([rows, columns]), values, size).coalesce().to_sparse_csr()


def _summing(groups: Tensor, count: int) -> Tensor:
    """Return the (count, N) CSR matrix that adds up what is of the same group."""
    ones = torch.ones(len(groups), dtype=torch.float64, device=groups.device)
    return _sparse(groups, torch.arange(len(groups), device=groups.device), ones, (count, len(groups)))


def _product(matrix: Tensor, dense: Tensor, out: Tensor | None = None) -> Tensor:
    """Multiply sparse (M, N) by dense (N, K) into out (M, K); `matrix @ dense` takes twice as long on a CPU."""
    if out is None:
        out = dense.new_empty(matrix.shape[0], dense.shape[1])
    if dense.shape[1] == 1:
        torch.addmv(out[:, 0], matrix, dense[:, 0], beta=0, out=out[:, 0])
        return out
    return torch.addmm(out, matrix, dense, beta=0, out=out)
