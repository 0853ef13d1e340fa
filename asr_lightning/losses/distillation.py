"""Distances of a student from its teacher, frame by frame [Hinton et al. 2015]."""

import math

import torch
from torch import Tensor

from asr_lightning.nn.sequences import real_frames, silence_padding


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of a student's distributions from a teacher's, (...).

    Args:
        teacher: (..., K) log probabilities; minus infinity adds nothing.
        student: (..., K) log probabilities.
    """
    ratio = (teacher - student).masked_fill(teacher == -math.inf, 0.0)
    return (teacher.exp() * ratio).sum(dim=-1)


def log_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the logarithm of the softmax of logits (..., V) over a temperature, at least in float32."""
    precise = torch.promote_types(logits.dtype, torch.float32)
    return (logits.to(precise) / temperature).log_softmax(dim=-1)


def frame_divergence(student: Tensor, teacher: Tensor, lengths: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the divergence of a student's CTC posteriors from a teacher's, summed over real frames, (B,).

    Args:
        student: (B, T, V) logits.
        teacher: (B, T, V) logits.
        lengths: (B,) real frames.
        temperature: Divides both logits; the divergence is multiplied by its square, so that the size of its gradient
            does not change [Hinton et al. 2015, §2].
    """
    expected, student = (log_probabilities(silence_padding(x, lengths), temperature) for x in (teacher, student))
    return temperature**2 * silence_padding(divergence(expected, student), lengths).sum(dim=1)


def frame_error(student: Tensor, teacher: Tensor, lengths: Tensor) -> Tensor:
    """Return the mean squared difference over the real frames and units of each utterance, (B,); 0 without frames.

    Args:
        student: (B, T, D).
        teacher: (B, T, D).
        lengths: (B,) real frames.
    """
    frames = (student.float() if student.dtype != torch.float64 else student) - teacher
    frames = frames.masked_fill(~real_frames(lengths, frames.shape[1]).unsqueeze(2), 0.0)
    return frames.square().mean(dim=2).sum(dim=1) / lengths.clamp(min=1)
