"""Models small enough to enumerate everything that they accept, and computations of Kaldi by hand."""

import math
from collections.abc import Iterator, Sequence
from itertools import combinations, count

import kaldifst
import numpy as np

from asr_lightning.hmm.kaldi_tree import EDGE, LEFT, RIGHT, Node, as_kaldi
from asr_lightning.hmm.model import STATES, HiddenMarkovModel
from asr_lightning.text.lexicon import Lexicon
from asr_lightning.text.ngram import NGram

# Pronunciations that begin others, two of a word, the same of two words; and A BEE says a b b in two ways.
LEXICON = Lexicon(
    {"A": (("a",), ("a", "b")), "BE": (("b",),), "BEE": (("b",), ("b", "b")), "SAY": (("s", "a"), ("a", "s"))}
)
SIL, SPN, A, B, S = range(1, 6)
TEXT = ["A BE", "BE A A", "BEE A BE", "A", "ZOO A", "BE BE", "A BE A"]  # the lexicon has no ZOO, nobody says SAY
NO_ROWS = np.zeros(0, dtype=np.int64)


def asking_trees(phones: int) -> dict[tuple[int, int], Node]:
    """Trees of phones but the first two that ask for both sides, one question below another, and for edges."""
    pdfs = count()

    def leaf() -> Node:
        return Node(NO_ROWS, next(pdfs))

    def ask(side: int, members: set[int], yes: Node, no: Node) -> Node:
        return Node(NO_ROWS, -1, (side, frozenset(members)), [yes, no])

    def tree(phone: int, state: int) -> Node:
        if phone <= SPN or state == 1:
            return leaf()
        if state == 0:
            return ask(LEFT, {EDGE, SIL}, leaf(), ask(RIGHT, {A, B}, leaf(), leaf()))
        return ask(RIGHT, {EDGE, A}, ask(LEFT, {phone}, leaf(), leaf()), leaf())

    return {(phone, state): tree(phone, state) for phone in range(1, phones + 1) for state in range(STATES)}


def walk(node: Node, triphone: Sequence[int]) -> int:
    """The pdf that the answers of a tree lead to."""
    while node.question:
        side, members = node.question
        node = node.children[triphone[side] not in members]
    return node.pdf


def monophone() -> HiddenMarkovModel:
    return counted(HiddenMarkovModel.monophone(LEXICON))


def tied() -> HiddenMarkovModel:
    model = HiddenMarkovModel.monophone(LEXICON)
    return counted(model.with_tree(as_kaldi(asking_trees(len(model.phones)), len(model.phones))))


def counted(model: HiddenMarkovModel) -> HiddenMarkovModel:
    """Give every state another probability to stay; the second phone was never seen."""
    counts = np.random.default_rng(0).integers(5, 40, len(model.pdf_of)).astype(np.float64)
    counts[model.phone_of == SPN] = 1.0
    return model.with_counts(counts)


def transition_log_probs(model: HiddenMarkovModel) -> np.ndarray:
    """Relative frequencies in states that were seen at least five times, else 3/4 for staying."""
    counts = model.transition_counts.copy()
    counts[0] = 0.0
    totals = np.bincount(model.pdf_of, counts)[model.pdf_of]
    return np.log(np.where(totals >= 5, counts / np.maximum(totals, 1), np.where(model.stays, 0.75, 0.25)).clip(1e-9))


def transition_ids(model: HiddenMarkovModel, phones: Sequence[int], durations: Sequence[int]) -> list[int]:
    """The transition ids of phones whose states last for so many frames."""
    padded = [EDGE, *phones, EDGE]
    frames = iter(durations)
    ids = []
    for index in range(len(phones)):
        for state in range(STATES):
            triphone = (*padded[index : index + 3], state)
            ids += [model.transition_id(triphone, True)] * (next(frames) - 1) + [model.transition_id(triphone, False)]
    return ids


def durations(frames: int, states: int) -> Iterator[tuple[int, ...]]:
    """All ways to give each of some states some of the frames."""
    for borders in combinations(range(1, frames), states - 1):
        yield tuple(np.diff([0, *borders, frames]).tolist())


def parses(lexicon: Lexicon, phones: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The word sequences of phones; pauses before words and at the end are no part of them."""
    rest = phones[1:] if phones[:1] == ("SIL",) else phones
    if not rest:
        yield ()
    for word, pronunciations in lexicon.pronunciations.items():
        for pronunciation in pronunciations:
            if rest[: len(pronunciation)] == pronunciation:
                yield from ((word, *words) for words in parses(lexicon, rest[len(pronunciation) :]))


def best_score(ngram: NGram, words: tuple[str, ...]) -> float:
    """The log probability of a sentence, if one may back off everywhere."""
    grams = {}
    for length, level in enumerate(ngram.levels, 1):
        for row, *values in zip(ngram.rows(length).tolist(), level.log_probs, level.backoffs, strict=True):
            grams[tuple(ngram.tokens[id] for id in row)] = values

    def known_context(context: tuple[str, ...]) -> tuple[str, ...]:
        return next(context[n:] for n in range(len(context) + 1) if context[n:] in grams or n == len(context))

    def follow(context: tuple[str, ...], rest: tuple[str, ...]) -> float:
        gram = (*context, *(rest[:1] or ("</s>",)))
        with_gram = backed_off = -math.inf
        if gram in grams:
            next_context = known_context(gram[-(ngram.order - 1) :] if ngram.order > 1 else ())
            with_gram = float(grams[gram][0]) + (follow(next_context, rest[1:]) if rest else 0.0)
        if context:
            backed_off = float(grams[context][1]) + follow(known_context(context[1:]), rest)
        return max(with_gram, backed_off)

    return follow(("<s>",) if ngram.order > 1 else (), words)


class Transducer:
    """A transducer's arcs in plain Python."""

    def __init__(self, fst: kaldifst.StdVectorFst, silent: int = 0) -> None:
        self.start = fst.start
        self.final = [fst.final(state).value for state in kaldifst.StateIterator(fst)]
        self.arcs: dict[tuple[int, int], list[tuple[int, int, float]]] = {}  # by state and what is read
        for state in kaldifst.StateIterator(fst):
            for arc in kaldifst.ArcIterator(fst, state):
                read = 0 if arc.ilabel == silent else arc.ilabel
                self.arcs.setdefault((state, read), []).append((arc.nextstate, arc.olabel, arc.weight.value))

    def outputs(self, reads: Sequence[int]) -> dict[tuple[int, ...], float]:
        """The outputs of paths that read the labels, with the log weight of the best path for each."""
        states = self._silently({(self.start, ()): 0.0})
        for label in reads:
            states = self._silently(self._step(states, label))
        best: dict[tuple[int, ...], float] = {}
        for (state, words), cost in states.items():
            if self.final[state] < math.inf:
                best[words] = max(best.get(words, -math.inf), -cost - self.final[state])
        return best

    def _step(self, states: dict, label: int) -> dict:
        following: dict = {}
        for (state, words), cost in states.items():
            for target, word, weight in self.arcs.get((state, label), ()):
                key = (target, words + (word,) * (word > 0))
                following[key] = min(following.get(key, math.inf), cost + weight)
        return following

    def _silently(self, states: dict) -> dict:
        new = states
        while new:
            new = {key: cost for key, cost in self._step(new, 0).items() if cost < states.get(key, math.inf)}
            states = {**states, **new}
        return states


# A lattice in HTK's format: words on nodes, logs to base 10, scales, a penalty, nodes in no order, long names.
FOREIGN = r"""VERSION=1.0
UTTERANCE="a \"b\" c"
# a comment
base=10.0 lmscale=2.0 wdpenalty=-0.5 acscale=0.1
NODES=4 LINKS=4
I=0 time=0.50 WORD=!NULL
I=7 t=0.00 W=!NULL
I=2 t=0.20 W="\"TIS"
I=3 t=0.25 W=SO
J=0 START=7 END=2 a=-30 l=-0.5
J=1 S=7 E=3 acoustic=-40 language=-0.25
J=2 S=2 E=3 a=-10 l=-1
J=3 S=3 E=0 W=INDEED a=-20
"""
