"""State tying by phonetic decision trees [Young et al. 1994], and their questions.

Every state of every phone is the root of a tree of its own; silence and noise are not split. Leaves are split in the
order of their gains, until there are as many as wanted.
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from asr_lightning.errors import InputError
from asr_lightning.hmm.frame_alignment import phone_runs, subsample
from asr_lightning.hmm.kaldi_tree import EDGE, LEFT, RIGHT, Node, as_kaldi
from asr_lightning.hmm.model import STATES, HiddenMarkovModel

VARIANCE_FLOOR = 1e-2
ARPABET = {
    "vowel": "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW",
    "front vowel": "AE EH EY IH IY",
    "back vowel": "AA AO OW UH UW",
    "high vowel": "IH IY UH UW",
    "low vowel": "AA AE AO AW AY",
    "rounded vowel": "AO OW OY UH UW",
    "diphthong": "AW AY EY OW OY",
    "plosive": "P B T D K G",
    "voiceless plosive": "P T K",
    "voiced plosive": "B D G",
    "affricate": "CH JH",
    "fricative": "F V TH DH S Z SH ZH HH",
    "voiceless fricative": "F TH S SH HH",
    "voiced fricative": "V DH Z ZH",
    "sibilant": "S Z SH ZH CH JH",
    "nasal": "M N NG",
    "liquid or glide": "L R W Y",
    "liquid": "L R ER",
    "glide": "W Y",
    "labial": "P B M F V W",
    "dental or alveolar": "T D N S Z L TH DH",
    "palatal": "SH ZH CH JH Y",
    "velar": "K G NG",
    "voiced consonant": "B D G JH V DH Z ZH M N NG L R W Y",
    "voiceless": "P T K CH F TH S SH HH",
}
STRESSES = "012"

NOT_SPLIT = 2  # phones with the lowest ids: silence and noise


@dataclass(frozen=True)
class Statistics:
    """Sums over frames, by triphone and state.

    Attributes:
        contexts: (N, 4) left, center and right phone, and number of the state; no row twice.
        sums: (N, 1 + 2 D) frames, features, and squares of features, added up.
    """

    contexts: np.ndarray
    sums: np.ndarray


def accumulate(model: HiddenMarkovModel, aligned: Iterable[tuple[np.ndarray, Sequence[int]]]) -> Statistics:
    """Sum features by triphone and state of an alignment.

    Args:
        model: Of the alignments.
        aligned: (T, D) features and T transition ids of each utterance.

    Raises:
        InputError: There is nothing to add up.
    """
    rows_of: dict[tuple[int, ...], int] = {}
    sums: list[np.ndarray] = []
    for features, alignment in aligned:
        ids = np.asarray(alignment, dtype=np.int64)
        contexts = triphones(model, ids)
        distinct, inverse = np.unique(contexts, axis=0, return_inverse=True)
        rows = np.concatenate([np.ones((len(ids), 1)), features, np.square(features, dtype=np.float64)], axis=1)
        added = np.zeros((len(distinct), rows.shape[1]))
        np.add.at(added, inverse.reshape(-1), rows)
        for context, row in zip(map(tuple, distinct.tolist()), added, strict=True):
            index = rows_of.setdefault(context, len(sums))
            if index == len(sums):
                sums.append(row)
            else:
                sums[index] += row
    if not sums:
        raise InputError("expected aligned utterances to tie states by, got none")
    return Statistics(np.array(list(rows_of), dtype=np.int64), np.array(sums))


def triphones(model: HiddenMarkovModel, ids: np.ndarray) -> np.ndarray:
    """Return left, center and right phone and the number of the state of each of T transition ids, (T, 4)."""
    runs = phone_runs(model, ids.tolist())
    phones = [EDGE, *(model.phone_ids[phone] for *_, phone in runs), EDGE]
    lengths = [end - start for start, end, _ in runs]
    contexts = np.array([phones[number : number + 3] for number in range(len(runs))], dtype=np.int64).reshape(-1, 3)
    changes = np.concatenate([[0], np.cumsum(~model.stays[ids])[:-1]])  # transitions to another state before each frame
    return np.concatenate([contexts.repeat(lengths, axis=0), (changes % model.states)[:, None]], axis=1)


def log_likelihood(sums: np.ndarray) -> np.ndarray:
    """Return the log likelihood (…) of frames under their best Gaussian, up to terms that no split changes.

    Args:
        sums: (…, 1 + 2 D) as in `Statistics`.
    """
    size = (sums.shape[-1] - 1) // 2
    count = np.maximum(sums[..., :1], 1e-10)
    mean = sums[..., 1 : 1 + size] / count
    variance = np.maximum(sums[..., 1 + size :] / count - np.square(mean), VARIANCE_FLOOR)
    return -0.5 * sums[..., 0] * np.log(variance).sum(axis=-1)


def clusters(statistics: Statistics, phones: int) -> list[frozenset[int]]:
    """Return sets of similar phones: all clusters of an agglomerative clustering.

    Args:
        statistics: Of all phones; their middle states are compared.
        phones: How many there are.
    """
    middle = statistics.contexts[:, 3] == (statistics.contexts[:, 3].max(initial=0) + 1) // 2
    sums = np.zeros((phones + 1, statistics.sums.shape[1]))
    np.add.at(sums, statistics.contexts[middle, 1], statistics.sums[middle])
    sets = {phone: frozenset([phone]) for phone in range(1, phones + 1)}
    clusters = list(sets.values())
    while len(sets) > 1:
        ids = list(sets)
        alone = log_likelihood(sums[ids])
        joined = log_likelihood(sums[ids][:, None] + sums[ids][None])
        losses = alone[:, None] + alone[None] - joined
        losses[np.tril_indices(len(ids))] = np.inf
        first, second = (ids[index] for index in np.unravel_index(losses.argmin(), losses.shape))
        sets[first] |= sets.pop(second)
        sums[first] += sums[second]
        clusters.append(sets[first])
    return clusters[:-1]


def best_split(
    statistics: Statistics, rows: np.ndarray, questions: np.ndarray, minimum: float
) -> tuple[float, int, int]:
    """Return the gain of the best question, its side (LEFT or RIGHT), and its number; the gain is 0 without one.

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
    statistics: Statistics, phones: int, leaves: int, questions: Sequence[frozenset[int]], minimum: float = 100.0,
    states: int = STATES,
) -> dict[tuple[int, int], Node]:  # fmt: skip
    """Split trees until there are `leaves` leaves, or no split is left.

    Args:
        statistics: Of triphones.
        phones: How many there are.
        leaves: Tied states wanted, in all trees together.
        questions: Sets of phone ids that neighbours are asked for.
        minimum: Frames that a leaf needs.
        states: Of every phone.

    Returns:
        The root for every phone and number of a state; leaves carry their pdfs, which count from 0.
    """
    membership = np.array([[float(phone in members) for phone in range(phones + 1)] for members in questions])
    contexts = statistics.contexts
    roots = {
        (phone, state): Node(np.flatnonzero((contexts[:, 1] == phone) & (contexts[:, 3] == state)))
        for phone in range(1, phones + 1)
        for state in range(states)
    }
    order = count()  # of equal gains the earlier one is first
    queue: list[tuple[float, int, Node, int, int]] = []
    new_nodes = [root for (phone, _), root in roots.items() if phone > NOT_SPLIT]
    for _ in range(leaves - len(roots)):
        for node in new_nodes:
            gain, side, number = best_split(statistics, node.rows, membership, minimum)
            if gain > 0.0:
                heapq.heappush(queue, (-gain, next(order), node, side, number))
        if not queue:
            break
        _, _, node, side, number = heapq.heappop(queue)
        yes = membership[number, contexts[node.rows, side]] > 0.0
        node.question = (side, questions[number])
        new_nodes = node.children = [Node(node.rows[yes]), Node(node.rows[~yes])]
    pdfs = count()
    for root in roots.values():
        _number(root, pdfs)
    return roots


def _number(node: Node, pdfs: Iterator[int]) -> None:
    if node.question is None:
        node.pdf = next(pdfs)
    for child in node.children:
        _number(child, pdfs)


def phonetic_questions(phones: Sequence[str]) -> list[frozenset[int]]:
    """Return sets of phone ids: classes of ARPAbet, stresses, and vowels without regard to stress.

    Of other alphabets only phones named as in ARPAbet are in them; there the questions from the data must do.

    Args:
        phones: Of a `HiddenMarkovModel`; ids count from 1.
    """
    bases = [phone.rstrip(STRESSES) for phone in phones]
    classes = [members.split() for members in ARPABET.values()] + [[base] for base in sorted(set(bases))]
    questions = [frozenset(id for id, base in enumerate(bases, 1) if base in members) for members in classes]
    questions += [frozenset(id for id, phone in enumerate(phones, 1) if phone.endswith(stress)) for stress in STRESSES]
    return list(dict.fromkeys(question for question in questions if question))


def tie_states(
    model: HiddenMarkovModel,
    statistics: Statistics,
    leaves: int,
    phonetic: Sequence[frozenset[int]] = (),
    minimum: float = 100.0,
) -> HiddenMarkovModel:
    """Return the model with triphones tied to about so many states.

    Args:
        model: Of monophones; the statistics are of its alignments.
        statistics: Of triphones.
        leaves: Tied states wanted; there may be fewer, if data are few.
        phonetic: Sets of phones to ask for, besides clusters of similar phones and the edges of utterances.
        minimum: Frames that a tied state needs.
    """
    phones = len(model.phones)
    questions = list(dict.fromkeys([*clusters(statistics, phones), *phonetic, frozenset([EDGE])]))
    return model.with_tree(as_kaldi(grow(statistics, phones, leaves, questions, minimum, model.states), phones))


def subsampled(model: HiddenMarkovModel, chain: HiddenMarkovModel, alignment: Sequence[int]) -> list[int]:
    """Return an alignment in the frames and transition ids of a model of the same phones with fewer frames.

    Args:
        model: Of the alignment.
        chain: With one state a phone.
        alignment: T transition ids.

    Returns:
        T / chain.subsampling ids, rounded up; none where there are more phones than that.
    """
    runs = phone_runs(model, alignment)
    phones = [EDGE, *(model.phone_ids[phone] for *_, phone in runs), EDGE]
    ids: list[int] = []
    for number, length in enumerate(subsample([end - start for start, end, _ in runs], chain.subsampling)):
        triphone = (*phones[number : number + 3], 0)
        ids += [chain.transition_id(triphone, stays=True)] * (length - 1)
        ids.append(chain.transition_id(triphone, stays=False))
    return ids


def convert(model: HiddenMarkovModel, tied: HiddenMarkovModel, alignment: Sequence[int]) -> list[int]:
    """Return the same alignment in the transition ids of a model of the same phones with another tree."""
    ids = np.asarray(alignment, dtype=np.int64)
    contexts = triphones(model, ids).tolist()
    return [
        tied.transition_id(context, stays) for context, stays in zip(contexts, model.stays[ids].tolist(), strict=True)
    ]
