"""States, alignments and graphs of a BLSTM-HMM hybrid, and the best weight of its language model."""

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import kaldifst
import numpy as np
import yaml

from asr_lightning.errors import InputError
from asr_lightning.files import replacing, replacing_files, write_atomically
from asr_lightning.hmm.frame_alignment import phone_runs
from asr_lightning.hmm.graph import decoding_graph, phone_grammar
from asr_lightning.hmm.model import CHAIN_STATES, HiddenMarkovModel
from asr_lightning.hmm.search import GraphSearch
from asr_lightning.hmm.store import AlignmentStore, write_alignments
from asr_lightning.hmm.tree import subsampled
from asr_lightning.models.blstm_hmm import ALIGNMENTS, DECODING_GRAPH, PHONE_GRAMMAR, read_graph
from asr_lightning.scoring.error_rates import ErrorRates
from asr_lightning.text.arpa import read_arpa
from asr_lightning.text.graphemes_to_phones import JointSequenceModel
from asr_lightning.text.lexicon import Lexicon, capitals, cmudict, complete_lexicon, read_lexicon
from asr_lightning.text.ngram import NGram
from asr_lightning.text.smoothing import kneser_ney
from asr_lightning.tools.hybrid import SCALES
from asr_lightning.tools.mixture_training import TrainedMixtures, score_by_mixtures, tie, train_mixtures
from asr_lightning.tools.ngram import find_texts, read_sentences
from asr_lightning.tools.state_alignment import (
    StateAlignment,
    align_batches,
    likelihoods,
    prepare_hybrid,
    score_by_network,
)
from asr_lightning.tools.subsets import development_subsets, evaluation_texts, every, subsets_of, training_texts

SHOWN = 10  # utterances that could not be aligned


def prepare_alignments(options: argparse.Namespace) -> str:
    """Train Gaussian mixtures, tie states, align everything, make the graphs; return what to tell the user."""
    train, others = subsets_of(options.config)
    transcripts = list(training_texts(options.config))
    ngram = read_or_estimate(options, transcripts)
    # Words of evaluation subsets are pronounced too, since these are aligned. What is decoded are words of the n-gram.
    lexicon, report = make_lexicon(options, [*transcripts, *evaluation_texts(options.config)], ngram)
    write_atomically(
        options.output / "left_out.txt", "".join(f"{word} {count}\n" for word, count in report.most_common())
    )
    notes = [f"{len(lexicon)} words in the lexicon; {len(report)} of the text are in none and left out (left_out.txt)."]
    trained = train_mixtures(options, HiddenMarkovModel.monophone(lexicon), train)
    states, convert = states_of_network(options, trained)
    notes.append(f"{states.pdfs} tied states, {states.states} of each phone, a frame every {states.subsampling}0 ms.")
    score = score_by_mixtures(trained.mixtures)
    of_training, of_others = (
        align_batches(trained.mixtures.model, every(options.config, subsets, "alignment"), score)
        for subsets in (train, others)
    )
    notes += write_tied_alignments(options.output, states, of_training, of_others, convert)
    with replacing(options.output / DECODING_GRAPH) as unfinished:
        decoding_graph(states, ngram).write(str(unfinished))
    return "\n".join(notes)


def states_of_network(
    options: argparse.Namespace, trained: TrainedMixtures
) -> tuple[HiddenMarkovModel, Callable[[Sequence[int]], Sequence[int]]]:
    """Return the states that the network learns, and a function that converts the mixtures' alignments to them.

    They are those of the mixtures; with subsampling a phone has one state, and the states are tied anew by every third
    frame, as for Kaldi's chain models [Povey et al. 2016].
    """
    model = trained.mixtures.model
    if options.subsampling == 1:
        return model, lambda ids: ids
    single = HiddenMarkovModel.monophone(model.lexicon, CHAIN_STATES, options.subsampling)
    pairs = ((features, subsampled(model, single, ids)) for features, ids in trained.aligned(options.subsampling))
    chain = tie(options, single, ((features, ids) for features, ids in pairs if ids))
    return chain, lambda ids: subsampled(model, chain, ids)


def read_or_estimate(options: argparse.Namespace, transcripts: Sequence[str]) -> NGram:
    """Return the language model: an ARPA file, or one of texts, or of the transcripts."""
    if options.arpa is not None:
        return read_arpa(options.arpa)
    texts = read_sentences(find_texts(options.text), options.skip_columns) if options.text else transcripts
    return kneser_ney([capitals(text).split() for text in texts], options.order)


def make_lexicon(options: argparse.Namespace, transcripts: Sequence[str], ngram: NGram) -> tuple[Lexicon, Counter[str]]:
    """Return the lexicon, completed by a grapheme-to-phone model, and the counts of words that it still lacks."""
    lexicon = cmudict() if options.lexicon == "cmudict" else read_lexicon(options.lexicon)
    words = [*(word for text in transcripts for word in capitals(text).split()), *ngram.tokens]
    words = [word for word in words if not word.startswith("<")]
    unknown = [word for word in words if word not in lexicon]
    g2p = JointSequenceModel.train(lexicon) if options.unknown_words == "guess" and unknown else None
    guessed, left_out = complete_lexicon(lexicon, unknown, g2p)
    return Lexicon({**lexicon.pronunciations, **guessed.pronunciations}), left_out


def write_tied_alignments(
    output: Path, tied: HiddenMarkovModel, trained: Iterable[StateAlignment], others: Iterable[StateAlignment],
    convert: Callable[[Sequence[int]], Sequence[int]] = lambda ids: ids,
) -> list[str]:  # fmt: skip
    """Write alignments in the states of a tied model, the phone grammar that follows, and the model with its counts.

    Args:
        output: Folder that they go to.
        tied: The model.
        trained: Utterances of training, which counts and grammar are of.
        others: Those that the experiment validates or tests on; their alignments are written, and no more.
        convert: Converts transition ids of alignments to those of the model; to none where that is impossible.
    """
    problems: list[str] = []
    names: set[str] = set()  # of utterances of training

    def convert_alignments() -> Iterator[tuple[str, Iterable[int]]]:
        for aligned in (trained, others):
            for utterance in aligned:
                ids = () if utterance.problem else convert(utterance.transition_ids)
                if not len(ids):
                    problems.append(f"{utterance.id}: {utterance.problem or 'it has more phones than frames are left'}")
                    continue
                if aligned is trained:
                    names.add(utterance.id)
                yield utterance.id, ids

    write_alignments(output / ALIGNMENTS, convert_alignments())
    store = AlignmentStore(output / ALIGNMENTS)
    counts = np.zeros(len(tied.pdf_of))
    for id, ids in store:
        if id in names:
            counts += np.bincount(ids, minlength=len(counts))
    tied = tied.with_counts(counts)
    tied.write(output)
    spoken = phone_grammar(
        [tied.phone_ids[phone] for *_, phone in phone_runs(tied, ids)] for id, ids in store if id in names
    )
    kaldifst.arcsort(spoken, sort_type="ilabel")
    with replacing(output / PHONE_GRAMMAR) as half:
        spoken.write(str(half))
    more = len(problems) - SHOWN
    return [
        f"{len(store)} utterances aligned, {len(problems)} not.",
        *problems[:SHOWN],
        *([f"... and {more} more"] if more > 0 else []),
    ]


def realign(options: argparse.Namespace) -> str:
    """Align everything by a network, with the states that it knows; return what to tell the user."""
    recognizer = prepare_hybrid(options.checkpoint, options.device, options.config)
    model = recognizer.states
    train, others = (
        align_batches(model, every(options.config, subsets, "alignment"), score_by_network(recognizer))
        for subsets in subsets_of(options.config)
    )
    notes = write_tied_alignments(options.output, model, train, others)
    with replacing(options.output / DECODING_GRAPH) as half:
        read_graph(recognizer.folder / DECODING_GRAPH).write(str(half))
    return "\n".join(notes)


def write_together(make: Callable[[argparse.Namespace], str], options: argparse.Namespace) -> str:
    """Write all files of a command or none, since they fit each other only; return what to tell the user."""
    with replacing_files(options.output) as folder:
        notes = make(argparse.Namespace(**{**vars(options), "output": folder}))
    return f"{notes}\nWritten to {options.output.absolute()}"


def tune(options: argparse.Namespace) -> str:
    """Find the acoustic scale with the fewest word errors; return a table."""
    subsets = development_subsets(options.config, options.subsets)
    recognizer = prepare_hybrid(options.checkpoint, options.device, options.config)
    graph = read_graph(recognizer.folder / DECODING_GRAPH)
    scales = options.scales or [scale * recognizer.states.subsampling for scale in SCALES]
    rates = {scale: ErrorRates() for scale in scales}
    for batch in every(options.config, subsets, "search"):
        for text, scores in zip(batch.texts, likelihoods(recognizer, batch), strict=True):
            for scale, rate in rates.items():
                search = GraphSearch(scale, recognizer.search.beam, recognizer.search.max_active)
                hypothesis = " ".join(search(scores, recognizer.states, graph)[0].words)
                rate.update(*([recognizer.tokenizer.fold(words)] for words in (text, hypothesis)))
    if not all(rate.sentence_total for rate in rates.values()):
        raise InputError(f"{', '.join(subsets)}: expected utterances to choose a scale by, but none could be read")
    rates_by_scale = {scale: float(rate.compute()["wer"]) for scale, rate in rates.items()}
    best = min(rates_by_scale, key=lambda scale: rates_by_scale[scale])
    part = {
        "class_path": "asr_lightning.hmm.search.GraphSearch",
        "init_args": {**vars(recognizer.search), "acoustic_scale": best},
    }
    write_atomically(options.output, yaml.safe_dump({"model": {"init_args": {"search": part}}}))
    totals = next(iter(rates.values()))
    lines = [f"acoustic scale {scale:g} (language model weight {1 / scale:.1f}): WER {100 * rate:.2f} %"
             for scale, rate in rates_by_scale.items()]  # fmt: skip
    lines.append(f"Of {int(totals.sentence_total):,} utterances, {int(totals.word_total):,} words.")
    return "\n".join([*lines, f"The best, {best:g}, is in {options.output.absolute()}: give it as a second --config"])
