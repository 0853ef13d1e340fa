"""Graphs of transition ids from words and phones [Mohri, Pereira and Riley 2008], with Kaldi's transducers."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence

import kaldi_hmm_gmm as kaldi
import kaldifst
import torch

from asr_lightning.errors import InputError
from asr_lightning.hmm.model import HiddenMarkovModel
from asr_lightning.losses.graphs import Graph
from asr_lightning.text.ngram import SENTENCE_END, SENTENCE_START, NGram
from asr_lightning.text.phones import SILENCE

SILENCE_PROBABILITY = 0.5  # of a pause before a word, and at the end
PAUSE_COST, NO_PAUSE_COST = -math.log(SILENCE_PROBABILITY), -math.log(1.0 - SILENCE_PROBABILITY)
SELF_LOOP_SCALE = 0.1  # of log probabilities of staying in a state or not, beside scaled-down acoustics: Kaldi's value
EPSILON = 0


def sentence_transducer(model: HiddenMarkovModel, words: Sequence[str], phones: bool = False) -> kaldifst.StdVectorFst:
    """Return a transducer from a sentence's phones to its word ids; a pause may come before every word and at the end.

    Args:
        model: Whose lexicon.
        words: Of the sentence.
        phones: Return phones instead of words, every sequence of them once and at no cost.

    Raises:
        InputError: A word is not in the lexicon.
    """
    missing = [word for word in words if word not in model.word_ids]
    if missing:
        raise InputError(f"expected words of the lexicon, got {', '.join(missing)}")
    fst = kaldifst.StdVectorFst()
    state = fst.add_state()
    fst.start = state
    for word in words:
        state = _add_optional_pause(model, fst, state)
        target = fst.add_state()
        for pronunciation in model.lexicon.pronunciations[word]:
            _add_pronunciation(model, fst, state, target, pronunciation, model.word_ids[word])
        state = target
    fst.set_final(_add_optional_pause(model, fst, state), 0.0)
    if phones:
        for state in kaldifst.StateIterator(fst):
            _replace_labels(fst, state, lambda arc: (arc.ilabel, arc.ilabel, 0.0))
        kaldifst.determinize_star(fst)
    return fst


def _add_optional_pause(model: HiddenMarkovModel, fst: kaldifst.StdVectorFst, state: int) -> int:
    target = fst.add_state()
    _arc(fst, state, target, EPSILON, EPSILON, NO_PAUSE_COST)
    _arc(fst, state, target, model.phone_ids[SILENCE], EPSILON, PAUSE_COST)
    return target


def _add_pronunciation(
    model: HiddenMarkovModel, fst: kaldifst.StdVectorFst, state: int, end: int, phones: Sequence[str | int], word: int
) -> None:
    for number, phone in enumerate(phones):
        next_state = end if number == len(phones) - 1 else fst.add_state()
        label = phone if isinstance(phone, int) else model.phone_ids[phone]
        _arc(fst, state, next_state, label, EPSILON if number else word, 0.0)
        state = next_state


def _arc(fst: kaldifst.StdVectorFst, source: int, target: int, ilabel: int, olabel: int, cost: float) -> None:
    fst.add_arc(source, kaldifst.StdArc(ilabel, olabel, cost, target))


def lexicon_transducer(model: HiddenMarkovModel, words: Iterable[str]) -> tuple[kaldifst.StdVectorFst, list[int]]:
    """Return a transducer from phones to any number of words, with disambiguation symbols, and these symbols.

    A symbol ends a pronunciation that is another's beginning or of several words [Mohri et al. 2008, §5.1]. The first
    symbol stands for the backing-off of the grammar.
    """
    entries = [(word, phones) for word in words for phones in model.lexicon.pronunciations[word]]
    counts = Counter(phones for _, phones in entries)
    beginnings = {phones[:length] for _, phones in entries for length in range(1, len(phones))}
    used: Counter[tuple[str, ...]] = Counter()
    first = len(model.phones) + 1
    fst = kaldifst.StdVectorFst()
    loop, silence = fst.add_state(), fst.add_state()
    start = fst.add_state()
    fst.start = start
    fst.set_final(loop, 0.0)
    _arc(fst, start, loop, EPSILON, EPSILON, NO_PAUSE_COST)
    _arc(fst, start, silence, EPSILON, EPSILON, PAUSE_COST)
    highest = 1
    for word, phones in entries:
        symbols: list[int] = []
        if counts[phones] > 1 or phones in beginnings:
            used[phones] += 1
            symbols = [first + used[phones]]
            highest = max(highest, used[phones])
        end = fst.add_state()
        _add_pronunciation(model, fst, loop, end, [*phones, *symbols], model.word_ids[word])
        _arc(fst, end, loop, EPSILON, EPSILON, NO_PAUSE_COST)
        _arc(fst, end, silence, EPSILON, EPSILON, PAUSE_COST)
    pause = first + highest + 1
    after_pause = fst.add_state()
    _arc(fst, silence, after_pause, model.phone_ids[SILENCE], EPSILON, 0.0)
    _arc(fst, after_pause, loop, pause, EPSILON, 0.0)
    _arc(fst, loop, loop, first, len(model.words) + 1, 0.0)
    return fst, list(range(first, pause + 1))


def grammar_transducer(model: HiddenMarkovModel, ngram: NGram) -> kaldifst.StdVectorFst:
    """Return an n-gram as a transducer on word ids; backing off reads the id after the last word's.

    Words that the lexicon lacks are left out. `<unk>` is one of them: what it stands for cannot be recognized.
    A path may back off also where an n-gram exists, as everywhere in Kaldi. The best path of a sentence is as
    probable as `NGram.score` says, or more: backing off forgets words, and without them the next may be more probable.
    """
    backing_off = len(model.words) + 1
    start_id, end_id = ngram.id_of(SENTENCE_START), ngram.id_of(SENTENCE_END)
    fst = kaldifst.StdVectorFst()
    states: dict[tuple[int, ...], int] = {}
    contexts: list[tuple[int, ...]] = [()]
    for length in range(1, ngram.order):
        contexts += [tuple(row) for row in ngram.rows(length).tolist() if row[-1] != end_id]
    for context in contexts:
        states[context] = fst.add_state()
    fst.start = states.get((start_id,), states[()])
    for length, level in enumerate(ngram.levels, 1):
        rows = ngram.rows(length).tolist()
        for row, log_prob, backoff in zip(rows, level.log_probs.tolist(), level.backoffs.tolist(), strict=True):
            gram = tuple(row)
            if gram in states and gram:
                _arc(
                    fst, states[gram], states[_longest_known_context(gram[1:], states)], backing_off, EPSILON, -backoff
                )
            source, word = states.get(gram[:-1]), gram[-1]
            if source is None or log_prob == -math.inf:
                continue
            if word == end_id:
                fst.set_final(source, -log_prob)
            elif word != start_id and (number := model.word_ids.get(ngram.tokens[word])):
                _arc(fst, source, states[_longest_known_context(gram, states)], number, number, -log_prob)
    return fst


def _longest_known_context(context: tuple[int, ...], states: Collection[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the longest end of a context that has a state; a pruned model may have gaps."""
    while context not in states:
        context = context[1:]
    return context


def decoding_graph(model: HiddenMarkovModel, ngram: NGram) -> kaldifst.StdVectorFst:
    """Return the composition of states, context, lexicon and grammar: HCLG, from transition ids to word ids.

    Raises:
        InputError: The lexicon has none of the grammar's words.
    """
    known = [word for word in ngram.tokens if word in model.word_ids]
    if not known:
        raise InputError("expected a language model with words of the lexicon, found none")
    lexicon, symbols = lexicon_transducer(model, known)
    grammar = grammar_transducer(model, ngram)
    kaldifst.arcsort(lexicon, sort_type="olabel")
    kaldifst.arcsort(grammar, sort_type="ilabel")
    composed = kaldifst.compose(lexicon, grammar)
    kaldifst.determinize_star(composed, use_log=True)
    kaldifst.minimize_encoded(composed)
    return expand_to_states(model, composed, symbols)


def expand_to_states(
    model: HiddenMarkovModel, phones: kaldifst.StdVectorFst, symbols: Sequence[int] = (), scale: float = SELF_LOOP_SCALE
) -> kaldifst.StdVectorFst:
    """Turn a transducer that reads phones into one that reads transition ids, one a frame.

    Args:
        model: Whose context and states.
        phones: Reads phone ids, and disambiguation symbols.
        symbols: The latter.
        scale: Of the log probabilities of staying in a state and of leaving it.
    """
    tree, transitions = model.tree, model.transitions
    in_context, labels = kaldifst.compose_context(list(symbols), tree.context_width, tree.central_position, phones)
    states, state_symbols = kaldi.get_h_transducer(labels, tree, transitions, kaldi.HTransducerConfig())
    kaldifst.arcsort(states, sort_type="olabel")
    kaldifst.arcsort(in_context, sort_type="ilabel")
    graph = kaldifst.compose(states, in_context)
    kaldifst.determinize_star(graph, use_log=True)
    _erase_disambiguation(graph, set(state_symbols))
    if not symbols:
        kaldifst.rmepsilon(graph)  # with the symbols of back-off, this would multiply the arcs
    kaldifst.minimize_encoded(graph)
    looping = kaldi.add_self_loops(scale, [], False, transitions, graph)
    if not symbols:
        kaldifst.rmepsilon(looping)  # loops follow arcs that read nothing, where a state has several successors
    return looping


def _erase_disambiguation(fst: kaldifst.StdVectorFst, symbols: set[int]) -> None:
    """Replace disambiguation symbols by epsilon."""
    for state in kaldifst.StateIterator(fst) if symbols else ():
        if any(arc.ilabel in symbols for arc in kaldifst.ArcIterator(fst, state)):
            _replace_labels(
                fst,
                state,
                lambda arc: (EPSILON if arc.ilabel in symbols else arc.ilabel, arc.olabel, arc.weight.value),
            )


def _replace_labels(
    fst: kaldifst.StdVectorFst, state: int, relabel: Callable[[kaldifst.StdArc], tuple[int, int, float]]
) -> None:
    """Give the arcs of a state other labels and costs."""
    arcs = [(arc.nextstate, *relabel(arc)) for arc in kaldifst.ArcIterator(fst, state)]
    fst.delete_arcs(state, len(arcs))
    for target, ilabel, olabel, cost in arcs:
        _arc(fst, state, target, ilabel, olabel, cost)


def numerator_transducer(
    model: HiddenMarkovModel, words: Sequence[str], phone_language_model: kaldifst.StdVectorFst
) -> kaldifst.StdVectorFst:
    """Return the pronunciations of a sentence, weighted as the phone grammar of the denominator weights them.

    Raises:
        InputError: A word is not in the lexicon, or the phone grammar does not accept the sentence.
    """
    sentence = sentence_transducer(model, words, phones=True)
    kaldifst.arcsort(sentence, sort_type="olabel")
    composed = kaldifst.compose(sentence, phone_language_model)
    if not composed.num_states:
        raise InputError(f"expected a sentence that the phone grammar accepts, got {' '.join(words)!r}")
    kaldifst.rmepsilon(composed)
    return expand_to_states(model, composed, scale=1.0)


def phone_grammar(sequences: Iterable[Sequence[int]], order: int = 3) -> kaldifst.StdVectorFst:
    """Return an acceptor of phone ids with the relative frequencies of n-grams, not smoothed [Povey et al. 2016, §2.3].

    Args:
        sequences: The phone ids of utterances.
        order: n.

    Raises:
        InputError: There is no utterance.
    """
    counts: dict[tuple[int, ...], Counter[int]] = {}
    for phones in sequences:
        history: tuple[int, ...] = ()
        for phone in [*phones, EPSILON]:
            counts.setdefault(history, Counter())[phone] += 1
            history = (*history, phone)[-(order - 1) :] if order > 1 else ()
    if not counts:
        raise InputError("expected aligned utterances to count phones in, got none")
    fst = kaldifst.StdVectorFst()
    states = {history: fst.add_state() for history in counts}
    fst.start = states[()]
    for history, following in counts.items():
        for phone, count in following.items():
            cost = -math.log(count / following.total())
            if phone == EPSILON:
                fst.set_final(states[history], cost)
            else:
                next_history = (*history, phone)[-(order - 1) :] if order > 1 else ()
                _arc(fst, states[history], states[next_history], phone, EPSILON, cost)
    return fst


def as_graph(model: HiddenMarkovModel, fst: kaldifst.StdVectorFst) -> Graph:
    """Return the graph for the loss: arcs with pdfs instead of transition ids.

    Args:
        model: Whose transition ids.
        fst: Every arc reads one of them, as `expand_to_states` makes it without disambiguation symbols.
    """
    arcs = [
        (state, arc.nextstate, arc.ilabel, -arc.weight.value)
        for state in kaldifst.StateIterator(fst)
        for arc in kaldifst.ArcIterator(fst, state)
    ]
    initial = torch.full((fst.num_states,), -math.inf)
    initial[fst.start] = 0.0
    final = -torch.tensor([fst.final(state).value for state in range(fst.num_states)])
    sources, targets, ids, weights = zip(*arcs, strict=True)
    assert EPSILON not in ids, "an arc without a frame"
    return Graph(
        torch.tensor(sources),
        torch.tensor(targets),
        torch.from_numpy(model.pdf_of[list(ids)]),
        torch.tensor(weights),
        initial,
        final,
    )
