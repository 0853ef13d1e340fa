"""Cross-entropy of an attention decoder."""

import torch
from torch import Tensor
from torch.nn import functional

from asr_lightning.nn.sequences import silence_padding


def cross_entropy_loss(logits: Tensor, targets: Tensor, target_lengths: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the negative log likelihood of each utterance, summed over its tokens.

    Args:
        logits: (B, U, V), not normalized; what lies beyond the lengths is ignored, here and in targets.
        targets: (B, U) token ids.
        target_lengths: (B,) real tokens.
        smoothing: Share of probability that is spread evenly over all tokens [Szegedy et al. 2016, §7].

    Returns:
        (B,) losses, float32 or that of float64 logits.
    """
    logits, targets = (silence_padding(x, target_lengths) for x in (logits, targets))
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = functional.cross_entropy(
        precise.flatten(0, 1), targets.flatten().long(), reduction="none", label_smoothing=smoothing
    )
    return silence_padding(losses.view_as(targets), target_lengths).sum(dim=1)
