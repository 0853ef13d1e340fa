"""Hypotheses of a hybrid for a batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from asr_lightning.audio.features import LogMel
from asr_lightning.batch import Batch, Utterance
from asr_lightning.hmm.graph import decoding_graph
from asr_lightning.hmm.model import HiddenMarkovModel
from asr_lightning.hmm.search import GraphSearch
from asr_lightning.models.blstm_hmm import BLSTMHMM, DECODING_GRAPH
from asr_lightning.nn.projected_lstm import RecurrentProjectionEncoder
from asr_lightning.text.lexicon import Lexicon
from asr_lightning.text.smoothing import kneser_ney
from asr_lightning.text.tokenizers import CharacterTokenizer

LENGTHS = [40, 0, 1, 25]  # frames


class RandomFrames(BLSTMHMM):
    """A hybrid with random frames in place of its encoder's."""

    def forward(self, audio: Tensor, audio_lengths: Tensor) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1)
        encoded = torch.randn(len(LENGTHS), max(LENGTHS), self.encoder.dimension, generator=generator)
        return 10 * encoded, torch.tensor(LENGTHS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lexicon = Lexicon({"A": (("P",),), "B": (("Q", "P"),), "C": (("R",),)})
    model = HiddenMarkovModel.monophone(lexicon)
    model.with_counts(np.ones(len(model.pdf_of))).write(tmp_path)
    decoding_graph(model, kneser_ney([["A", "B"], ["C"], ["B", "C", "A"]], 2)).write(str(tmp_path / DECODING_GRAPH))
    return tmp_path


def test_several_hypotheses_of_utterances_of_all_lengths(folder: Path) -> None:
    torch.manual_seed(0)
    encoder = RecurrentProjectionEncoder(20, hidden=4, layers=1, recurrent_projection=4, projection=4)
    parts = {"tokenizer": CharacterTokenizer(), "features": LogMel(mels=20), "encoder": encoder}
    recognizer = RandomFrames(str(folder), GraphSearch(1.0, 1000.0, hypotheses=5, lattice_beam=100.0), **parts)
    batch = Batch.collate([Utterance(f"{n}", torch.zeros(800), 8000, "A") for n in range(len(LENGTHS))], 8000)
    n_best_lists = recognizer.recognize(batch)
    recognizer.search = GraphSearch(1.0, 1000.0)
    for n_best, one_best in zip(n_best_lists, recognizer.recognize(batch), strict=True):
        assert len(one_best) == 1 and n_best[0].tokens == one_best[0].tokens
        assert n_best[0].score == pytest.approx(one_best[0].score, abs=1e-3)
        scores = [hypothesis.score for hypothesis in n_best]
        assert (
            scores == sorted(scores, reverse=True)
            and len({hypothesis.tokens for hypothesis in n_best}) == len(n_best) <= 5
        )
    assert [len(n_best) for n_best in n_best_lists][::3] == [5, 5] and n_best_lists[1][0].tokens == ()
