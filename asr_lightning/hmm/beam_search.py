"""Beam search with lattices [Ortmanns, Ney and Aubert 1997; Povey et al. 2012].

The Python wheel of Kaldi exposes the best path only. This search follows all active states of a frame at once, in
arrays, and prunes them as Kaldi's decoder does.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from asr_lightning.hmm.lattice import Arc, Lattice, compact, empty_lattice
from asr_lightning.hmm.search_graph import SearchGraph

MIN_ACTIVE = 200  # states that are followed per frame however bad they are, as Kaldi's decoder does
PRUNE_INTERVAL = 25  # frames from pruning to pruning
ROUNDING = 1e-6  # greatest difference of two sums of the same costs


@dataclass(frozen=True, eq=False)
class _Links:
    """Arcs of the graph between active states.

    Attributes:
        sources: (L,) indices among the active states.
        targets: (L,) the same.
        arcs: (L,) numbers among the emitting or the silent arcs.
        costs: (L,) of the graph and of the frame.
    """

    sources: np.ndarray
    targets: np.ndarray
    arcs: np.ndarray
    costs: np.ndarray

    def select(self, mask: np.ndarray) -> "_Links":
        return _Links(self.sources[mask], self.targets[mask], self.arcs[mask], self.costs[mask])

    def path_costs(self, forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
        """Return the costs (L,) of the best paths through links, from those up to sources and on from targets."""
        return forward[self.sources] + self.costs + backward[self.targets]


@dataclass(frozen=True, eq=False)
class _Column:
    """Active states between two frames.

    Attributes:
        states: (N,) of the graph, in an order in which silent arcs lead forwards.
        forward: (N,) cost of the best path from the start.
        into: From the column before.
        within: Silent ones, among the states.
    """

    states: np.ndarray
    forward: np.ndarray
    incoming: _Links
    silent_links: _Links


class BeamSearch:
    """Beam search for all paths with costs close to that of the best path.

    Args:
        graph: The decoding graph.
        beam: Of costs, above the best at each frame; states within it are followed.
        max_active: States that are followed per frame, at most.
        lattice_beam: Of costs, above those of the best path; paths within it are kept.
    """

    def __init__(self, graph: SearchGraph, beam: float, max_active: int, lattice_beam: float) -> None:
        self.graph = graph
        self.beam = beam
        self.max_active = max_active
        self.lattice_beam = lattice_beam
        self._costs = np.full(len(graph.finals), np.inf)  # by state; infinite when not in use
        self._indices = np.zeros(len(graph.finals), dtype=np.int64)  # by state

    def __call__(self, scores: np.ndarray, words: Sequence[str]) -> Lattice:
        """Return the lattice; one without arcs where no path was found.

        Where no path ends in a final state, all states active at the end count as final, as for Kaldi's decoder.

        Args:
            scores: (T, transition ids) scaled log likelihoods.
            words: What word ids from 1 stand for.
        """
        start = _Links(
            np.zeros(1, dtype=np.int64), np.array([self.graph.start]), np.zeros(1, dtype=np.int64), np.zeros(1)
        )
        columns = [self._arrive(start, np.zeros(1), self.beam)]
        for frame, row in enumerate(scores, 1):
            columns.append(self._advance(columns[-1], row))
            if not len(columns[-1].states):
                return empty_lattice(len(scores))
            if frame % PRUNE_INTERVAL == 0:  # paths beyond the beam are not needed, whatever follows
                recent = columns[-2 * PRUNE_INTERVAL :]
                columns[-len(recent) :] = _prune(recent, -columns[-1].forward, self.lattice_beam)
        columns = _prune(columns, self._final_costs(columns[-1]), self.lattice_beam)
        return compact(*self._nodes_and_arcs(columns, ["", *words]))

    def _advance(self, column: _Column, row: np.ndarray) -> _Column:
        """Return the active states after a frame with log likelihoods (transition ids,)."""
        emitting = self.graph.emitting
        width = self._width(column.forward)
        indices = np.flatnonzero(column.forward <= column.forward.min() + width)
        sources, arcs = emitting.out_of(column.states[indices])
        costs = emitting.costs[arcs] - row[emitting.labels[arcs] - 1]
        arrivals = column.forward[indices[sources]] + costs
        limit = arrivals.min(initial=np.inf) + width
        active = np.isfinite(arrivals) & (arrivals <= limit)
        links = _Links(indices[sources], emitting.targets[arcs], arcs, costs).select(active)
        return self._arrive(links, arrivals[active], limit)

    def _width(self, costs: np.ndarray) -> float:
        """Return the beam width: the largest cost of an active state above the best one."""
        if len(costs) > self.max_active:
            highest = np.partition(costs, self.max_active)[self.max_active] - costs.min()
            if highest < self.beam:
                return float(highest)
        if len(costs) <= MIN_ACTIVE:
            return np.inf
        return max(self.beam, float(np.partition(costs, MIN_ACTIVE)[MIN_ACTIVE] - costs.min()))

    def _arrive(self, links: _Links, arrivals: np.ndarray, limit: float) -> _Column:
        """Return the active states after emitting arcs and all silent ones that follow.

        Args:
            links: The L arcs, with states as targets.
            arrivals: (L,) costs up to their ends.
            limit: Of costs.
        """
        best, indices, silent = self._costs, self._indices, self.graph.silent
        np.minimum.at(best, links.targets, arrivals)
        new_states = np.unique(links.targets)
        reached = [new_states]
        while len(new_states):
            sources, arcs = silent.out_of(new_states)
            costs, targets = best[new_states[sources]] + silent.costs[arcs], silent.targets[arcs]
            better = (costs < best[targets]) & (costs <= limit)
            np.minimum.at(best, targets[better], costs[better])
            new_states = np.unique(targets[better])
            reached.append(new_states)
        states = np.unique(np.concatenate(reached))
        states = states[np.argsort(self.graph.depths[states], kind="stable")]
        indices[states] = np.arange(len(states))
        links = links.select(arrivals <= best[links.targets] + self.lattice_beam)
        sources, arcs = silent.out_of(states)
        silent_links = _Links(sources, silent.targets[arcs], arcs, silent.costs[arcs])
        silent_links = silent_links.select(np.isfinite(best[silent_links.targets]))
        forward = best[states]
        silent_links = silent_links.select(
            forward[silent_links.sources] + silent_links.costs <= best[silent_links.targets] + self.lattice_beam
        )
        best[states] = np.inf
        return _Column(
            states,
            forward,
            replace(links, targets=indices[links.targets]),
            replace(silent_links, targets=indices[silent_links.targets]),
        )

    def _final_costs(self, column: _Column) -> np.ndarray:
        costs = self.graph.finals[column.states]
        return costs if np.isfinite(costs).any() else np.zeros(len(costs))

    def _nodes_and_arcs(self, columns: list[_Column], words: Sequence[str]) -> tuple[list[int], Iterator[Arc]]:
        """Return nodes and arcs of what is left; the last node follows all ends."""
        frames = [frame for frame, column in enumerate(columns) for _ in column.states]

        def arcs() -> Iterator[Arc]:
            previous = node = 0
            for column in columns:
                groups = [(self.graph.silent, column.silent_links, node)]
                if node:
                    groups.append((self.graph.emitting, column.incoming, previous))
                for graph_arcs, links, first in groups:
                    graph_costs = graph_arcs.costs[links.arcs]
                    yield from zip(
                        (first + links.sources).tolist(), (node + links.targets).tolist(),
                        (words[number] for number in graph_arcs.words[links.arcs]),
                        zip(graph_costs.tolist(), (links.costs - graph_costs).tolist(), strict=True), strict=True,
                    )  # fmt: skip
                previous, node = node, node + len(column.states)
            for state, cost in enumerate(self._final_costs(columns[-1]).tolist(), previous):
                if cost < np.inf:
                    yield state, node, "", (cost, 0.0)

        return [*frames, len(columns) - 1], arcs()


def _prune(columns: list[_Column], ends: np.ndarray, lattice_beam: float) -> list[_Column]:
    """Return the parts of columns on paths whose costs are at most `lattice_beam` above the best one's.

    Args:
        columns: One after the other; the first one's arcs come from a column that stays as it is.
        ends: (N,) costs of ending in the states of the last column.
        lattice_beam: Of costs.
    """
    limit = (columns[-1].forward + ends).min() + lattice_beam + ROUNDING
    pruned: list[_Column] = []
    backward = ends
    for number in range(len(columns) - 1, -1, -1):
        column = columns[number]
        backward = _follow_back(column.silent_links, backward)
        kept = column.forward + backward <= limit
        renumbered = np.cumsum(kept) - 1
        silent_links = column.silent_links.select(column.silent_links.path_costs(column.forward, backward) <= limit)
        silent_links = replace(
            silent_links, sources=renumbered[silent_links.sources], targets=renumbered[silent_links.targets]
        )
        incoming = column.incoming.select(kept[column.incoming.targets])
        if number:
            previous_forward = columns[number - 1].forward
            incoming = column.incoming.select(column.incoming.path_costs(previous_forward, backward) <= limit)
            target_costs, backward = backward, np.full(len(previous_forward), np.inf)
            np.minimum.at(backward, incoming.sources, incoming.costs + target_costs[incoming.targets])
        incoming = replace(incoming, targets=renumbered[incoming.targets])
        if pruned:
            links = pruned[-1].incoming
            pruned[-1] = replace(pruned[-1], incoming=replace(links, sources=renumbered[links.sources]))
        pruned.append(_Column(column.states[kept], column.forward[kept], incoming, silent_links))
    return pruned[::-1]


def _follow_back(links: _Links, ends: np.ndarray) -> np.ndarray:
    """Return the lowest costs (N,) of ending: along silent links, then by `ends` (N,)."""
    best = ends.copy()
    while True:
        costs = links.costs + best[links.targets]
        better = costs < best[links.sources]
        if not better.any():
            return best
        np.minimum.at(best, links.sources[better], costs[better])
