"""Word lattices."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import kaldifst
import numpy as np

from asr_lightning.errors import InputError

FIRST_SHARE = 1 / 64  # share of the span of costs that the first search for n best sentences covers
MARGIN = 1.001  # on the bound: sums are of single precision
DELTA = 1e-6  # costs that differ by less are the same to OpenFst
Cost = tuple[float, float]  # of the graph, of the frames
Arc = tuple[int, int, str, Cost]  # source, target, word, costs


@dataclass(frozen=True, eq=False)
class Lattice:
    """A lattice of N nodes and A arcs, from the first node to the last; arcs lead to nodes of a higher index.

    A word's arc lies where the decoding graph names the word, which is within it or near it.

    Attributes:
        frames: (N,) number of frames before each node.
        sources: (A,) nodes.
        targets: (A,) nodes.
        words: (A,) as the lexicon writes them; empty where there is none.
        graph_costs: (A,) negative log probabilities of transitions, pronunciation and language.
        acoustic_costs: (A,) negative log likelihoods of frames, scaled as the search scaled them.

    Raises:
        InputError: The arrays do not fit each other, or arcs do not lead forwards.
    """

    frames: np.ndarray
    sources: np.ndarray
    targets: np.ndarray
    words: tuple[str, ...]
    graph_costs: np.ndarray
    acoustic_costs: np.ndarray

    def __post_init__(self) -> None:
        lengths = {len(self.sources), len(self.targets), len(self.words)}
        lengths |= {len(self.graph_costs), len(self.acoustic_costs)}
        if len(lengths) > 1:
            raise InputError(f"expected a source, target, word and costs of every arc, got {sorted(lengths)} of them")
        forwards = (self.sources < self.targets) & (self.sources >= 0) & (self.targets < len(self.frames))
        if not forwards.all():
            arc = int(forwards.argmin())
            raise InputError(
                f"expected arcs that lead forwards among nodes 0 to {len(self.frames) - 1}, got arc {arc} from node "
                f"{self.sources[arc]} to {self.targets[arc]}"
            )

    @property
    def costs(self) -> np.ndarray:
        """(A,) of both kinds together."""
        return self.graph_costs + self.acoustic_costs


def empty_lattice(frames: int) -> Lattice:
    """Return the lattice without a path: two nodes and no arc."""
    empty = np.zeros(0, dtype=np.int64)
    return Lattice(np.array([0, frames]), empty, empty, (), np.zeros(0), np.zeros(0))


def compact(frames: Sequence[int] | np.ndarray, arcs: Iterable[Arc]) -> Lattice:
    """Return a lattice of fewer nodes in which the same sentences have the same lowest costs.

    A node is removed, and every arc into it is joined with every one out of it, where this adds no more arcs than it
    removes and joins no two words; of arcs with the same ends and word the cheapest stays.

    Args:
        frames: (N,) as of a `Lattice`; the first and the last node stay.
        arcs: That lead forwards.
    """
    last = len(frames) - 1
    outgoing: list[dict[tuple[int, str], Cost]] = [{} for _ in frames]
    incoming: list[dict[tuple[int, str], Cost]] = [{} for _ in frames]
    for arc in arcs:
        _add(outgoing, incoming, arc)
    queue = deque(range(1, last))
    queued = [False, *[True] * (last - 1), False]
    while queue:
        node = queue.popleft()
        queued[node] = False
        if _is_removable(outgoing, incoming, node):
            for neighbour in _bypass(outgoing, incoming, node):
                if 0 < neighbour < last and not queued[neighbour]:
                    queued[neighbour] = True
                    queue.append(neighbour)
    nodes = [node for node in range(last + 1) if node in (0, last) or outgoing[node]]
    numbers = {node: number for number, node in enumerate(nodes)}
    rows = sorted(
        (numbers[node], numbers[target], word, *cost)
        for node in nodes
        for (target, word), cost in outgoing[node].items()
    )
    sources, targets, words, graph, acoustic = zip(*rows, strict=True) if rows else ((),) * 5
    return Lattice(
        np.asarray(frames, dtype=np.int64)[nodes], np.array(sources, dtype=np.int64), np.array(targets, dtype=np.int64),
        tuple(words), np.array(graph, dtype=np.float64), np.array(acoustic, dtype=np.float64),
    )  # fmt: skip


def _add(outgoing: list[dict[tuple[int, str], Cost]], incoming: list[dict[tuple[int, str], Cost]], arc: Arc) -> None:
    source, target, word, cost = arc
    cheapest = outgoing[source].get((target, word))
    if cheapest is None or sum(cost) < sum(cheapest):
        outgoing[source][target, word] = incoming[target][source, word] = cost


def _is_removable(
    outgoing: list[dict[tuple[int, str], Cost]], incoming: list[dict[tuple[int, str], Cost]], node: int
) -> bool:
    entering, leaving = incoming[node], outgoing[node]
    if any(word for _, word in entering) and any(word for _, word in leaving):
        return False
    removed = len(entering) + len(leaving)
    if len(entering) * len(leaving) <= removed:
        return True
    return removed >= sum(
        (target, left or right) not in outgoing[source] for source, left in entering for target, right in leaving
    )


def _bypass(
    outgoing: list[dict[tuple[int, str], Cost]], incoming: list[dict[tuple[int, str], Cost]], node: int
) -> set[int]:
    """Join the arcs into a node with those out of it; return the nodes at their other ends."""
    entering, leaving = incoming[node], outgoing[node]
    incoming[node], outgoing[node] = {}, {}
    for source, word in entering:
        del outgoing[source][node, word]
    for target, word in leaving:
        del incoming[target][node, word]
    for (source, left), first in entering.items():
        for (target, right), second in leaving.items():
            _add(outgoing, incoming, (source, target, left or right, (first[0] + second[0], first[1] + second[1])))
    return {source for source, _ in entering} | {target for target, _ in leaving}


def best_sentences(lattice: Lattice, count: int) -> list[tuple[tuple[str, ...], float]]:
    """Return the cheapest sentences, each once, with the cost of its cheapest path; cheapest first.

    Exact: OpenFst removes silent arcs, determinizes so far as costs stay below a bound [Mohri 2002], which grows
    until there are enough sentences, and looks for the shortest paths.

    Args:
        lattice: Any.
        count: Of sentences, at most.
    """
    words = ("", *sorted(set(lattice.words) - {""}))
    fst, best, span = _acceptor(lattice, words)
    if best == np.inf:
        return []
    kaldifst.rmepsilon(fst)
    width = FIRST_SHARE * span
    paths: list[tuple[list[int], float]] = []
    while len(paths) < count:
        determinized = kaldifst.determinize(fst, delta=DELTA, weight=str(MARGIN * width + DELTA))
        paths = list(_read_paths(kaldifst.shortest_path(determinized, n=count)))
        if width >= span:
            break
        width *= 2
    sentences = [(tuple(words[label] for label in labels), best + cost) for labels, cost in paths]
    return sorted(sentences, key=lambda sentence: (sentence[1], sentence[0]))


def _acceptor(lattice: Lattice, words: Sequence[str]) -> tuple[kaldifst.StdVectorFst, float, float]:
    """Return an acceptor of indices in `words`, its lowest cost, and how much higher that of a path can be.

    Arcs weigh what they cost beyond the best path on: sums stay small, so that single precision is enough.
    """
    labels = {word: number for number, word in enumerate(words)}
    best, span = [np.inf] * len(lattice.frames), [0.0] * len(lattice.frames)  # of the paths on from each node
    best[-1] = 0.0
    order = np.argsort(-lattice.sources, kind="stable")
    sources, targets, costs = (array[order].tolist() for array in (lattice.sources, lattice.targets, lattice.costs))
    for source, target, cost in zip(sources, targets, costs, strict=True):
        best[source] = min(best[source], cost + best[target])
    fst = kaldifst.StdVectorFst()
    for _ in lattice.frames:
        fst.add_state()
    fst.start = 0
    fst.set_final(len(lattice.frames) - 1, 0.0)
    for arc, source, target, cost in zip(order.tolist(), sources, targets, costs, strict=True):
        if cost + best[target] < np.inf:
            extra = cost + best[target] - best[source]
            span[source] = max(span[source], extra + span[target])
            label = labels[lattice.words[arc]]
            fst.add_arc(source, kaldifst.StdArc(label, label, extra, target))
    return fst, best[0], span[0]


def _read_paths(fst: kaldifst.StdVectorFst) -> Iterator[tuple[list[int], float]]:
    """Give the labels and the weight of paths that share no state but the first.

    `kaldifst.convert_nbest_to_vector` loses the weight of a path without arcs.
    """
    for first in [None, *kaldifst.ArcIterator(fst, fst.start)]:
        labels, weight, state, arc = [], 0.0, fst.start, first
        while arc is not None:
            labels += [arc.ilabel] if arc.ilabel else []
            weight += arc.weight.value
            state = arc.nextstate
            arc = next(iter(kaldifst.ArcIterator(fst, state)), None)
        if fst.final(state).value < np.inf:
            yield labels, weight + fst.final(state).value
