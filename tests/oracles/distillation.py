"""Distillation of a transducer by its definition, from the logits of all nodes."""

import math
from itertools import combinations_with_replacement

import torch
from torch import Tensor


def kullback_leibler(p: Tensor, q: Tensor) -> Tensor:
    """Of probabilities, class by class."""
    return sum((a * (a.log() - b.log()) for a, b in zip(p, q, strict=True) if a > 0), torch.zeros((), dtype=q.dtype))


def reduced(logits: Tensor, token: int | None, blank: int, temperature: float) -> Tensor:
    """The probabilities of blank, next token and all others at a node."""
    p = (logits / temperature).softmax(0)
    named = [p[blank]] + ([] if token is None else [p[token]])
    return torch.stack([*named, *([] if token is not None else [torch.zeros((), dtype=p.dtype)]), 1 - sum(named)])


def of_lattice(student: Tensor, teacher: Tensor, target: list[int], blank: int, temperature: float = 1.0) -> Tensor:
    """Of all nodes; the logits are (T, U + 1, V) of an utterance."""
    total = student.new_zeros(())
    for frame in range(len(student)):
        for emitted, token in enumerate([*target, None]):
            both = (reduced(logits[frame, emitted], token, blank, temperature) for logits in (teacher, student))
            total = total + kullback_leibler(*both)
    return temperature**2 * total


def best_alignment(teacher: Tensor, target: list[int], blank: int) -> list[tuple[int, int]]:
    """The nodes of the best of all ways to spread U tokens over T frames."""
    log_probs = teacher.log_softmax(-1)
    best, nodes = -math.inf, []
    for onsets in combinations_with_replacement(range(len(teacher)), len(target)):
        emitted, total, path = 0, 0.0, []
        for frame in range(len(teacher)):
            for _ in range(onsets.count(frame)):
                path.append((frame, emitted))
                total += float(log_probs[frame, emitted, target[emitted]])
                emitted += 1
            path.append((frame, emitted))
            total += float(log_probs[frame, emitted, blank])
        if total > best:
            best, nodes = total, path
    return nodes


def of_path(student: Tensor, teacher: Tensor, target: list[int], blank: int, temperature: float = 1.0) -> Tensor:
    """Of the nodes of the teacher's best alignment, with all tokens."""
    total = student.new_zeros(())
    for frame, emitted in best_alignment(teacher, target, blank) if len(teacher) else []:
        both = ((logits[frame, emitted] / temperature).softmax(0) for logits in (teacher, student))
        total = total + kullback_leibler(*both)
    return temperature**2 * total
