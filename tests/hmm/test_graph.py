import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import kaldifst
import numpy as np
import pytest
import torch

from asr_lightning.errors import InputError
from asr_lightning.hmm.graph import (
    SELF_LOOP_SCALE,
    as_graph,
    decoding_graph,
    expand_to_states,
    grammar_transducer,
    numerator_transducer,
    phone_grammar,
    sentence_transducer,
)
from asr_lightning.hmm.model import STATES, HiddenMarkovModel
from asr_lightning.losses.graphs import GraphBatch
from asr_lightning.losses.lattice_free_mmi import lattice_free_mmi_loss, total_log_probability
from asr_lightning.text.arpa import read_arpa
from asr_lightning.text.lexicon import Lexicon
from asr_lightning.text.ngram import NGram
from asr_lightning.text.smoothing import kneser_ney
from tests.support.small_models import (
    LEXICON,
    SIL,
    TEXT,
    A,
    B,
    S,
    Transducer,
    best_score,
    durations,
    monophone,
    parses,
    tied,
    transition_ids,
    transition_log_probs,
)

ROUNDING = 0.01  # minimization makes weights multiples of 1 / 1024
PAUSE = math.log(0.5)  # of a pause as of none
both = pytest.mark.parametrize("make", [monophone, tied])

WordWeights = dict[tuple[str, ...], float]  # words, and their log weight


def phone_sequences(longest: int) -> Iterator[tuple[int, ...]]:
    for length in range(longest + 1):
        yield from product((SIL, A, B, S), repeat=length)


def some_path(model: HiddenMarkovModel, phones: tuple[int, ...]) -> tuple[list[int], float]:
    """Transition ids of phones, with durations derived from the phones, and the sum of their log probabilities."""
    lengths = np.random.default_rng(hash(phones) % 1000).integers(1, 4, STATES * len(phones))
    ids = transition_ids(model, phones, lengths.tolist())
    return ids, float(transition_log_probs(model)[ids].sum())


def spelled(model: HiddenMarkovModel, outputs: dict[tuple[int, ...], float]) -> WordWeights:
    return {tuple(model.words[number - 1] for number in words): weight for words, weight in outputs.items()}


def names(model: HiddenMarkovModel, phones: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(model.phones[phone - 1] for phone in phones)


def paths(fst: kaldifst.StdVectorFst) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], float]]:
    """Input and output labels of each path of a transducer without loops, and its cost."""
    waiting: list = [(fst.start, (), (), 0.0)]
    for state, inputs, outputs, cost in waiting:
        if fst.final(state).value < math.inf:
            yield inputs, outputs, cost + fst.final(state).value
        for arc in kaldifst.ArcIterator(fst, state):
            input_labels, output_labels = ((label,) * (label > 0) for label in (arc.ilabel, arc.olabel))
            waiting.append((arc.nextstate, inputs + input_labels, outputs + output_labels, cost + arc.weight.value))


def ways(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """All phone sequences of words, with and without pauses."""
    for pauses in product(((), ("SIL",)), repeat=len(words) + 1):
        for pronunciations in product(*(LEXICON.pronunciations[word] for word in words)):
            yield sum((pause + phones for pause, phones in zip(pauses, (*pronunciations, ()), strict=True)), ())


@pytest.mark.parametrize("text", ["", "A", "BEE A", "A BEE", "SAY A BE"])
def test_a_sentence_is_said_in_all_ways(text: str) -> None:
    model = monophone()
    words = tuple(text.split())
    readings = [
        (names(model, inputs), outputs, cost) for inputs, outputs, cost in paths(sentence_transducer(model, words))
    ]
    numbers = tuple(model.word_ids[word] for word in words)
    assert sorted(phones for phones, *_ in readings) == sorted(ways(words))
    assert all(outputs == numbers for _, outputs, _ in readings)
    assert np.allclose([cost for *_, cost in readings], -PAUSE * (len(words) + 1))
    phone_paths = list(paths(sentence_transducer(model, words, phones=True)))
    assert sorted(names(model, inputs) for inputs, *_ in phone_paths) == sorted(
        set(ways(words))
    )  # A BEE: a b b once only
    assert all(inputs == outputs and cost == 0.0 for inputs, outputs, cost in phone_paths)


def test_a_sentence_of_unknown_words_is_refused() -> None:
    with pytest.raises(InputError, match="got ZOO, OH"):
        sentence_transducer(monophone(), ["A", "ZOO", "OH"])


@both
def test_the_states_of_a_sentence_weigh_what_its_ways_do(make: Callable[[], HiddenMarkovModel]) -> None:
    model = make()
    words = ("A", "BEE")
    for scale in (SELF_LOOP_SCALE, 1.0):
        graph = Transducer(expand_to_states(model, sentence_transducer(model, words), scale=scale))
        accepted = 0
        for phones in phone_sequences(5):
            ids, transitions = some_path(model, phones)
            times = sum(sentence == words for sentence in parses(LEXICON, names(model, phones)))  # ways are added up
            expected = {words: 3 * PAUSE + math.log(times) + scale * transitions} if times else {}
            assert spelled(model, graph.outputs(ids)) == pytest.approx(expected, abs=ROUNDING)
            accepted += bool(times)
        assert accepted == len({phones for phones in ways(words) if len(phones) <= 5})


@both
def test_no_other_states_say_a_sentence(make: Callable[[], HiddenMarkovModel]) -> None:
    model = make()
    graph = Transducer(expand_to_states(model, sentence_transducer(model, ["SAY"])))
    ids = transition_ids(model, [S, A], [2] * 6)
    assert graph.outputs(ids)
    for index in range(len(ids)):
        assert not graph.outputs(ids[:index])
        for replacement in range(1, len(model.pdf_of)):
            if replacement != ids[index]:
                assert not graph.outputs([*ids[:index], replacement, *ids[index + 1 :]])


def test_expanding_leaves_what_is_expanded() -> None:
    model = tied()
    spoken = phone_grammar([[A, B], [B, SIL, A]])
    first, second = (Transducer(expand_to_states(model, spoken, scale=1.0)) for _ in range(2))
    assert first.arcs == second.arcs and first.final == second.final


@both
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("more", [(), ("SAY A",)])  # a s a is SAY A and A SAY
def test_decoding_graphs_weigh_lexicon_grammar_and_transitions(
    make: Callable[[], HiddenMarkovModel], order: int, more: tuple[str, ...]
) -> None:
    model = make()
    ngram = kneser_ney([text.split() for text in (*TEXT, *more)], order)
    graph = Transducer(decoding_graph(model, ngram))
    accepted = set()
    for phones in phone_sequences(4):
        ids, transitions = some_path(model, phones)
        expected = {
            words: best_score(ngram, words) + (len(words) + 1) * PAUSE + SELF_LOOP_SCALE * transitions
            for words in parses(LEXICON, names(model, phones))
            if set(words) <= set(ngram.tokens)
        }
        assert spelled(model, graph.outputs(ids)) == pytest.approx(expected, abs=ROUNDING)
        accepted |= set(expected)
    assert {("BE", "BEE", "A"), ("BEE", "BE", "A"), ("A", "A", "A", "A"), ()} < accepted
    assert (("A", "SAY") in accepted and ("SAY", "A") in accepted) == bool(more)


def test_words_that_sound_alike_are_all_found() -> None:
    model = HiddenMarkovModel.monophone(Lexicon({word: (("t", "u"),) for word in ("TO", "TOO", "TWO")}))
    ngram = kneser_ney([["TO", "TWO"], ["TWO"], ["TOO", "TO"]], 2)
    graph = Transducer(decoding_graph(model, ngram))
    for times in (1, 2):
        phones = tuple(model.phone_ids[phone] for phone in ("t", "u") * times)
        ids, transitions = some_path(model, phones)
        expected = {
            words: best_score(ngram, words) + (times + 1) * PAUSE + SELF_LOOP_SCALE * transitions
            for words in product(model.words, repeat=times)
        }
        assert spelled(model, graph.outputs(ids)) == pytest.approx(expected, abs=ROUNDING)


def test_a_grammar_without_known_words_is_refused() -> None:
    with pytest.raises(InputError, match="words of the lexicon"):
        decoding_graph(monophone(), kneser_ney([["ZOO", "OH"]], 2))


def check_grammar(ngram: NGram) -> tuple[int, int]:
    """Compare all sentences of up to four words; return how many are as probable as by the n-gram, and more so."""
    model = monophone()
    grammar = Transducer(grammar_transducer(model, ngram), silent=len(model.words) + 1)
    equal = greater = 0
    for length in range(5):
        for words in product(sorted(set(model.words) & set(ngram.tokens)), repeat=length):
            scores = spelled(model, grammar.outputs([model.word_ids[word] for word in words]))
            assert scores == pytest.approx({words: best_score(ngram, words)}, abs=1e-4)
            difference = scores[words] - ngram.score(words)
            assert difference > -1e-4
            equal += difference < 1e-4
            greater += difference >= 1e-4
    return equal, greater


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_grammars_score_as_their_n_grams(order: int) -> None:
    equal, greater = check_grammar(kneser_ney([text.split() for text in TEXT], order))
    assert equal + greater == 1 + 3 + 9 + 27 + 81 and equal > 60
    assert (greater > 0) == (order > 2)  # a bigram from interpolation is never less than what it backs off to


def test_grammars_say_no_words_that_one_of_lexicon_and_n_gram_lacks() -> None:
    model = monophone()
    grammar = Transducer(
        grammar_transducer(model, kneser_ney([text.split() for text in TEXT], 2)), silent=len(model.words) + 1
    )
    assert grammar.outputs([model.word_ids["A"]]) and not grammar.outputs([model.word_ids["SAY"]])
    labels = {label for _, label in grammar.arcs}
    assert labels == {0, *(model.word_ids[word] for word in ("A", "BE", "BEE"))}


PRUNED = """\\data\\
ngram 1=6
ngram 2=3
ngram 3=2
ngram 4=1

\\1-grams:
-99 <s> -0.2
-0.7 </s>
-0.9 A -0.3
-0.8 BE -0.4
-1.0 BEE -0.1
-1.1 SAY -0.2

\\2-grams:
-0.3 <s> A -0.15
-0.25 A BE -0.35
-0.5 BEE </s>

\\3-grams:
-0.2 <s> A BE -0.05
-0.35 A BE BEE -0.45

\\4-grams:
-0.1 A BE BEE A

\\end\\
"""


def test_grammars_with_gaps_score_as_their_n_grams(tmp_path: Path) -> None:
    # A BE BEE has a longer n-gram, but BE BEE is none: what comes next backs off to BEE.
    (tmp_path / "pruned.arpa").write_text(PRUNED)
    ngram = read_arpa(tmp_path / "pruned.arpa")
    assert check_grammar(ngram) == (1 + 4 + 16 + 64 + 256, 0)


def log_weight_of(grammar_of_phones: kaldifst.StdVectorFst, phones: tuple[int, ...]) -> float:
    return Transducer(grammar_of_phones).outputs(phones).get((), -math.inf)


def test_phone_grammars_have_relative_frequencies() -> None:
    sequences = [[A, B], [A], [B, A], [A, B, A]]
    single, pair, triple = (phone_grammar(sequences, order) for order in (1, 2, 3))
    # 8 phones (a five times, b three times) and 4 ends in 12 places.
    assert log_weight_of(single, (B, B)) == pytest.approx(math.log(3 / 12 * 3 / 12 * 4 / 12))
    # Three of four begin with a; behind a: b, end, end, b, end; behind b: end, a, a.
    assert log_weight_of(pair, (A, B)) == pytest.approx(math.log(3 / 4 * 2 / 5 * 1 / 3))
    assert log_weight_of(pair, (B, A, B, A)) == pytest.approx(math.log(1 / 4 * 2 / 3 * 2 / 5 * 2 / 3 * 3 / 5))
    assert log_weight_of(pair, (A, A)) == -math.inf
    # Behind a at the start: b, end, b; behind a b: end, a; behind b a, wherever: end, end.
    assert log_weight_of(triple, (A, B)) == pytest.approx(math.log(3 / 4 * 2 / 3 * 1 / 2))
    assert log_weight_of(triple, (A, B, A)) == pytest.approx(math.log(3 / 4 * 2 / 3 * 1 / 2 * 2 / 2))
    assert log_weight_of(triple, (B, A, B)) == -math.inf
    assert log_weight_of(triple, ()) == -math.inf
    with pytest.raises(InputError, match="got none"):
        phone_grammar([])


SPOKEN = [[SIL, A, B, SIL], [A, B, B], [A, B], [B, A, SIL], [S, A, B], [A, SIL, B], [A, B, SIL, B]]


@both
@pytest.mark.parametrize("frames", [6, 10])
def test_a_graph_adds_up_all_its_state_paths(make: Callable[[], HiddenMarkovModel], frames: int) -> None:
    model = make()
    spoken = phone_grammar(SPOKEN)
    scores = torch.randn(1, frames, model.pdfs, dtype=torch.float64)
    log_probs = transition_log_probs(model)
    words = ("A", "BEE")
    totals = defaultdict(lambda: torch.full((), -math.inf, dtype=torch.float64))
    for phones in phone_sequences(frames // STATES):
        weight = log_weight_of(spoken, phones)
        if weight > -math.inf:
            for lengths in durations(frames, STATES * len(phones)):
                ids = transition_ids(model, phones, lengths)
                path = scores[0, range(frames), model.pdf_of[ids]].sum() + weight + log_probs[ids].sum()
                totals["all"] = torch.logaddexp(totals["all"], path)
                if words in parses(LEXICON, names(model, phones)):  # once, however the words part the phones
                    totals["said"] = torch.logaddexp(totals["said"], path)
    lengths = torch.tensor([frames])
    graphs = {"all": expand_to_states(model, spoken, scale=1.0), "said": numerator_transducer(model, words, spoken)}
    for name, fst in graphs.items():
        total = total_log_probability(scores, lengths, GraphBatch.collate([as_graph(model, fst)]))
        assert total.item() == pytest.approx(totals[name].item(), abs=ROUNDING)
    batches = [GraphBatch.collate([as_graph(model, graphs[name])]) for name in ("said", "all")]
    loss = lattice_free_mmi_loss(scores, lengths, *batches).item()
    assert loss == pytest.approx((totals["all"] - totals["said"]).item(), abs=ROUNDING) and loss > 0.01


@both
def test_what_was_said_is_part_of_what_can_be_said(make: Callable[[], HiddenMarkovModel]) -> None:
    model = make()
    spoken = phone_grammar(SPOKEN)
    everything = Transducer(expand_to_states(model, spoken, scale=1.0))
    numerator = Transducer(numerator_transducer(model, ["A", "BEE"], spoken))
    shared = other = 0
    for phones in phone_sequences(5):
        ids, _ = some_path(model, phones)
        possible = everything.outputs(ids)
        if ("A", "BEE") in parses(LEXICON, names(model, phones)):
            assert list(numerator.outputs(ids).values()) == pytest.approx(list(possible.values()), abs=ROUNDING)
            shared += bool(possible)
        else:
            assert not numerator.outputs(ids)
            other += bool(possible)
    assert shared > 3 and other > 3


def test_a_sentence_that_the_phone_grammar_cannot_say_is_refused() -> None:
    with pytest.raises(InputError, match="'SAY SAY'"):
        numerator_transducer(monophone(), ["SAY", "SAY"], phone_grammar(SPOKEN))


def test_a_graph_that_reads_nothing_somewhere_is_no_graph_of_frames() -> None:
    model = monophone()
    with pytest.raises(AssertionError):
        as_graph(model, decoding_graph(model, kneser_ney([text.split() for text in TEXT], 2)))
