"""Gaussian mixtures of a hybrid, in the steps of Kaldi's recipes: monophones, tied states, triphones.

Kaldi's recipe for LibriSpeech (egs/librispeech/s5/run.sh) begins with the shortest utterances, whose equal parts are
nearly right from the start, and goes on to triphones with more speech.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from asr_lightning.batch import Batch
from asr_lightning.files import append_to
from asr_lightning.hmm import gmm, tree
from asr_lightning.hmm.frame_alignment import align_frames
from asr_lightning.hmm.graph import expand_to_states, sentence_transducer
from asr_lightning.hmm.model import HiddenMarkovModel
from asr_lightning.hmm.tree import phonetic_questions
from asr_lightning.text.lexicon import capitals
from asr_lightning.tools.state_alignment import Decodable, Decodables
from asr_lightning.tools.subsets import portion

LOG = "mixtures.csv"
COLUMNS = "model,pass,log_likelihood_per_frame,gaussians,not_aligned\n"


@dataclass(frozen=True)
class TrainedMixtures:
    """Gaussian mixtures and their training data.

    Attributes:
        mixtures: Of all pdfs.
        words: Of each utterance, by name.
        features: (T, D) of each utterance, by name.
        alignments: Transition ids of each utterance that could be aligned by these mixtures, one a frame.
    """

    mixtures: gmm.GaussianMixtures
    words: dict[str, list[str]]
    features: dict[str, np.ndarray]
    alignments: dict[str, list[int]]

    def aligned(self, step: int = 1) -> Iterator[tuple[np.ndarray, list[int]]]:
        """Give every step-th feature frame and the transition ids of the utterances."""
        return ((self.features[id][::step], ids) for id, ids in self.alignments.items())


def train_mixtures(options: argparse.Namespace, model: HiddenMarkovModel, train: Sequence[str]) -> TrainedMixtures:
    """Train monophones, tie the states of triphones, and train these.

    Args:
        options: Of `hybrid prepare`.
        model: Of monophones.
        train: Subsets to learn from.
    """
    with append_to(options.output / LOG) as file:
        file.write(COLUMNS)
    monophones = train_monophones(options, model, train)
    words, features = read(options, model, train, options.triphone_minutes, "triphones", options.seed)
    decodables = {id: monophones.decodable(frames) for id, frames in features.items()}
    counted = monophones.model  # with the transitions that were seen
    aligned = {
        id: align_frames(decodable, expand_to_states(counted, sentence_transducer(counted, words[id])))
        for id, decodable in decodables.items()
    }
    untied = TrainedMixtures(monophones, words, features, {id: ids for id, ids in aligned.items() if ids})
    tied = tie(options, counted, untied.aligned())
    initial = {id: tree.convert(counted, tied, ids) if ids else [] for id, ids in aligned.items()}
    examples = [
        gmm.TrainingUtterance(id, features[id], expand_to_states(tied, sentence_transducer(tied, words[id])))
        for id in features
    ]
    triphones = train_passes(options, "triphones", tied, examples, options.triphone_passes, initial)
    realigned = {example.id: align_frames(triphones.decodable(example.features), example.graph) for example in examples}
    return TrainedMixtures(triphones, words, features, {id: ids for id, ids in realigned.items() if ids})


def train_monophones(
    options: argparse.Namespace, model: HiddenMarkovModel, train: Sequence[str]
) -> gmm.GaussianMixtures:
    """Train Gaussian mixtures of monophones on the shortest utterances, from a flat start."""
    words, features = read(options, model, train, options.gmm_minutes, "monophones", None)
    examples = [
        gmm.TrainingUtterance(id, features[id], expand_to_states(model, sentence_transducer(model, words[id])))
        for id in features
    ]
    return train_passes(options, "monophones", model, examples, options.passes, None)


def read(
    options: argparse.Namespace, model: HiddenMarkovModel, train: Sequence[str], minutes: float, title: str,
    seed: int | None,
) -> tuple[dict[str, list[str]], dict[str, np.ndarray]]:  # fmt: skip
    """Return words and features of utterances whose words are in the lexicon, by name.

    Args:
        options: Of `hybrid prepare`.
        model: Whose lexicon.
        train: Subsets.
        minutes: Of audio.
        title: Of the progress bar.
        seed: Of the random choice of utterances; None for the shortest ones.
    """
    words, features = {}, {}
    for id, spoken, values in utterances(portion(options.config, train, 60 * minutes, f"features: {title}", seed)):
        if all(word in model.word_ids for word in spoken):
            words[id], features[id] = spoken, values
    return words, features


def train_passes(
    options: argparse.Namespace,
    title: str,
    model: HiddenMarkovModel,
    examples: Sequence[gmm.TrainingUtterance],
    passes: int,
    alignments: dict[str, list[int]] | None,
) -> gmm.GaussianMixtures:
    """Train the mixtures of a model; the number of their Gaussians follows from that of frames."""
    frames = sum(len(example.features) for example in examples)
    gaussians = max(model.pdfs, int(frames / options.frames_per_gaussian))
    log = (options.output / LOG).open("a", encoding="utf-8")
    with log, tqdm(total=passes, desc=title, unit="pass", disable=not sys.stderr.isatty()) as bar:
        for result, trained in gmm.train(model, examples, passes, gaussians, options.seed, alignments):
            mixtures = trained
            log.write(f"{title},{result.number},{result.log_likelihood:.4f},{result.gaussians},{result.failed}\n")
            bar.update()
            bar.set_postfix(log_likelihood=f"{result.log_likelihood:.2f}")
    return mixtures


def tie(
    options: argparse.Namespace, model: HiddenMarkovModel, aligned: Iterable[tuple[np.ndarray, Sequence[int]]]
) -> HiddenMarkovModel:
    """Return a model of monophones with triphones tied, by statistics of aligned features."""
    statistics = tree.accumulate(model, aligned)
    return tree.tie_states(
        model, statistics, options.tied_states, phonetic_questions(model.phones), options.least_frames
    )


def utterances(batches: Iterable[Batch]) -> Iterator[tuple[str, list[str], np.ndarray]]:
    """Give the name, the words and the features (T, D) of every utterance, as Gaussian mixtures read them."""
    features = gmm.CepstralFeatures()
    for batch in batches:
        for id, text, audio, length in zip(batch.ids, batch.texts, batch.audio, batch.audio_lengths, strict=True):
            yield id, capitals(text).split(), features(audio[:length])


def score_by_mixtures(mixtures: gmm.GaussianMixtures) -> Decodables:
    """Return a function that gives the log likelihoods of a batch by Gaussian mixtures."""

    def decodables(batch: Batch) -> list[Decodable]:
        return [Decodable(mixtures.decodable(features), len(features)) for _, _, features in utterances([batch])]

    return decodables
