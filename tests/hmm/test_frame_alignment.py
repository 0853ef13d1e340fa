from collections.abc import Callable
from itertools import combinations, product

import kaldi_hmm_gmm as kaldi
import numpy as np
import pytest
import torch

from asr_lightning.hmm.frame_alignment import align_frames, in_seconds, phone_runs, subsample, word_runs
from asr_lightning.hmm.graph import as_graph, expand_to_states, numerator_transducer, phone_grammar, sentence_transducer
from asr_lightning.hmm.model import STATES, HiddenMarkovModel
from asr_lightning.hmm.search import by_transition
from asr_lightning.text.phones import Segment
from tests.oracles.exact_viterbi import best_path
from tests.support.small_models import (
    LEXICON,
    SIL,
    A,
    B,
    durations,
    monophone,
    tied,
    transition_ids,
    transition_log_probs,
)

both = pytest.mark.parametrize("make", [monophone, tied])
SAYS_A = [(A,), (A, B), (SIL, A), (A, SIL), (SIL, A, B), (A, B, SIL), (SIL, A, SIL), (SIL, A, B, SIL)]


def decodable(model: HiddenMarkovModel, scores: np.ndarray) -> kaldi.DecodableInterface:
    return kaldi.DecodableCtc(by_transition(model, scores))  # nothing here holds what it was made of


def best_of_all(model: HiddenMarkovModel, scores: np.ndarray, each: float) -> tuple[list[int], float]:
    """The best transition ids that say A, and their log weight, if every phone costs as much as the end."""
    log_probs = transition_log_probs(model)
    best, weight = [], -np.inf
    for phones in SAYS_A:
        for lengths in durations(len(scores), STATES * len(phones)):
            ids = transition_ids(model, phones, lengths)
            total = scores[range(len(scores)), model.pdf_of[ids]].sum() + log_probs[ids].sum()
            total += each * (len(phones) + 1)
            best, weight = (ids, total) if total > weight else (best, weight)
    return best, weight


@both
@pytest.mark.parametrize("frames", [3, 7, 10])
def test_no_state_path_is_better(make: Callable[[], HiddenMarkovModel], frames: int) -> None:
    model = make()
    with_words = expand_to_states(model, sentence_transducer(model, ["A"]), scale=1.0)
    without = numerator_transducer(
        model, ["A"], phone_grammar([[SIL, A, B]], order=1)
    )  # these and the end have 1/4 each
    arcs = as_graph(model, without)
    sequences = set()
    for seed in range(12):
        scores = 3 * np.random.default_rng(seed).standard_normal((frames, model.pdfs)).astype(np.float32)
        decodables = [decodable(model, scores) for _ in range(2)]
        # Over the memory of the arrays that were freed: a decodable that kept no copy of its scores would read this.
        _overwritten = [np.full((frames, len(model.pdf_of) - 1), 1e9, dtype=np.float32) for _ in decodables]
        best, _ = best_of_all(model, scores, 0.0)
        assert align_frames(decodables[0], with_words, beam=1000.0, retry_beam=2000.0) == best
        best, weight = best_of_all(model, scores, np.log(0.25))
        assert align_frames(decodables[1], without, beam=1000.0, retry_beam=2000.0) == best
        path, total = best_path(torch.from_numpy(scores), arcs)
        assert arcs.pdfs[path].tolist() == model.pdf_of[best].tolist()
        assert total == pytest.approx(weight, abs=0.01)
        sequences.add(tuple(phone for *_, phone in phone_runs(model, best)))
    assert len(sequences) >= {3: 1, 7: 3, 10: 4}[frames]


def test_too_few_frames_have_no_way_through() -> None:
    model = monophone()
    graph = expand_to_states(model, sentence_transducer(model, ["A", "BE"]))
    zeros = np.zeros((5, model.pdfs), dtype=np.float32)
    assert align_frames(decodable(model, zeros), graph) == []
    assert len(align_frames(decodable(model, np.concatenate([zeros, zeros[:1]])), graph)) == 6


def test_what_looks_wrong_for_long_needs_the_wider_beam() -> None:
    # All frames look like a's first state, but there are so few that every state has one. (Kaldi keeps 20 paths.)
    model = monophone()
    graph = expand_to_states(model, sentence_transducer(model, ["A", "BE"] * 8))
    scores = np.zeros((48, model.pdfs), dtype=np.float32)
    scores[:, model.pdf_of[transition_ids(model, [A], [1] * 3)[0]]] = 5.0
    assert align_frames(decodable(model, scores), graph, beam=1.0, retry_beam=2.0) == []
    expected = transition_ids(model, [A, B] * 8, [1] * 48)
    assert align_frames(decodable(model, scores), graph, beam=1.0, retry_beam=500.0) == expected


@both
def test_phones_last_as_long_as_their_states(make: Callable[[], HiddenMarkovModel]) -> None:
    model = make()
    random = np.random.default_rng(0)
    for _ in range(50):
        phones = random.integers(1, 6, random.integers(0, 6)).tolist()
        lengths = random.integers(1, 5, (len(phones), STATES))
        ends = lengths.sum(axis=1).cumsum().tolist()
        names = [model.phones[phone - 1] for phone in phones]
        expected = list(zip([0, *ends], ends, names, strict=False))
        assert phone_runs(model, transition_ids(model, phones, lengths.reshape(-1).tolist())) == expected


def test_kept_frames_are_of_the_phones_that_they_were_of() -> None:
    random = np.random.default_rng(0)
    squeezed = 0
    for _ in range(300):
        step, lengths = int(random.integers(1, 5)), random.integers(1, 9, random.integers(1, 8)).tolist()
        phones = np.repeat(np.arange(len(lengths)), lengths)[::step]
        by_definition = np.bincount(phones, minlength=len(lengths)).tolist()
        counts = subsample(lengths, step)
        if len(phones) < len(lengths):
            assert counts == []
        elif min(by_definition) > 0:
            assert counts == by_definition
        else:  # a phone that would lose all frames gets one, and borders move no farther than for that
            squeezed += 1
            assert sum(counts) == len(phones) and min(counts) == 1
            ways = [ends for ends in combinations(range(1, len(phones)), len(lengths) - 1)]
            borders = np.cumsum(by_definition)[:-1]
            moved = np.abs(np.cumsum(counts)[:-1] - borders).max(initial=0)
            assert moved == min(np.abs(np.array(ends, dtype=int) - borders).max(initial=0) for ends in ways)
    assert squeezed > 20


def test_phones_of_one_state_are_aligned_as_no_other_path_is_better() -> None:
    model = HiddenMarkovModel.monophone(LEXICON, states=1, subsampling=3)
    graph = expand_to_states(model, sentence_transducer(model, ["A"]), scale=1.0)
    for seed in range(12):
        frames = 2 + seed % 5
        scores = 3 * np.random.default_rng(seed).standard_normal((frames, model.pdfs)).astype(np.float32)
        best, weight = [], -np.inf
        for phones in SAYS_A:
            for lengths in durations(frames, len(phones)):
                ids = [
                    model.transition_id((0, phone, 0, 0), stays)
                    for phone, length in zip(phones, lengths, strict=True)
                    for stays in [True] * (length - 1) + [False]
                ]
                log_probs = np.log(np.where(model.stays[ids], 0.75, 0.25)).sum()
                total = scores[range(frames), model.pdf_of[ids]].sum() + log_probs
                best, weight = (ids, total) if total > weight else (best, weight)
        assert align_frames(decodable(model, scores), graph, beam=1000.0, retry_beam=2000.0) == best
        assert len(phone_runs(model, best)) >= 1 and model.pdfs == len(model.phones)


def runs_of(phones: list[str]) -> list[tuple[int, int, str]]:
    """Every phone is a frame longer than the one before it."""
    borders = np.cumsum([0, *range(3, 3 + len(phones))]).tolist()
    return list(zip(borders, borders[1:], phones, strict=False))


@pytest.mark.parametrize(
    ("words", "phones", "expected"),
    [
        ("", "SIL", "SIL"),
        ("", "", ""),
        ("BE", "b", "BE"),
        ("BEE", "b", "BEE"),
        ("SAY SAY", "s a a s", "SAY SAY SAY SAY"),
        ("BEE A", "SIL b b SIL a SIL", "SIL BEE BEE SIL A SIL"),
        ("A BEE", "a b b b", "A A BEE BEE"),
        ("A BEE", "a b b", "A BEE BEE"),  # or A A BEE: the later word is as long as possible
        ("A BEE", "a b SIL b", "A A SIL BEE"),  # no word has a pause in it
        ("A BEE", "a SIL b b", "A SIL BEE BEE"),
        ("A BE BE", "a b b", "A BE BE"),
        ("A BE BE", "a b b b", "A A BE BE"),
    ],
)
def test_words_are_where_their_phones_are(words: str, phones: str, expected: str) -> None:
    runs = runs_of(phones.split())
    intervals = word_runs(LEXICON, runs, words.split())
    # Each phone is covered by its word, and words begin and end with phones.
    covering = [next(word for start, end, word in intervals if start <= run[0] and run[1] <= end) for run in runs]
    assert covering == expected.split()
    assert [word for *_, word in intervals if word != "SIL"] == words.split()
    assert {border for run in intervals for border in run[:2]} <= {border for run in runs for border in run[:2]}
    assert all(left[1] == right[0] for left, right in zip(intervals, intervals[1:], strict=False))


def test_words_of_all_ways_to_say_a_sentence_are_pronunciations() -> None:
    words = ["A", "BEE", "SAY"]
    for pronunciations in product(*(LEXICON.pronunciations[word] for word in words)):
        for pauses in product((False, True), repeat=4):
            phones = [
                ["SIL"] * pause + list(pronunciation)
                for pause, pronunciation in zip(pauses, (*pronunciations, ()), strict=True)
            ]
            runs = runs_of(sum(phones, []))
            intervals = word_runs(LEXICON, runs, words)
            assert [word for *_, word in intervals if word != "SIL"] == words
            assert [run[:2] for run in intervals if run[2] == "SIL"] == [run[:2] for run in runs if run[2] == "SIL"]
            for start, end, word in intervals:
                spoken = tuple(phone for begin, stop, phone in runs if start <= begin and stop <= end)
                assert spoken in LEXICON.pronunciations.get(word, (("SIL",),))


@pytest.mark.parametrize(("words", "phones"), [("A", "b"), ("A", ""), ("A BE", "a"), ("BE", "b b"), ("BEE", "b SIL b")])
def test_phones_that_do_not_say_the_words_are_refused(words: str, phones: str) -> None:
    with pytest.raises(ValueError, match=f"expected phones of '{words}', got '"):
        word_runs(LEXICON, runs_of(phones.split()), words.split())


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize(("hop", "window"), [(0.01, 0.025), (0.04, 0.025), (0.01, 0.01)])
def test_segments_tile_the_utterance(count: int, hop: float, window: float) -> None:
    runs = runs_of(list("abcde"[:count]))
    seconds = (runs[-1][1] - 1) * hop + window + 0.003  # some samples behind the last whole frame
    segments = in_seconds(runs, hop, window, seconds)
    assert [segment.label for segment in segments] == list("abcde"[:count])
    assert segments[0].start == 0.0 and segments[-1].end == seconds
    middles = [frame * hop + window / 2 for frame in range(runs[-1][1])]
    for left, right, (start, *_) in zip(segments, segments[1:], runs[1:], strict=False):
        assert left.end == right.start == pytest.approx((middles[start - 1] + middles[start]) / 2)
        assert left.start < left.end


def test_no_phone_no_segment_and_none_beyond_the_end() -> None:
    assert in_seconds([], 0.01, 0.025, 1.0) == []
    assert in_seconds([(0, 3, "a"), (3, 6, "b")], 0.01, 0.025, 0.03) == [
        Segment(0.0, 0.03, "a"),
        Segment(0.03, 0.03, "b"),
    ]
