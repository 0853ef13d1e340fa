"""Times of tokens: CTC alignments, transducer emission probabilities, movement of attention."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from asr_lightning.decoding.ctc import forced_alignments
from asr_lightning.losses.transducer.lattice import occupancies
from asr_lightning.text.phones import Segment


def token_spans(log_probs: Tensor, tokens: Sequence[int], blank_id: int) -> list[tuple[int, int]] | None:
    """Return first and last frame of every token on the most probable CTC path.

    Args:
        log_probs: (T, V).
        tokens: U token ids, without blanks.
        blank_id: The blank's token id.

    Returns:
        U spans; None where the tokens do not fit into T frames.
    """
    size = torch.tensor([len(log_probs)], device=log_probs.device)
    return forced_alignments(log_probs.unsqueeze(0), size, [0], [tokens], blank_id)[0]


def segments_from_onsets(onsets: Sequence[float], labels: Sequence[str], end: float) -> list[Segment]:
    """End every label where the next one begins, the last at the end; all in seconds."""
    stops = [*onsets, end][1:]
    return [Segment(onset, max(onset, stop), label) for onset, stop, label in zip(onsets, stops, labels, strict=True)]


def emission_probabilities(logits: Tensor, tokens: Sequence[int], blank_id: int) -> Tensor:
    """Return how probable it is that a transducer emits each token at each frame, (U, T), given that it emits them all.

    By the recursions of the loss, for one utterance.

    Args:
        logits: (T, U + 1, V), not normalized.
        tokens: U token ids.
        blank_id: The blank's token id.
    """
    log_probs = logits.double().log_softmax(dim=2).unsqueeze(0)  # (1, T, U + 1, V)
    targets = torch.tensor([*tokens, blank_id], device=logits.device).expand(1, len(logits), -1).unsqueeze(3)
    label = log_probs.gather(3, targets).squeeze(3)  # (1, T, U + 1)
    lengths = (torch.tensor([size], device=logits.device) for size in (len(logits), len(tokens)))
    _, _, by_label = occupancies(log_probs[..., blank_id], label, *lengths)
    return by_label[0, :, :-1].T.float()


@dataclass(frozen=True)
class AttentionFigures:
    """Movement of attention along one utterance.

    Attributes:
        monotonicity: Share of tokens whose center of attention is not before that of the token before.
        coverage: Share of frames that get at least half of what every frame would get of even attention.
        sharpness: Mean of the greatest weight of every token.
        spread: Mean entropy of a token's weights, in nats.
    """

    monotonicity: float
    coverage: float
    sharpness: float
    spread: float


def attention_figures(weights: np.ndarray) -> AttentionFigures:
    """Measure attention weights (U, T), whose rows sum to one.

    Raises:
        ValueError: There are no tokens or no frames.
    """
    if weights.ndim != 2 or 0 in weights.shape:
        raise ValueError(f"expected attention weights of tokens over frames, (U, T), got the shape {weights.shape}")
    centers = weights @ np.arange(weights.shape[1])
    steps = np.diff(centers)
    received = weights.sum(axis=0)
    logs = np.log(np.where(weights > 0, weights, 1.0))
    return AttentionFigures(
        monotonicity=float((steps >= 0).mean()) if len(steps) else 1.0,
        coverage=float((received >= 0.5 * weights.sum() / weights.shape[1]).mean()),
        sharpness=float(weights.max(axis=1).mean()),
        spread=float(-(weights * logs).sum(axis=1).mean()),
    )
