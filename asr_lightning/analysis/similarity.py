"""Similarity of what two layers compute of the same frames [Kornblith et al. 2019, §3]."""

from collections.abc import Sequence

import numpy as np


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Return the linear centered kernel alignment of two layers, from 0 to 1; NaN where one of them is constant.

    It is 1 where one layer is a rotation of the other, scaled and shifted. Between layers that have nothing to do with
    each other it falls with the number of frames, and rises with that of units: about D / N where both have D.

    Args:
        x: (N, D) frames of a layer.
        y: (N, E) the same frames of the other.

    Raises:
        ValueError: The numbers of frames differ, or there are fewer than two.
    """
    if len(x) != len(y) or len(x) < 2:
        raise ValueError(f"expected the same two frames or more of both layers, got {len(x)} and {len(y)}")
    x, y = centered(x), centered(y)
    scale = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.linalg.norm(y.T @ x) ** 2 / scale) if scale > 0 else float("nan")


def centered(values: np.ndarray) -> np.ndarray:
    """Return values (N, D) less their mean, with 64 bits; exactly 0 where a dimension is constant.

    A mean is rounded, so that 0.1 less the mean of 0.1, 0.1 and 0.1 is not 0, and a deviation of rounding alone would
    be taken for one of the values. Offsets from the first row are 0, and so is their mean.
    """
    offsets = np.subtract(values, values[:1], dtype=np.float64)
    return offsets - offsets.mean(axis=0)


def stretched(values: np.ndarray, frames: int) -> np.ndarray:
    """Return `frames` frames of an utterance (T, D), evenly repeated or left out."""
    return values[np.arange(frames) * len(values) // frames]


def layer_similarities(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> np.ndarray:
    """Return the similarity of each layer of a network with each of another, (L, M).

    Args:
        first: L layers, (N, D) each, of the same N frames.
        second: M layers likewise.
    """
    return np.array([[linear_cka(x, y) for y in second] for x in first]).reshape(len(first), len(second))
