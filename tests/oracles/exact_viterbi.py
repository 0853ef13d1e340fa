"""The best path through a graph of HMM states, exactly [Viterbi 1967]: what Kaldi's beam search is compared with."""

import numpy as np
from torch import Tensor

from asr_lightning.losses.graphs import Graph


def best_path(scores: Tensor, graph: Graph) -> tuple[list[int], float]:
    """Return the path of the highest weight, exactly.

    Args:
        scores: (T, P) log weights of the pdfs, as `total_log_probability` takes them.
        graph: Any; of arcs that are equally good the first in its order is taken.

    Returns:
        T arc numbers and the log weight of the path; no arcs and -inf where no path has T frames.
    """
    frames = scores.detach().double().cpu().numpy()
    by_target = np.argsort(graph.targets.cpu().numpy(), kind="stable")  # (A,) arcs
    sources, targets, pdfs = (array.cpu().numpy()[by_target] for array in (graph.sources, graph.targets, graph.pdfs))
    weights = graph.log_weights.detach().double().cpu().numpy()[by_target]
    entered, starts = np.unique(targets, return_index=True)  # states with arcs into them, where their arcs start
    entries = np.repeat(np.arange(len(entered)), np.diff(starts, append=len(targets)))  # (A,)
    best = graph.initial.detach().double().cpu().numpy()  # (S,)
    incoming = np.zeros((len(frames), len(best)), dtype=np.int64)  # the arc into each state, by index in `by_target`
    for frame, row in enumerate(frames):
        arrivals = best[sources] + weights + row[pdfs]
        best = np.full_like(best, -np.inf)
        if len(targets):
            highest = np.maximum.reduceat(arrivals, starts)
            best[entered] = highest
            indices = np.where(arrivals == highest[entries], np.arange(len(arrivals)), len(arrivals))
            incoming[frame, entered] = np.minimum.reduceat(indices, starts)
    ends = best + graph.final.detach().double().cpu().numpy()
    if ends.max() == -np.inf:
        return [], -np.inf
    state, path = int(ends.argmax()), []
    for row in incoming[::-1]:
        path.append(int(by_target[row[state]]))
        state = int(sources[row[state]])
    return path[::-1], float(ends.max())
