"""CTC output: of a recogniser that has nothing else, or beside a decoder."""

from torch import Tensor, nn

from asr_lightning.losses.ctc import ctc_loss
from asr_lightning.nn.axes import Axis, Tokens, axis, axis_size


class CTCOutput(nn.Linear):
    """Scores every token for every encoder frame.

    Args:
        vocabulary: The V tokens.
        blank_id: The blank's token id.
        encoded: What the dimensions of the encoder's output mean.
        bias: Whether every token has one.
    """

    def __init__(self, vocabulary: tuple[str, ...], blank_id: int, encoded: Axis, bias: bool = True) -> None:
        super().__init__(axis_size(encoded), len(vocabulary), bias)
        self.vocabulary = vocabulary
        self.blank_id = blank_id
        self.encoded = encoded

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Say that there is a row per token."""
        tokens = axis(Tokens(self.vocabulary))
        axes: dict[str, tuple[Axis, ...]] = {"weight": (tokens, self.encoded)}
        return axes if self.bias is None else {**axes, "bias": (tokens,)}

    def loss(self, encoded: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor) -> Tensor:
        """Return the CTC loss (B,) of token ids (B, U), given encoded utterances (B, T, D)."""
        return ctc_loss(self(encoded), targets, lengths, target_lengths, self.blank_id)
