"""The RNN transducer's loss [Graves 2012, "Sequence transduction with recurrent neural networks", section 2.4]."""

import torch
from torch import Tensor
from torchaudio.functional import rnnt_loss


def transducer_loss(
    logits: Tensor, targets: Tensor, encoder_lengths: Tensor, target_lengths: Tensor, blank_id: int
) -> Tensor:
    """Return the negative log likelihood of each utterance, summed over all its alignments.

    An alignment is a walk from frame 0 with no token emitted: at (t, u) it emits token u + 1 and stays in the frame,
    or a blank and goes on to the next frame; the last frame ends with a blank after all tokens. With y the emission
    and b the blank probabilities, the probability of being at (t, u) is

        alpha(t, u) = alpha(t - 1, u) b(t - 1, u) + alpha(t, u - 1) y(t, u - 1),    alpha(0, 0) = 1

    and the loss is -log(alpha(T - 1, U) b(T - 1, U)).

    Args:
        logits: (B, T, U + 1, V), not normalised, in any floating type; may be padded beyond the longest row.
        targets: (B, U) token ids; what lies beyond the lengths is ignored.
        encoder_lengths: (B,) real frames.
        target_lengths: (B,) real tokens; 0 is an empty transcript, whose only alignment is blanks.
        blank_id: The blank's token id.

    Returns:
        (B,) float32 losses; infinite, with a gradient of zero, where an utterance has no frame.

    Raises:
        ValueError: The logits or targets are shorter than the lengths say.
    """
    possible = encoder_lengths > 0  # torchaudio reads memory it never wrote where there is no frame
    if not bool(possible.all()) or not len(logits):
        losses = logits.new_full((len(logits),), float("inf"), dtype=torch.float32)
        if not bool(possible.any()):
            return losses
        rows = possible.nonzero().squeeze(1)
        sound = transducer_loss(logits[rows], targets[rows], encoder_lengths[rows], target_lengths[rows], blank_id)
        return losses.index_copy(0, rows, sound)

    frames, tokens = int(encoder_lengths.max()), int(target_lengths.max())
    if logits.shape[1] < frames or logits.shape[2] < tokens + 1 or targets.shape[1] < tokens:
        raise ValueError(
            f"{frames} frames and {tokens} tokens need logits of at least (B, {frames}, {tokens + 1}, V) and targets "
            f"of (B, {tokens}), got {tuple(logits.shape)} and {tuple(targets.shape)}"
        )
    return rnnt_loss(
        logits[:, :frames, : tokens + 1].float().contiguous(),  # torchaudio takes no logits longer than the longest row
        targets[:, :tokens].int().contiguous(),
        encoder_lengths.int(),
        target_lengths.int(),
        blank=blank_id,
        reduction="none",
        fused_log_softmax=True,
    )
