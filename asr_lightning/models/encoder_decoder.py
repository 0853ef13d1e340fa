"""Encoder and attention decoder: LAS, end-to-end models A and B, Speech Transformer, each with CTC beside or not.

These architectures differ in their encoders and decoders alone, and an experiment names those by class paths.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from asr_lightning.batch import Batch
from asr_lightning.decoding.attention import AttentionSearch
from asr_lightning.decoding.hypothesis import Hypothesis
from asr_lightning.errors import InputError
from asr_lightning.losses.cross_entropy import cross_entropy_loss
from asr_lightning.losses.ctc import ctc_loss
from asr_lightning.models.recognizer import Recognizer, check_input_dimension
from asr_lightning.nn.axes import Axis, Tokens, axis
from asr_lightning.nn.decoder import Decoder
from asr_lightning.nn.encoder import Encoder


class EncoderDecoder(Recognizer):
    """Hears the whole utterance, then writes the transcript token by token.

    Args:
        encoder: A class of `asr_lightning.nn.recurrent`, `asr_lightning.nn.conformer`, …
        decoder: `asr_lightning.models.listen_attend_spell.Speller` or
            `asr_lightning.models.speech_transformer.TransformerDecoder`; it gets the vocabulary and the encoder's axis.
        ctc_weight: Share in the loss of a CTC output on the encoder, 0 to 1; 0 leaves it out
            [Kim et al. 2017, "Joint CTC-attention", §3.1].
        label_smoothing: Share of the decoder's targets that is spread over all tokens.
        search: How to decode; greedily if None.
        **recognizer: Arguments of `Recognizer`.

    Raises:
        InputError: The encoder does not fit the features, or a number is out of its range.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: Callable[[tuple[str, ...], Axis], Decoder],
        ctc_weight: float = 0.0,
        label_smoothing: float = 0.0,
        search: AttentionSearch | None = None,
        **recognizer: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**recognizer)
        check_input_dimension(encoder, self.features)
        if not (0.0 <= ctc_weight <= 1.0 and 0.0 <= label_smoothing < 1.0):
            raise InputError(
                "EncoderDecoder needs 0 <= ctc_weight <= 1 and 0 <= label_smoothing < 1, got "
                f"ctc_weight={ctc_weight} and label_smoothing={label_smoothing}"
            )
        self.encoder = encoder
        self.decoder = decoder(self.tokenizer.tokens, encoder.output_axis())
        self.ctc_weight = ctc_weight
        self.ctc = nn.Linear(encoder.dimension, len(self.tokenizer)) if ctc_weight > 0 else None
        self.label_smoothing = label_smoothing
        self.search = search or AttentionSearch()

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Say that CTC has a row per token."""
        tokens = axis(Tokens(self.tokenizer.tokens))
        return {} if self.ctc is None else {"ctc.weight": (tokens, self.encoder.output_axis()), "ctc.bias": (tokens,)}

    def forward(self, audio: Tensor, audio_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode audio (B, S) as (B, T, D), and say how many frames of each row are real, (B,)."""
        return self.encoder(*self.featurize(audio, audio_lengths))

    def loss(self, batch: Batch) -> Tensor:
        """Return the cross-entropy of each utterance, mixed with its CTC loss, (B,)."""
        encoded, lengths = self(batch.audio, batch.audio_lengths)  # (B, T, D)
        targets, target_lengths = self.targets(batch)  # (B, U)
        edge = targets.new_full((len(batch), 1), self.tokenizer.eos_id)
        logits = self.decoder(torch.cat([edge, targets], dim=1), self.decoder.remember(encoded, lengths))
        following = torch.cat([targets, edge], dim=1).scatter(1, target_lengths.unsqueeze(1), self.tokenizer.eos_id)
        losses = cross_entropy_loss(logits, following, target_lengths + 1, self.label_smoothing)
        if self.ctc is None:
            return losses
        aligned = ctc_loss(self.ctc(encoded), targets, lengths, target_lengths, self.tokenizer.blank_id)
        return (1.0 - self.ctc_weight) * losses + self.ctc_weight * aligned

    @torch.no_grad()
    def recognize(self, batch: Batch) -> list[list[Hypothesis]]:
        """Return the hypotheses of each of the B utterances, best first."""
        encoded, lengths = self(batch.audio, batch.audio_lengths)
        ctc_logits = None if self.ctc is None else self.ctc(encoded)
        return self.search(self.decoder, self.decoder.remember(encoded, lengths), lengths, self.tokenizer, ctc_logits)
