import math
from collections import Counter
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest

from asr_lightning.errors import InputError
from asr_lightning.hmm.frame_alignment import phone_runs
from asr_lightning.hmm.graph import expand_to_states, sentence_transducer
from asr_lightning.hmm.kaldi_tree import EDGE, LEFT, RIGHT, Node
from asr_lightning.hmm.model import STATES, HiddenMarkovModel
from asr_lightning.hmm.tree import (
    Statistics,
    accumulate,
    best_split,
    clusters,
    convert,
    grow,
    log_likelihood,
    subsampled,
    tie_states,
    triphones,
)
from asr_lightning.text.lexicon import Lexicon
from tests.support.small_models import (
    SIL,
    SPN,
    A,
    B,
    S,
    Transducer,
    asking_trees,
    monophone,
    tied,
    transition_ids,
    walk,
)

PHONES = 5
QUESTIONS = [frozenset(phones) for phones in ([EDGE], [SIL], [A], [B, S], [A, B], [SIL, A, S], [SPN])]


def gathered(frames: np.ndarray) -> np.ndarray:
    return np.concatenate([[len(frames)], frames.sum(axis=0), np.square(frames).sum(axis=0)])


def random_statistics(seed: int, rows: int = 60) -> tuple[Statistics, list[np.ndarray]]:
    """Sums of frames of random triphones, whose means depend on the neighbours; and the frames."""
    random = np.random.default_rng(seed)
    everything = list(product(range(PHONES + 1), range(1, PHONES + 1), range(PHONES + 1), range(STATES)))
    contexts = np.array([everything[n] for n in sorted(random.permutation(len(everything))[:rows])])
    effects = random.standard_normal((2, PHONES + 1, 2))
    frames = [
        random.standard_normal((random.integers(1, 30), 2)) + effects[0, left] + effects[1, right]
        for left, _, right, _ in contexts
    ]
    return Statistics(contexts, np.array([gathered(group) for group in frames])), frames


def by_definition(frames: np.ndarray) -> float:
    """The log likelihood of frames under the best Gaussian, without the terms in 2 pi and in squares of distances."""
    variance = np.maximum(frames.var(axis=0), 1e-2)
    return -0.5 * len(frames) * sum(map(math.log, variance))


def test_log_likelihoods_are_those_of_the_best_gaussian() -> None:
    random = np.random.default_rng(0)
    for count in (5, 10, 500):
        frames = random.standard_normal((count, 3)) * [0.5, 1.0, 4.0] + [1.0, -20.0, 0.0]
        mean, variance = frames.mean(axis=0), frames.var(axis=0)
        densities = np.exp(-0.5 * (frames - mean) ** 2 / variance) / np.sqrt(2 * math.pi * variance)
        constant = 0.5 * frames.size * (1 + math.log(2 * math.pi))
        assert log_likelihood(gathered(frames)) == pytest.approx(np.log(densities).sum() + constant)
    still = np.full((7, 3), 5.0)
    assert log_likelihood(np.stack([gathered(still), np.zeros(7)])) == pytest.approx([by_definition(still), 0.0])


def splits(
    statistics: Statistics, frames: list[np.ndarray], rows: Sequence[int], minimum: float
) -> dict[tuple[int, frozenset[int]], float]:
    """What all questions of both sides gain, where they leave enough on both sides."""
    gains = {}
    for side, question in product((LEFT, RIGHT), QUESTIONS):
        yes = [frames[row] for row in rows if statistics.contexts[row, side] in question]
        no = [frames[row] for row in rows if statistics.contexts[row, side] not in question]
        if sum(map(len, yes)) >= minimum and sum(map(len, no)) >= minimum:
            both = by_definition(np.concatenate(yes)) + by_definition(np.concatenate(no))
            gains[side, question] = both - by_definition(np.concatenate(yes + no))
    return gains


ASKED = np.array([[phone in question for phone in range(PHONES + 1)] for question in QUESTIONS], dtype=np.float64)


@pytest.mark.parametrize("minimum", [1.0, 60.0, 200.0])
def test_no_split_gains_more(minimum: float) -> None:
    sides = Counter()
    for seed in range(10):
        statistics, frames = random_statistics(seed)
        rows = np.flatnonzero(statistics.contexts[:, 1] % 2 == seed % 2)
        expected = splits(statistics, frames, rows.tolist(), minimum)
        gain, side, number = best_split(statistics, rows, ASKED, minimum)
        assert gain == pytest.approx(max(expected.values(), default=0.0))
        if expected:
            assert expected[side, QUESTIONS[number]] == pytest.approx(gain) and gain > 0.0
            sides[side] += 1
    assert set(sides) == {LEFT, RIGHT} and sides.total() >= 5


def test_no_split_leaves_too_little() -> None:
    statistics, _ = random_statistics(0)
    total = statistics.sums[:, 0].sum()
    assert best_split(statistics, np.arange(60), ASKED, total / 2 + 1) == (0.0, LEFT, -1)


def leaves_of(node: Node) -> list[Node]:
    return [leaf for child in node.children for leaf in leaves_of(child)] if node.question else [node]


def grown_by_hand(statistics: Statistics, frames: list[np.ndarray], leaves: int, minimum: float) -> set[frozenset[int]]:
    """The rows of every leaf, when that of all splits which gains most is made again and again."""
    indices = range(len(frames))
    roots = {
        (phone, state): frozenset(row for row in indices if tuple(statistics.contexts[row, [1, 3]]) == (phone, state))
        for phone in range(1, PHONES + 1)
        for state in range(STATES)
    }
    fixed = [rows for (phone, _), rows in roots.items() if phone in (SIL, SPN)]
    parts = [rows for (phone, _), rows in roots.items() if phone not in (SIL, SPN)]
    while len(fixed) + len(parts) < leaves:
        gains = [
            (gain, number, *split)
            for number, rows in enumerate(parts)
            for split, gain in splits(statistics, frames, sorted(rows), minimum).items()
            if gain > 0.0
        ]
        if not gains:
            break
        _, number, side, question = max(gains, key=lambda entry: entry[0])
        rows = parts.pop(number)
        yes = frozenset(row for row in rows if statistics.contexts[row, side] in question)
        parts += [yes, rows - yes]
    return {rows for rows in [*fixed, *parts] if rows}


@pytest.mark.parametrize(("leaves", "count"), [(0, 15), (15, 15), (16, 16), (24, 24), (1000, None)])
def test_trees_grow_where_most_is_gained(leaves: int, count: int | None) -> None:
    for seed in range(3):
        statistics, frames = random_statistics(seed, rows=300)
        roots = grow(statistics, PHONES, leaves, QUESTIONS, minimum=40.0)
        nodes = [leaf for root in roots.values() for leaf in leaves_of(root)]
        assert sorted(leaf.pdf for leaf in nodes) == list(range(count or len(nodes)))
        expected = grown_by_hand(statistics, frames, leaves, minimum=40.0)
        assert {frozenset(leaf.rows.tolist()) for leaf in nodes if len(leaf.rows)} == expected
        assert count or len(nodes) > 40
        for root in roots.values():
            for leaf in leaves_of(root) if root.question else ():
                assert statistics.sums[leaf.rows, 0].sum() >= 40.0
                for row in leaf.rows:
                    assert walk(root, statistics.contexts[row]) == leaf.pdf


def test_silence_and_noise_are_not_split() -> None:
    statistics, _ = random_statistics(0, rows=400)
    roots = grow(statistics, PHONES, 1000, QUESTIONS, minimum=1.0)
    assert all((root.question is None) == (phone in (SIL, SPN)) for (phone, _), root in roots.items())


def test_equal_gains_have_an_order() -> None:
    # All phones and states have the same triphones and sums.
    sample, _ = random_statistics(0, rows=300)
    mask = (sample.contexts[:, 1] == A) & (sample.contexts[:, 3] == 0)
    contexts = [
        (left, phone, right, state)
        for phone in range(1, PHONES + 1)
        for state in range(STATES)
        for left, _, right, _ in sample.contexts[mask]
    ]
    statistics = Statistics(np.array(contexts), np.concatenate([sample.sums[mask]] * PHONES * STATES))
    roots = grow(statistics, PHONES, 15 + 4, QUESTIONS, minimum=1.0)
    assert [key for key, root in roots.items() if root.question] == [(A, 0), (A, 1), (A, 2), (B, 0)]
    full = grow(statistics, PHONES, 1000, QUESTIONS, minimum=1.0)
    assert len({len(leaves_of(root)) for (phone, _), root in full.items() if phone > SPN}) == 1


def test_phones_that_sound_alike_are_joined_first() -> None:
    random = np.random.default_rng(0)
    middles = {1: -20.0, 2: -10.0, 3: 10.0, 4: 10.5, 5: 12.0}  # SIL | SPN | (a b) s
    contexts, sums = [], []
    for phone, middle in middles.items():
        for state, shift in enumerate((5.0, 0.0, -5.0 * phone)):  # the other states are not looked at
            for left in (0, 1):
                contexts.append((left, phone, 0, state))
                sums.append(gathered(middle + shift + 0.3 * random.standard_normal((50, 2))))
    sets = clusters(Statistics(np.array(contexts), np.array(sums)), PHONES)
    assert sets[:PHONES] == [frozenset([phone]) for phone in middles]
    assert sets[PHONES:] == [frozenset([A, B]), frozenset([A, B, S]), frozenset([SIL, SPN])]


@pytest.mark.parametrize("make", [monophone, tied])
def test_statistics_are_sums_over_triphones(make: type) -> None:
    model = make()
    random = np.random.default_rng(0)
    expected: dict[tuple[int, ...], list[np.ndarray]] = {}
    aligned = []
    for phones in ([A, B, SIL, A], [A, B], [A, B, S], [S]):
        lengths = random.integers(1, 4, STATES * len(phones)).tolist()
        features = random.standard_normal((sum(lengths), 2)).astype(np.float32)
        aligned.append((features, transition_ids(model, phones, lengths)))
        padded = [EDGE, *phones, EDGE]
        keys = [
            (*padded[n // STATES : n // STATES + 3], n % STATES)
            for n, times in enumerate(lengths)
            for _ in range(times)
        ]
        assert triphones(model, np.array(aligned[-1][1])).tolist() == [list(key) for key in keys]
        for key, row in zip(keys, features, strict=True):
            expected.setdefault(key, []).append(row)
    statistics = accumulate(model, aligned)
    assert sorted(map(tuple, statistics.contexts.tolist())) == sorted(expected)
    assert max(map(len, expected.values())) > 3
    for context, sums in zip(statistics.contexts.tolist(), statistics.sums, strict=True):
        assert sums == pytest.approx(gathered(np.array(expected[tuple(context)], dtype=np.float64)))


def test_nothing_aligned_is_refused() -> None:
    with pytest.raises(InputError, match="got none"):
        accumulate(monophone(), [])


def test_converted_alignments_say_the_same_in_other_states() -> None:
    model, target = monophone(), tied()
    roots = asking_trees(PHONES)
    graph = Transducer(expand_to_states(target, sentence_transducer(target, ["A", "BEE"])))
    for phones in ([A, B], [SIL, A, B], [A, SIL, B], [A, B, B, SIL], [A, B, SIL, B, B]):
        for lengths in ([1, 2, 3] * len(phones), [2, 1, 1] * len(phones)):
            ids = transition_ids(model, phones, lengths)
            converted = convert(model, target, ids)
            assert converted == transition_ids(target, phones, lengths)
            assert phone_runs(target, converted) == phone_runs(model, ids)
            assert convert(target, model, converted) == ids
            contexts = triphones(model, np.array(ids)).tolist()
            pdfs = target.pdf_of[converted].tolist()
            assert pdfs == [walk(roots[context[1], context[3]], context) for context in contexts]
            assert list(graph.outputs(converted)) == [(target.word_ids["A"], target.word_ids["BEE"])]


def test_what_context_does_is_found() -> None:
    # Of a, the first state depends on whether s is before it, and the last one on whether the utterance ends.
    lexicon = Lexicon({"A": (("a",),), "B": (("b",),), "S": (("s",),)})
    model = HiddenMarkovModel.monophone(lexicon)
    random = np.random.default_rng(0)
    means = 10 * random.standard_normal((PHONES + 1, STATES, 4))

    def utterance() -> tuple[np.ndarray, list[int]]:
        phones = random.integers(A, S + 1, 6).tolist()
        lengths = [2] * STATES * len(phones)
        ids = transition_ids(model, phones, lengths)
        contexts = triphones(model, np.array(ids))
        features = means[contexts[:, 1], contexts[:, 3]] + random.standard_normal((len(ids), 4))
        features[(contexts[:, 0] == S) & (contexts[:, 1] == A) & (contexts[:, 3] == 0)] += 3.0
        features[(contexts[:, 2] == EDGE) & (contexts[:, 1] == A) & (contexts[:, 3] == 2)] -= 3.0
        return features, ids

    statistics = accumulate(model, [utterance() for _ in range(100)])
    tied_model = tie_states(model, statistics, leaves=PHONES * STATES + 2, minimum=20.0)
    assert tied_model.pdfs == PHONES * STATES + 2

    def alike(phone: int, state: int) -> set[frozenset[tuple[int, int]]]:
        """The neighbours that were met, by pdf."""
        by_pdf: dict[int, set[tuple[int, int]]] = {}
        for left, center, right, number in statistics.contexts.tolist():
            if (center, number) == (phone, state):
                pdf = int(tied_model.pdf_of[tied_model.transition_id((left, phone, right, state), True)])
                by_pdf.setdefault(pdf, set()).add((left, right))
        return {frozenset(neighbours) for neighbours in by_pdf.values()}

    for phone, state in product((A, B, S), range(STATES)):
        pairs = [
            (left, right)
            for left, center, right, number in statistics.contexts.tolist()
            if (center, number) == (phone, state)
        ]
        question = {(A, 0): lambda pair: pair[0] == S, (A, 2): lambda pair: pair[1] == EDGE}.get((phone, state))
        expected = {frozenset(pairs)}
        if question:
            expected = {frozenset(filter(question, pairs)), frozenset(pair for pair in pairs if not question(pair))}
        assert alike(phone, state) == expected


def test_an_alignment_is_told_in_the_frames_and_states_of_a_chain_model() -> None:
    model = tied()
    chain = HiddenMarkovModel.monophone(model.lexicon, states=1, subsampling=3)
    random = np.random.default_rng(3)
    for _ in range(30):
        phones = random.integers(1, 6, random.integers(1, 6)).tolist()
        lengths = random.integers(1, 5, STATES * len(phones)).tolist()  # nine frames of 10 ms or more: three kept
        alignment = transition_ids(model, phones, lengths)
        ids = subsampled(model, chain, alignment)
        assert len(ids) == -(-len(alignment) // 3)
        assert [phone for *_, phone in phone_runs(chain, ids)] == [phone for *_, phone in phone_runs(model, alignment)]
        kept_phones = model.phone_of[alignment][::3]
        if (
            len(set(np.flatnonzero(np.diff(model.phone_of[alignment])) // 3)) == len(phones) - 1
            and min(end - start for start, end, _ in phone_runs(model, alignment)) > 3
        ):
            assert np.array_equal(chain.phone_of[ids], kept_phones)
    short = transition_ids(model, [A, B], [1] * 6)
    assert len(subsampled(model, chain, short)) == 2
    coarse = HiddenMarkovModel.monophone(model.lexicon, states=1, subsampling=9)
    assert subsampled(model, coarse, short) == []


def test_phones_of_one_state_are_tied_by_that_state() -> None:
    """The left neighbour decides on the mean, and the tree asks for it."""
    chain = HiddenMarkovModel.monophone(tied().lexicon, states=1, subsampling=3)
    random = np.random.default_rng(1)
    utterances = []
    for _ in range(200):
        phones = random.integers(3, 6, 6).tolist()
        ids = [chain.transition_id((0, phone, 0, 0), stays) for phone in phones for stays in (True, False)]
        means = [10.0 * (left == A) + phone for left, phone in zip([0, *phones], phones, strict=False)]
        features = np.repeat(means, 2)[:, None] + 0.1 * random.standard_normal((12, 1))
        utterances.append((features, ids))
    tied_model = tie_states(chain, accumulate(chain, utterances), leaves=5 + 3, minimum=20.0)
    assert tied_model.pdfs == 8 and (tied_model.states, tied_model.subsampling) == (1, 3)
    for phone in (A, B, S):
        pdf = {left: tied_model.pdf_of[tied_model.transition_id((left, phone, B, 0), True)] for left in (A, B, S)}
        assert pdf[A] != pdf[B] == pdf[S]
