"""CTC recognizer: an encoder with a CTC output [Graves et al. 2006], as Deep Speech 2, Jasper and Conformer-CTC."""

from typing import Any

import torch
from torch import Tensor

from asr_lightning.decoding.ctc_search import CTCSearch
from asr_lightning.decoding.hypothesis import Hypothesis
from asr_lightning.models.recognizer import CTCOutput, Recognizer


class CTCRecognizer(Recognizer):
    """Predicts a token or a blank for every frame.

    Args:
        search: Prefix beam search; the best path if None.
        output_bias: Whether every token has a bias in the output layer.
        loss_per_token: Divide the loss of each utterance by the number of its tokens, so that a long transcript has the
            weight of a short one; torch's `CTCLoss` does so with `reduction="mean"`, and KoSpeech with it.
        **recognizer: Arguments of `Recognizer`; a `ctc_weight` would only add a second output of the same kind.
    """

    def __init__(
        self,
        search: CTCSearch | None = None,
        output_bias: bool = True,
        loss_per_token: bool = False,
        **recognizer: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**recognizer)
        axis = self.encoder.output_axis()
        self.output = CTCOutput(self.tokenizer.tokens, self.tokenizer.blank_id, axis, output_bias)
        self.loss_per_token = loss_per_token
        self.search = search or CTCSearch()

    def decoder_loss(self, encoded: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor) -> Tensor:
        """Return the CTC loss of each utterance, (B,), per token if `loss_per_token`."""
        losses = self.output.loss(encoded, lengths, targets, target_lengths)
        return losses / target_lengths.clamp(min=1) if self.loss_per_token else losses

    @torch.no_grad()
    def decode(self, encoded: Tensor, lengths: Tensor) -> list[list[Hypothesis]]:
        """Return the hypotheses of each encoded utterance (B, T, D), the best first."""
        return self.search(self.output(encoded), lengths, self.tokenizer)
