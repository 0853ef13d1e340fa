"""Alignments of frames with the states of a hybrid: by a network, or as stored in files."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import kaldi_hmm_gmm as kaldi
import numpy as np
import torch

from asr_lightning.batch import Batch
from asr_lightning.errors import InputError
from asr_lightning.hmm.frame_alignment import align_frames
from asr_lightning.hmm.graph import expand_to_states, sentence_transducer
from asr_lightning.hmm.model import HiddenMarkovModel
from asr_lightning.hmm.search import by_transition
from asr_lightning.hmm.store import AlignmentStore
from asr_lightning.models.blstm_hmm import BLSTMHMM
from asr_lightning.text.lexicon import capitals
from asr_lightning.text.phones import SILENCE
from asr_lightning.tools.prepared_recognizer import prepare_recognizer

ACOUSTIC_SCALE = 0.1


@dataclass(frozen=True)
class Decodable:
    """Scores of an utterance's frames.

    Attributes:
        scores: Scaled log likelihoods, as Kaldi's searches ask for them.
        frames: T.
        log_posteriors: (T, pdfs) by a network; Gaussian mixtures give none.
    """

    scores: kaldi.DecodableInterface
    frames: int
    log_posteriors: np.ndarray | None = None


Decodables = Callable[[Batch], list[Decodable]]


@dataclass(frozen=True)
class StateAlignment:
    """An utterance and its transition ids, one a frame; or why there are none."""

    id: str
    words: tuple[str, ...] = ()
    transition_ids: tuple[int, ...] = ()
    seconds: float = 0.0
    problem: str = ""


def align_batches(
    model: HiddenMarkovModel, batches: Iterable[Batch], decodables: Decodables, least_fit: float = -math.inf
) -> Iterator[StateAlignment]:
    """Align utterances one by one; those that cannot be aligned have the reason as their `problem`.

    Almost any transcript can be aligned with almost any audio. Whether they match is measured by the network: by its
    posteriors of the aligned states, which it computes from the audio alone.

    Args:
        model: Whose states.
        batches: Of utterances with transcripts.
        decodables: Returns the scores of the frames of each utterance of a batch.
        least_fit: Mean log posterior of the states of an alignment without pauses, below which audio and transcript do
            not match; Gaussian mixtures have no posteriors to compare.
    """
    for batch in batches:
        if not len(batch):
            continue
        for number, decodable in enumerate(decodables(batch)):
            words = tuple(capitals(batch.texts[number]).split())
            seconds = int(batch.audio_lengths[number]) / batch.sample_rate
            yield _align(model, batch.ids[number], words, decodable, seconds, least_fit)


def _align(
    model: HiddenMarkovModel, id: str, words: tuple[str, ...], decodable: Decodable, seconds: float, least_fit: float
) -> StateAlignment:
    unknown = [word for word in words if word not in model.word_ids]
    if unknown or not words:
        return StateAlignment(
            id, problem=f"not in the lexicon: {', '.join(unknown)}" if unknown else "an empty transcript"
        )
    shortest = model.states * sum(min(map(len, model.lexicon.pronunciations[word])) for word in words)
    if decodable.frames < shortest:
        return StateAlignment(id, problem=f"too short: {decodable.frames} frames, its words need {shortest}")
    ids = align_frames(decodable.scores, expand_to_states(model, sentence_transducer(model, words)))
    if not ids:
        return StateAlignment(id, problem="audio and transcript do not match: no way through within the beam")
    if decodable.log_posteriors is not None and not (fit := _fit(model, ids, decodable.log_posteriors)) >= least_fit:
        detail = f"a mean log posterior of {fit:.2f} without pauses, expected {least_fit:g} or more"
        return StateAlignment(id, problem=f"audio and transcript do not match: {detail}")
    return StateAlignment(id, words, tuple(ids), seconds)


def _fit(model: HiddenMarkovModel, transition_ids: Sequence[int], log_posteriors: np.ndarray) -> float:
    """Return the mean log posterior of an alignment's states, pauses left out: they are in any audio."""
    ids = np.array(transition_ids)
    fits = log_posteriors[np.arange(len(ids)), model.pdf_of[ids]]
    return float(fits[model.phone_of[ids] != model.phone_ids[SILENCE]].mean())


def score_by_network(recognizer: BLSTMHMM, scale: float = ACOUSTIC_SCALE) -> Decodables:
    """Return a function that scores frames by a network."""
    log_priors = recognizer.log_priors.cpu().numpy()

    def decodables(batch: Batch) -> list[Decodable]:
        return [
            Decodable(kaldi.DecodableCtc(by_transition(recognizer.states, scale * row)), len(row), row + log_priors)
            for row in likelihoods(recognizer, batch)
        ]

    return decodables


@torch.no_grad()
def likelihoods(recognizer: BLSTMHMM, batch: Batch) -> list[np.ndarray]:
    """Return the log likelihoods (T, pdfs) of each utterance."""
    batch = batch.to(recognizer.device)
    encoded, lengths = recognizer(batch.audio, batch.audio_lengths)
    rows = recognizer.log_likelihoods(encoded).cpu().numpy()
    return [row[:length] for row, length in zip(rows, lengths.tolist(), strict=True)]


def read_alignments(store: AlignmentStore, batches: Iterable[Batch]) -> Iterator[StateAlignment]:
    """Yield the stored alignments of utterances."""
    for batch in batches:
        for id, text, samples in zip(batch.ids, batch.texts, batch.audio_lengths.tolist(), strict=True):
            ids = store.get(id)
            if ids is None:
                yield StateAlignment(id, problem=f"no alignment in {store.path}")
            else:
                yield StateAlignment(
                    id, tuple(capitals(text).split()), tuple(ids.tolist()), samples / batch.sample_rate
                )


def prepare_hybrid(checkpoint: Path, device: str, config: Path) -> BLSTMHMM:
    """Return the hybrid of a checkpoint, as an experiment has it, see `prepare`.

    Raises:
        InputError: It holds no hybrid, or cannot be used.
    """
    recognizer = prepare_recognizer(checkpoint, device, None, config)
    if not isinstance(recognizer, BLSTMHMM):
        raise InputError(f"{checkpoint}: expected a BLSTMHMM, found a {type(recognizer).__name__}")
    return recognizer
