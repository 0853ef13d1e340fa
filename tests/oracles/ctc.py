"""CTC by its definition."""

from itertools import groupby, product

import torch
from torch import Tensor


def all_paths(log_probs: Tensor, target: list[int], blank: int) -> float:
    """The log of the summed probability of every path over (T, V) that collapses to the target."""
    totals = [
        sum(float(log_probs[frame, token]) for frame, token in enumerate(path))
        for path in product(range(log_probs.shape[1]), repeat=len(log_probs))
        if [token for token, _ in groupby(path) if token != blank] == target
    ]
    return float(torch.tensor(totals, dtype=torch.float64).logsumexp(0))
