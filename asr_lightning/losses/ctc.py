"""Connectionist temporal classification [Graves et al. 2006]."""

import torch
from torch import Tensor
from torch.nn import functional

from asr_lightning.nn.sequences import silence_padding

IMPOSSIBLE = -1e30  # log probability of an impossible token: sums of it stay finite


def ctc_loss(logits: Tensor, targets: Tensor, encoder_lengths: Tensor, target_lengths: Tensor, blank_id: int) -> Tensor:
    """Return the negative log likelihood of each utterance.

    Args:
        logits: (B, T, V), not normalized; what lies beyond the lengths is ignored, here and in targets.
        targets: (B, U) token ids.
        encoder_lengths: (B,) real frames.
        target_lengths: (B,) real tokens.
        blank_id: The blank's token id.

    Returns:
        (B,) losses, float32 or that of float64 logits; infinite, with a gradient of zero, where an utterance has fewer
        frames than its tokens and their repeats need (`T < U + repeats`), or where logits of minus infinity leave no
        path.
    """
    repeated = targets[:, 1:] == targets[:, :-1]
    positions = torch.arange(targets.shape[1], device=targets.device)[1:]
    repeats = (repeated & (positions < target_lengths.unsqueeze(1))).sum(dim=1)
    logits = silence_padding(logits, encoder_lengths).to(torch.promote_types(logits.dtype, torch.float32))
    if not logits.numel():  # torch refuses it
        return logits.sum(dim=(1, 2)).masked_fill(target_lengths > 0, float("inf"))
    losses = functional.ctc_loss(
        # torch's gradient of a token of minus infinity is NaN
        logits.log_softmax(dim=2).clamp(min=IMPOSSIBLE).transpose(0, 1),
        targets,
        encoder_lengths,
        target_lengths,
        blank=blank_id,
        reduction="none",
        zero_infinity=True,  # the gradient of an impossible utterance would be NaN
    )
    impossible = (encoder_lengths < target_lengths + repeats) | (losses >= -IMPOSSIBLE)
    return losses.masked_fill(impossible, float("inf"))
