"""The transducer loss by its definition, and by its recursion."""

from itertools import combinations_with_replacement

import torch
from torch import Tensor


def all_paths(log_probs: Tensor, target: list[int], blank: int) -> float:
    """The log of the summed probability of every way to spread U tokens over T frames; log_probs is (T, U + 1, V)."""
    totals = []
    for onsets in combinations_with_replacement(range(len(log_probs)), len(target)):
        emitted, total = 0, 0.0
        for frame in range(len(log_probs)):
            for _ in range(onsets.count(frame)):
                total += float(log_probs[frame, emitted, target[emitted]])
                emitted += 1
            total += float(log_probs[frame, emitted, blank])
        totals.append(total)
    return float(torch.tensor(totals, dtype=torch.float64).logsumexp(0))


def forward_recursion(logits: Tensor, target: list[int], blank: int) -> Tensor:
    """The same by dynamic programming, differentiable; logits is (T, U + 1, V)."""
    log_probs = logits.log_softmax(-1)
    alpha: dict[tuple[int, int], Tensor] = {(0, 0): logits.new_zeros(())}
    for frame in range(len(logits)):
        for emitted in range(len(target) + 1):
            arrivals = []
            if frame:
                arrivals.append(alpha[frame - 1, emitted] + log_probs[frame - 1, emitted, blank])
            if emitted:
                arrivals.append(alpha[frame, emitted - 1] + log_probs[frame, emitted - 1, target[emitted - 1]])
            if arrivals:
                alpha[frame, emitted] = torch.stack(arrivals).logsumexp(0)
    return -(alpha[len(logits) - 1, len(target)] + log_probs[-1, -1, blank])


def fast_emit_gradient(logits: Tensor, target: list[int], blank: int, weight: float) -> Tensor:
    """The gradient of L + weight L', every path by itself: in L' the probabilities of blanks are constants.

    logits is (T, U + 1, V).
    """
    leaf = logits.detach().clone().requires_grad_()
    log_probs = leaf.log_softmax(-1)
    blanks = log_probs[..., blank]
    losses = []
    for passed in (blanks, blanks.detach()):
        totals = []
        for onsets in combinations_with_replacement(range(len(logits)), len(target)):
            emitted, total = 0, log_probs.new_zeros(())
            for frame in range(len(logits)):
                for _ in range(onsets.count(frame)):
                    total = total + log_probs[frame, emitted, target[emitted]]
                    emitted += 1
                total = total + passed[frame, emitted]
            totals.append(total)
        losses.append(-torch.stack(totals).logsumexp(0))
    return torch.autograd.grad(losses[0] + weight * losses[1], leaf)[0]
