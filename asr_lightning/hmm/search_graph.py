"""A decoding graph as arrays, to look up the arcs of many states at once."""

from dataclasses import dataclass
from functools import lru_cache

import kaldifst
import numpy as np

from asr_lightning.errors import InputError


@dataclass(frozen=True, eq=False)
class Arcs:
    """Some arcs of a graph, by the state that they leave.

    Attributes:
        starts: (S + 1,) where the arcs of each state start.
        targets: (A,) states.
        labels: (A,) what they read; transition ids, from 1.
        words: (A,) word ids; 0 for none.
        costs: (A,) negative log probabilities.
    """

    starts: np.ndarray
    targets: np.ndarray
    labels: np.ndarray
    words: np.ndarray
    costs: np.ndarray

    def out_of(self, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the arcs that leave states: the index in `states` of each arc's source, and the arc's number."""
        firsts = self.starts[states]
        counts = self.starts[states + 1] - firsts
        sources = np.repeat(np.arange(len(states)), counts)
        return sources, np.arange(len(sources)) + np.repeat(firsts - np.cumsum(counts) + counts, counts)


@dataclass(frozen=True, eq=False)
class SearchGraph:
    """A decoding graph as arrays.

    Attributes:
        start: The state where paths begin.
        finals: (S,) cost of ending in each state.
        depths: (S,) silent arcs in a row that lead to each state, at most.
        emitting: The arcs that consume a frame.
        silent: Those that consume none.
    """

    start: int
    finals: np.ndarray
    depths: np.ndarray
    emitting: Arcs
    silent: Arcs


@lru_cache(maxsize=1)
def search_graph(graph: kaldifst.StdVectorFst) -> SearchGraph:
    """Return a graph as arrays; those of the last graph are cached, so it must not change.

    Args:
        graph: From transition ids to word ids.

    Raises:
        InputError: Arcs that consume no frame form a cycle.
    """
    states = range(graph.num_states)
    rows = [
        (state, arc.nextstate, arc.ilabel, arc.olabel, arc.weight.value)
        for state in states
        for arc in kaldifst.ArcIterator(graph, state)
    ]
    columns = np.array(rows, dtype=np.float64).reshape(-1, 5)
    emitting, silent = (_arcs(columns[mask], len(states)) for mask in (columns[:, 2] > 0, columns[:, 2] == 0))
    finals = np.array([graph.final(state).value for state in states])
    return SearchGraph(graph.start, finals, _depths(silent, len(states)), emitting, silent)


def _arcs(columns: np.ndarray, states: int) -> Arcs:
    sources, targets, labels, words = columns[:, :4].astype(np.int64).T
    starts = np.concatenate([[0], np.bincount(sources, minlength=states).cumsum()])
    return Arcs(starts, targets, labels, words, columns[:, 4])


def _depths(silent: Arcs, states: int) -> np.ndarray:
    depths = np.zeros(states, dtype=np.int64)
    pending = np.bincount(silent.targets, minlength=states)  # arcs into each state that were not followed yet
    ready = np.flatnonzero(pending == 0)
    done = 0
    while len(ready):
        done += len(ready)
        sources, arcs = silent.out_of(ready)
        targets = silent.targets[arcs]
        np.maximum.at(depths, targets, depths[ready][sources] + 1)
        np.subtract.at(pending, targets, 1)
        ready = np.unique(targets[pending[targets] == 0])
    if done < states:
        raise InputError(
            f"expected a graph whose arcs without a transition id form no cycle, found {states - done} states in or "
            "behind one"
        )
    return depths
