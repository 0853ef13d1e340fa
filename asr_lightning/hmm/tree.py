"""Tying the states of phones in context: decision trees that split where data become most likely [Young et al. 1994].

Every state of every phone is the root of a tree of its own; silence and noise are not split. Leaves are split in the
order of what is gained, until there are as many as wanted.
"""

import heapq
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import kaldi_hmm_gmm as kaldi
import numpy as np

from asr_lightning.hmm.alignment import phone_runs
from asr_lightning.hmm.model import STATES, HiddenMarkovModel, read_tree

VARIANCE_FLOOR = 1e-2
LEFT, CENTRE, RIGHT, STATE = 0, 1, 2, -1  # Kaldi's keys of events
EDGE = 0  # in the place of a phone before the first and behind the last one
NOT_SPLIT = 2  # phones with the lowest ids: silence and noise

Question = tuple[int, frozenset[int]]  # LEFT or RIGHT, and phone ids


@dataclass(frozen=True)
class Statistics:
    """Sums over frames, by triphone and state.

    Attributes:
        contexts: (N, 4) left, centre and right phone, and number of the state; no row twice.
        sums: (N, 1 + 2 D) frames, features, and squares of features, added up.
    """

    contexts: np.ndarray
    sums: np.ndarray


def accumulate(model: HiddenMarkovModel, aligned: Iterable[tuple[np.ndarray, Sequence[int]]]) -> Statistics:
    """Add up features by the triphone and state that alignments say they belong to.

    Args:
        model: Of which the alignments are.
        aligned: (T, D) features and T transition ids of each utterance.
    """
    places: dict[tuple[int, ...], int] = {}
    sums: list[np.ndarray] = []
    for features, alignment in aligned:
        ids = np.asarray(alignment, dtype=np.int64)
        contexts = triphones(model, ids)
        distinct, inverse = np.unique(contexts, axis=0, return_inverse=True)
        rows = np.concatenate([np.ones((len(ids), 1)), features, np.square(features, dtype=np.float64)], axis=1)
        added = np.zeros((len(distinct), rows.shape[1]))
        np.add.at(added, inverse.reshape(-1), rows)
        for context, row in zip(map(tuple, distinct.tolist()), added, strict=True):
            place = places.setdefault(context, len(sums))
            if place == len(sums):
                sums.append(row)
            else:
                sums[place] += row
    return Statistics(np.array(list(places), dtype=np.int64).reshape(-1, 4), np.array(sums))


def triphones(model: HiddenMarkovModel, ids: np.ndarray) -> np.ndarray:
    """Return left, centre and right phone and the number of the state of each of T transition ids, (T, 4)."""
    runs = phone_runs(model, ids.tolist())
    phones = [EDGE, *(model.phone_ids[phone] for *_, phone in runs), EDGE]
    lengths = [end - start for start, end, _ in runs]
    around = np.array([phones[number : number + 3] for number in range(len(runs))], dtype=np.int64).reshape(-1, 3)
    moved = np.concatenate([[0], np.cumsum(~model.stays[ids])[:-1]])  # transitions to another state before each frame
    return np.concatenate([around.repeat(lengths, axis=0), (moved % STATES)[:, None]], axis=1)


def log_likelihood(sums: np.ndarray) -> np.ndarray:
    """Return the log likelihood (…) of frames under the Gaussian that fits them best, but for what splits leave alone.

    Args:
        sums: (…, 1 + 2 D) as in `Statistics`.
    """
    size = (sums.shape[-1] - 1) // 2
    count = np.maximum(sums[..., :1], 1e-10)
    mean = sums[..., 1 : 1 + size] / count
    variance = np.maximum(sums[..., 1 + size :] / count - np.square(mean), VARIANCE_FLOOR)
    return -0.5 * sums[..., 0] * np.log(variance).sum(axis=-1)


def clusters(statistics: Statistics, phones: int) -> list[frozenset[int]]:
    """Return sets of phones that sound alike: all that come up when the closest two are joined again and again.

    Args:
        statistics: Whose middle states are compared.
        phones: How many there are.
    """
    middle = statistics.contexts[:, 3] == STATES // 2
    sums = np.zeros((phones + 1, statistics.sums.shape[1]))
    np.add.at(sums, statistics.contexts[middle, 1], statistics.sums[middle])
    sets = {phone: frozenset([phone]) for phone in range(1, phones + 1)}
    found = list(sets.values())
    while len(sets) > 1:
        ids = list(sets)
        alone = log_likelihood(sums[ids])
        joined = log_likelihood(sums[ids][:, None] + sums[ids][None])
        lost = alone[:, None] + alone[None] - joined
        lost[np.tril_indices(len(ids))] = np.inf
        one, other = (ids[place] for place in np.unravel_index(lost.argmin(), lost.shape))
        sets[one] |= sets.pop(other)
        sums[one] += sums[other]
        found.append(sets[one])
    return found[:-1]


@dataclass
class Node:
    """A leaf with its pdf, or a question with the nodes for yes and no."""

    rows: np.ndarray
    pdf: int = -1
    question: Question | None = None
    children: list["Node"] = field(default_factory=list)


def best_split(
    statistics: Statistics, rows: np.ndarray, questions: np.ndarray, minimum: float
) -> tuple[float, int, int]:
    """Return what the best question gains, whether it asks LEFT or RIGHT, and its number; the gain is 0 without one.

    Args:
        statistics: Of all contexts.
        rows: (n,) of a leaf.
        questions: (Q, phones + 1) bool, the sets that are asked for.
        minimum: Frames that both sides need.
    """
    sums = statistics.sums[rows]
    total = sums.sum(axis=0)
    best = (0.0, LEFT, -1)
    for side in (LEFT, RIGHT):
        yes = questions[:, statistics.contexts[rows, side]] @ sums  # (Q, 1 + 2 D)
        no = total - yes
        gains = log_likelihood(yes) + log_likelihood(no) - log_likelihood(total)
        gains[(yes[:, 0] < minimum) | (no[:, 0] < minimum)] = 0.0
        if gains.max(initial=0.0) > best[0]:
            best = (float(gains.max()), side, int(gains.argmax()))
    return best


def grow(
    statistics: Statistics, phones: int, leaves: int, questions: Sequence[frozenset[int]], minimum: float = 100.0
) -> dict[tuple[int, int], Node]:
    """Split trees until there are so many leaves, or no split is left.

    Args:
        statistics: Of triphones.
        phones: How many there are.
        leaves: Tied states wanted, in all trees together.
        questions: Sets of phone ids that neighbours are asked for.
        minimum: Frames that a leaf needs.

    Returns:
        The root for every phone and number of a state; leaves carry their pdfs, which count from 0.
    """
    asked = np.zeros((len(questions), phones + 1))
    for number, members in enumerate(questions):
        asked[number, list(members)] = 1.0
    contexts = statistics.contexts
    roots = {}
    waiting: list[tuple[float, int, Node, tuple[float, int, int]]] = []

    def consider(node: Node) -> None:
        split = best_split(statistics, node.rows, asked, minimum)
        if split[0] > 0.0:
            heapq.heappush(waiting, (-split[0], len(waiting) + 1_000_000 * len(node.rows), node, split))

    for phone in range(1, phones + 1):
        for state in range(STATES):
            root = Node(np.flatnonzero((contexts[:, 1] == phone) & (contexts[:, 3] == state)))
            roots[phone, state] = root
            if phone > NOT_SPLIT and len(root.rows):
                consider(root)
    count = len(roots)
    while waiting and count < leaves:
        _, _, node, (_, side, number) = heapq.heappop(waiting)
        yes = asked[number, contexts[node.rows, side]] > 0.0
        node.question = (side, questions[number])
        node.children = [Node(node.rows[yes]), Node(node.rows[~yes])]
        count += 1
        for child in node.children:
            consider(child)
    pdfs = iter(range(count))
    for root in roots.values():
        _number(root, pdfs)
    return roots


def _number(node: Node, pdfs: Iterable[int]) -> None:
    if node.question is None:
        node.pdf = next(iter(pdfs))
    for child in node.children:
        _number(child, pdfs)


def as_kaldi(roots: dict[tuple[int, int], Node], phones: int) -> kaldi.ContextDependency:
    """Return the trees as Kaldi's own, by way of its binary form."""
    tables = []
    for phone in range(1, phones + 1):
        states = [_event_map(roots[phone, state]) for state in range(STATES)]
        tables.append(_table(STATE, states))
    whole = _table(CENTRE, [b"NULL ", *tables])
    return read_tree(b"ContextDependency " + _int(3) + _int(CENTRE) + b"ToPdf " + whole + b"EndContextDependency ")


def _event_map(node: Node) -> bytes:
    if node.question is None:
        return b"CE " + _int(node.pdf)
    key, members = node.question
    values = sorted(members)
    asked = struct.pack(f"<bi{len(values)}i", 4, len(values), *values)
    return b"SE " + _int(key) + asked + b"{ " + b"".join(map(_event_map, node.children)) + b"} "


def _table(key: int, entries: Sequence[bytes]) -> bytes:
    return b"TE " + _int(key) + struct.pack("<bI", -4, len(entries)) + b"( " + b"".join(entries) + b") "


def _int(number: int) -> bytes:
    return struct.pack("<bi", 4, number)


def tie(
    model: HiddenMarkovModel,
    statistics: Statistics,
    leaves: int,
    phonetic: Sequence[frozenset[int]] = (),
    minimum: float = 100.0,
) -> HiddenMarkovModel:
    """Return the model with triphones tied to about so many states.

    Args:
        model: Of monophones, of whose alignments the statistics are.
        statistics: Of triphones.
        leaves: Tied states wanted; there may be fewer, if data are few.
        phonetic: Sets of phones to ask for, besides those that sound alike and the edges of utterances.
        minimum: Frames that a tied state needs.
    """
    count = len(model.phones)
    questions = list(dict.fromkeys([*clusters(statistics, count), *phonetic, frozenset([EDGE])]))
    return model.with_tree(as_kaldi(grow(statistics, count, leaves, questions, minimum), count))


def convert(model: HiddenMarkovModel, tied: HiddenMarkovModel, alignment: Sequence[int]) -> list[int]:
    """Return the same alignment in the transition ids of a model of the same phones with another tree."""
    ids = np.asarray(alignment, dtype=np.int64)
    contexts = triphones(model, ids).tolist()
    return [
        tied.transition_id(context, stays) for context, stays in zip(contexts, model.stays[ids].tolist(), strict=True)
    ]
