"""Beam search of words in a decoding graph, with Kaldi's decoders."""

from collections.abc import Sequence
from dataclasses import dataclass

import kaldi_hmm_gmm as kaldi
import kaldifst
import numpy as np

from asr_lightning.errors import InputError
from asr_lightning.hmm.model import HiddenMarkovModel


@dataclass(frozen=True)
class Found:
    """A sentence that was found.

    Attributes:
        words: As the lexicon writes them.
        score: Log probability: that of the graph, and the scaled one of the frames.
        transition_ids: One a frame.
    """

    words: tuple[str, ...]
    score: float
    transition_ids: tuple[int, ...] = ()


class GraphSearch:
    """Looks for the most probable words.

    Args:
        acoustic_scale: Of log likelihoods: a language model of weight w is one of 1 / w here. `tools.hybrid tune` finds
            the best one on a development set.
        beam: Of log probabilities, below the best at each frame.
        max_active: States that are looked at per frame, at most.

    Raises:
        InputError: A number is out of its range.
    """

    def __init__(
        self,
        acoustic_scale: float = 0.1,
        beam: float = 13.0,
        max_active: int = 7000,
    ) -> None:
        if not (acoustic_scale > 0 and beam > 0 and max_active > 0):
            raise InputError(
                f"acoustic_scale, beam and max_active must be above 0, got {acoustic_scale}, {beam} and {max_active}"
            )
        self.acoustic_scale = acoustic_scale
        self.beam = beam
        self.max_active = max_active

    def __call__(self, log_likelihoods: np.ndarray, model: HiddenMarkovModel, graph: kaldifst.StdVectorFst) -> Found:
        """Return the best sentence; the best beginning of one if none ends with the last frame.

        Without frames, and where the beam leaves no way through, it has no words and the score -inf.

        Args:
            log_likelihoods: (T, pdfs) of an utterance.
            model: Whose pdfs.
            graph: From transition ids to word ids.
        """
        if not len(log_likelihoods):
            return Found((), -np.inf)
        scores = by_transition(model, self.acoustic_scale * log_likelihoods)
        config = kaldi.LatticeFasterDecoderConfig(self.beam, self.max_active)
        decoder = kaldi.LatticeFasterDecoderStdVectorFst(graph, config)
        ok, ids, words, score = kaldi.decode_utterance_lattice_faster(
            decoder, kaldi.DecodableCtc(scores), model.transitions, "", True
        )
        return Found(_spell(model, words), float(score), tuple(ids)) if ok else Found((), -np.inf)


def by_transition(model: HiddenMarkovModel, log_likelihoods: np.ndarray) -> np.ndarray:
    """Return the log likelihoods (T, transition ids) of (T, pdfs), as Kaldi's searches ask for them."""
    return np.ascontiguousarray(log_likelihoods[:, model.pdf_of[1:]], dtype=np.float32)


def _spell(model: HiddenMarkovModel, words: Sequence[int]) -> tuple[str, ...]:
    return tuple(model.words[number - 1] for number in words if number)
