"""Encoders with a CTC output and nothing else [Graves et al. 2006]: Deep Speech 2, Jasper, Conformer-CTC and so on."""

from typing import Any

import torch
from torch import Tensor

from asr_lightning.batch import Batch
from asr_lightning.decoding.ctc_search import CTCSearch
from asr_lightning.decoding.hypothesis import Hypothesis
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.nn.ctc import CTCOutput


class CTCRecognizer(Recognizer):
    """Names a token or a blank for every frame.

    Args:
        search: How to decode; the best path if None.
        **recognizer: Arguments of `Recognizer`; a `ctc_weight` would only add a second output of the same kind.
    """

    def __init__(self, search: CTCSearch | None = None, **recognizer: Any) -> None:  # noqa: ANN401
        super().__init__(**recognizer)
        self.output = CTCOutput(self.tokenizer.tokens, self.tokenizer.blank_id, self.encoder.output_axis())
        self.search = search or CTCSearch()

    def decoder_loss(self, encoded: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor) -> Tensor:
        """Return the CTC loss of each utterance, (B,)."""
        return self.output.loss(encoded, lengths, targets, target_lengths)

    @torch.no_grad()
    def recognize(self, batch: Batch) -> list[list[Hypothesis]]:
        """Return the hypotheses of each of the B utterances, the best first."""
        encoded, lengths = self(batch.audio, batch.audio_lengths)
        return self.search(self.output(encoded), lengths, self.tokenizer)
