"""Beam search of words in a decoding graph: Kaldi's decoder for the best sentence, our own for several."""

from collections.abc import Sequence
from dataclasses import dataclass

import kaldi_hmm_gmm as kaldi
import kaldifst
import numpy as np

from asr_lightning.errors import InputError
from asr_lightning.hmm.beam_search import BeamSearch
from asr_lightning.hmm.lattice import Lattice, best_sentences
from asr_lightning.hmm.model import HiddenMarkovModel
from asr_lightning.hmm.search_graph import search_graph


@dataclass(frozen=True)
class FoundSentence:
    """A hypothesis of the search.

    Attributes:
        words: As the lexicon writes them.
        score: Log probability: that of the graph, and the scaled one of the frames.
        transition_ids: One a frame; none where the sentence comes from a lattice.
    """

    words: tuple[str, ...]
    score: float
    transition_ids: tuple[int, ...] = ()


class GraphSearch:
    """Search for the most probable words.

    Args:
        acoustic_scale: Of log likelihoods: a language model of weight w is one of 1 / w here. `asr hybrid tune` finds
            the best one on a development set.
        beam: Of log probabilities, below the best at each frame.
        max_active: States that are followed per frame, at most.
        hypotheses: Sentences, at most. Kaldi's decoder finds one; more are read off a lattice, which takes longer.
        lattice_beam: Of log probabilities, below the best sentence: what a lattice holds. The list of hypotheses is
            exact so far down.

    Raises:
        InputError: A number is out of its range.
    """

    def __init__(
        self,
        acoustic_scale: float = 0.1,
        beam: float = 13.0,
        max_active: int = 7000,
        hypotheses: int = 1,
        lattice_beam: float = 8.0,
    ) -> None:
        numbers = {
            "acoustic_scale": acoustic_scale, "beam": beam, "max_active": max_active, "hypotheses": hypotheses,
            "lattice_beam": lattice_beam,
        }  # fmt: skip
        for name, number in numbers.items():
            if not number > 0:
                raise InputError(f"{name} must be above 0, got {number}")
        self.acoustic_scale = acoustic_scale
        self.beam = beam
        self.max_active = max_active
        self.hypotheses = hypotheses
        self.lattice_beam = lattice_beam

    def __call__(
        self, log_likelihoods: np.ndarray, model: HiddenMarkovModel, graph: kaldifst.StdVectorFst
    ) -> list[FoundSentence]:
        """Return the best sentences, the best one first; beginnings of them if none ends with the last frame.

        Where no path survives the beam, there is one without words and with the score -inf.

        Args:
            log_likelihoods: (T, pdfs) of an utterance.
            model: Whose pdfs.
            graph: From transition ids to word ids.
        """
        if self.hypotheses > 1 or not len(log_likelihoods):  # Kaldi's decoder refuses to begin without a frame
            sentences = best_sentences(self.lattice(log_likelihoods, model, graph), self.hypotheses)
            return [FoundSentence(words, -cost) for words, cost in sentences] or [FoundSentence((), -np.inf)]
        scores = by_transition(model, self.acoustic_scale * log_likelihoods)
        config = kaldi.LatticeFasterDecoderConfig(self.beam, self.max_active)
        decoder = kaldi.LatticeFasterDecoderStdVectorFst(graph, config)
        ok, ids, words, score = kaldi.decode_utterance_lattice_faster(
            decoder, kaldi.DecodableCtc(scores), model.transitions, "", True
        )
        return [FoundSentence(_words_of(model, words), float(score), tuple(ids)) if ok else FoundSentence((), -np.inf)]

    def lattice(self, log_likelihoods: np.ndarray, model: HiddenMarkovModel, graph: kaldifst.StdVectorFst) -> Lattice:
        """Return the lattice of all paths close to that of the best sentence.

        Args:
            log_likelihoods: (T, pdfs) of an utterance.
            model: Whose pdfs.
            graph: From transition ids to word ids; it must not have changed since the last search in it.

        Raises:
            InputError: Arcs of the graph that consume no frame form a cycle.
        """
        scores = by_transition(model, self.acoustic_scale * log_likelihoods)
        return BeamSearch(search_graph(graph), self.beam, self.max_active, self.lattice_beam)(scores, model.words)


def by_transition(model: HiddenMarkovModel, log_likelihoods: np.ndarray) -> np.ndarray:
    """Return the log likelihoods (T, transition ids) of (T, pdfs), as Kaldi's searches ask for them."""
    return np.ascontiguousarray(log_likelihoods[:, model.pdf_of[1:]], dtype=np.float32)


def _words_of(model: HiddenMarkovModel, words: Sequence[int]) -> tuple[str, ...]:
    return tuple(model.words[number - 1] for number in words if number)
