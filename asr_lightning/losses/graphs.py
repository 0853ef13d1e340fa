"""Weighted automata over the pdfs of a hidden Markov model, and batches of them as sparse matrices.

The letters: A arcs, S states, G graphs, K utterances that share a graph, and N nodes. A node is a pair of a state and
the pdf with which arcs enter it: per frame, one sparse product takes the states' probabilities along the arcs to the
nodes, the network's scores weight the nodes, and another sparse product adds up the nodes of each state. One graph for
all utterances is a matrix for K = B columns; one graph for each is a block-diagonal matrix for one column.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Graph:
    """A weighted automaton over pdfs, the outputs of the network; every arc consumes one frame.

    Weights are natural logarithms; those below -667 may count as zero.

    Attributes:
        sources: (A,) int64 states that the arcs leave.
        targets: (A,) int64 states that they enter.
        pdfs: (A,) int64 pdfs that score the frame of each arc.
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
                f"expected four (A,) arrays of arcs and two (S,) arrays of states in a graph, got {arcs} and "
                f"{[tuple(self.initial.shape), tuple(self.final.shape)]}"
            )
        for name, numbers, size in [
            ("sources", self.sources, len(self.initial)),
            ("targets", self.targets, len(self.initial)),
            ("pdfs", self.pdfs, math.inf),
        ]:
            if numbers.is_floating_point() or (
                len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < size
            ):
                raise ValueError(f"expected {name} to be integers from 0 to below {size}, got {numbers}")


@dataclass(frozen=True, eq=False)
class GraphBatch:
    """Graphs as sparse matrices, made by `collate`: one for all utterances of a batch, or one for each.

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
        """Return a batch of graphs, on their device.

        Raises:
            ValueError: There is no graph.
        """
        if not graphs:
            raise ValueError("expected at least one graph in a batch, got none")
        sizes = torch.tensor([len(graph.initial) for graph in graphs], device=graphs[0].initial.device)
        states = int(sizes.sum())
        starts = (sizes.cumsum(0) - sizes).tolist()
        sources = torch.cat([graph.sources + start for graph, start in zip(graphs, starts, strict=True)])
        targets = torch.cat([graph.targets + start for graph, start in zip(graphs, starts, strict=True)])
        pdfs = torch.cat([graph.pdfs for graph in graphs])
        weights = torch.cat([graph.log_weights for graph in graphs]).double().exp()
        kinds = int(pdfs.max()) + 1 if len(pdfs) else 1
        nodes, arc_nodes = torch.unique(targets * kinds + pdfs, return_inverse=True)
        node_states = nodes // kinds
        state_graphs = torch.arange(len(graphs), device=sizes.device).repeat_interleave(sizes)
        return cls(
            arrivals=_sparse(arc_nodes, sources, weights, (len(nodes), states)),
            departures=_sparse(sources, arc_nodes, weights, (states, len(nodes))),
            merging=summing(node_states, states),
            members=summing(state_graphs, len(graphs)),
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


def _sparse(rows: Tensor, columns: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a CSR matrix; values at the same row and column are added."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse")  # torch warns once per process that CSR is in beta
        return torch.sparse_coo_tensor(torch.stack([rows, columns]), values, size).coalesce().to_sparse_csr()


def summing(groups: Tensor, count: int) -> Tensor:
    """Return the (count, N) CSR matrix that sums the rows of each group."""
    ones = torch.ones(len(groups), dtype=torch.float64, device=groups.device)
    return _sparse(groups, torch.arange(len(groups), device=groups.device), ones, (count, len(groups)))


def product(matrix: Tensor, dense: Tensor, out: Tensor | None = None) -> Tensor:
    """Multiply sparse (M, N) by dense (N, K) into out (M, K); `matrix @ dense` takes twice as long on a CPU."""
    if out is None:
        out = dense.new_empty(matrix.shape[0], dense.shape[1])
    if dense.shape[1] == 1:
        torch.addmv(out[:, 0], matrix, dense[:, 0], beta=0, out=out[:, 0])
        return out
    return torch.addmm(out, matrix, dense, beta=0, out=out)
