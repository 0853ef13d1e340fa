"""Encoder and attention decoder: LAS, models A and B of Lim et al. 2019, Speech Transformer; also joint with CTC.

These architectures differ only in their encoders and decoders, which an experiment names by class paths.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from asr_lightning.decoding.attention import AttentionSearch
from asr_lightning.decoding.hypothesis import Hypothesis
from asr_lightning.errors import InputError
from asr_lightning.losses.cross_entropy import cross_entropy_loss
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.nn.axes import Axis
from asr_lightning.nn.sequences import AttentionDecoder


class EncoderDecoder(Recognizer):
    """Encoder-decoder: predicts each token from the tokens before it and an attention over the encoded utterance.

    Args:
        decoder: `asr_lightning.models.listen_attend_spell.Speller` or
            `asr_lightning.models.speech_transformer.TransformerDecoder`, called with vocabulary and axis.
        label_smoothing: Share of the decoder's targets that is spread over all tokens.
        search: Beam search; greedy if None.
        **recognizer: Arguments of `Recognizer`.

    Raises:
        InputError: `label_smoothing` is out of its range, or no token ends a sentence.
    """

    def __init__(
        self,
        decoder: Callable[[tuple[str, ...], Axis], AttentionDecoder],
        label_smoothing: float = 0.0,
        search: AttentionSearch | None = None,
        **recognizer: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**recognizer)
        if not 0.0 <= label_smoothing < 1.0:
            raise InputError(f"EncoderDecoder needs 0 <= label_smoothing < 1, got {label_smoothing}")
        if self.tokenizer.eos_id == self.tokenizer.blank_id:
            name = type(self.tokenizer).__name__
            raise InputError(
                f"EncoderDecoder needs a token for the end of a sentence, which {name} does not have; use another one"
            )
        self.decoder = decoder(self.tokenizer.tokens, self.encoder.output_axis())
        self.label_smoothing = label_smoothing
        self.search = search or AttentionSearch()

    def decoder_loss(self, encoded: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor) -> Tensor:
        """Return the cross-entropy of each utterance, (B,)."""
        edge = targets.new_full((len(targets), 1), self.tokenizer.eos_id)
        logits = self.decoder(torch.cat([edge, targets], dim=1), self.decoder.remember(encoded, lengths))
        following = torch.cat([targets, edge], dim=1).scatter(1, target_lengths.unsqueeze(1), self.tokenizer.eos_id)
        return cross_entropy_loss(logits, following, target_lengths + 1, self.label_smoothing)

    @torch.no_grad()
    def decode(self, encoded: Tensor, lengths: Tensor) -> list[list[Hypothesis]]:
        """Return the hypotheses of each encoded utterance (B, T, D), the best first."""
        ctc_logits = None if self.ctc is None else self.ctc(encoded)
        return self.search(self.decoder, self.decoder.remember(encoded, lengths), lengths, self.tokenizer, ctc_logits)

    @torch.no_grad()
    def token_frames(self, encoded: Tensor, lengths: Tensor, best: list[Hypothesis]) -> list[tuple[int, ...]]:
        """Return the frames of the tokens of the best hypothesis of each encoded utterance (B, T, D).

        Where forced alignment has found none, it is the frame that the attention weights most when the token is
        predicted. A peak earlier than that of the previous token is moved to it, so that times never decrease.
        """
        if all(hypothesis.frames or not hypothesis.tokens for hypothesis in best):
            return super().token_frames(encoded, lengths, best)
        rows = [torch.tensor([self.tokenizer.eos_id, *hypothesis.tokens]) for hypothesis in best]
        tokens = pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.eos_id).to(encoded.device)
        weights = self.decoder.attention_weights(tokens, self.decoder.remember(encoded, lengths))  # (B, U + 1, T)
        peaks = weights.argmax(dim=2).cummax(dim=1).values.tolist()
        return [
            hypothesis.frames or tuple(frames[: len(hypothesis.tokens)])
            for hypothesis, frames in zip(best, peaks, strict=True)
        ]
