"""Points of many dimensions in two: PCA, then t-SNE [van der Maaten and Hinton 2008], as in Lim et al. 2019, 2.4."""

import numpy as np
from openTSNE import TSNE

from asr_lightning.analysis.similarity import centered

PAIRS = 3  # openTSNE looks at three times as many neighbours as the perplexity


def principal_components(points: np.ndarray, count: int) -> np.ndarray:
    """Return the first coordinates of points (N, D), (N, count or D), signs fixed by the largest loading."""
    offsets = centered(points)
    values, axes = np.linalg.eigh(offsets.T @ offsets)
    axes = axes[:, np.argsort(values)[::-1][:count]]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    return offsets @ (axes * np.where(signs == 0, 1.0, signs))


def project(
    points: np.ndarray, components: int = 50, perplexity: float = 30.0, iterations: int = 750, seed: int = 1,
    threads: int = 1,
) -> np.ndarray:  # fmt: skip
    """Return t-SNE coordinates (N, 2) of points (N, D), with mean 0 and mean square 1.

    Args:
        points: At least 4; equal points get equal coordinates, the mean of those that t-SNE gives them.
        components: Principal components given to t-SNE.
        perplexity: About how many neighbours a point has; less where there are few points.
        iterations: Of the optimization, a quarter of them with early exaggeration.
        seed: Of everything random.
        threads: How many; the result does not depend on it.

    Raises:
        ValueError: There are fewer than 4 points, or some are not finite.
    """
    if len(points) < 4 or not np.isfinite(points).all():
        raise ValueError(f"t-SNE needs at least 4 finite points, got {len(points)}, of which some may not be finite")
    reduced = principal_components(points, components)
    scale = reduced[:, 0].std() or 1.0
    # A little noise keeps equal points apart: openTSNE's own initialization divides by zero for them.
    begin = np.random.default_rng(seed).normal(scale=1e-6, size=(len(points), 2))
    begin[:, : reduced.shape[1]] += 1e-4 * reduced[:, :2] / scale
    tsne = TSNE(
        perplexity=min(perplexity, (len(points) - 1) / PAIRS),
        early_exaggeration_iter=iterations // 4,
        n_iter=iterations - iterations // 4,
        initialization=begin,
        random_state=seed,
        n_jobs=threads,
    )
    positions = np.asarray(tsne.fit(reduced / scale))
    _, kinds, counts = np.unique(points, axis=0, return_inverse=True, return_counts=True)
    sums = np.stack([np.bincount(kinds.ravel(), column) for column in positions.T], axis=1)
    return normalized((sums / counts[:, None])[kinds.ravel()])


def normalized(points: np.ndarray) -> np.ndarray:
    """Return points (N, 2) with mean 0 and mean square 1."""
    offsets = centered(points)
    size = np.sqrt(np.square(offsets).sum(axis=1).mean())
    return offsets / size if size > 0 else offsets


def aligned(points: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Rotate and mirror points (N, 2) to be close to those of a reference, point by point.

    The orientation of a projection is arbitrary; layers can be compared only after they are oriented alike.
    """
    left, _, right = np.linalg.svd((points - points.mean(axis=0)).T @ (reference - reference.mean(axis=0)))
    return (points - points.mean(axis=0)) @ left @ right


def counterparts(names: np.ndarray, times: np.ndarray, other_names: np.ndarray, other_times: np.ndarray) -> np.ndarray:
    """Return the row of another layer that is nearest in time in the same utterance, (N,) for every row; -1 for none.

    Args:
        names: (N,) utterances.
        times: (N,) seconds.
        other_names: (M,) utterances.
        other_times: (M,) seconds, rising within an utterance.
    """
    rows = np.full(len(names), -1, dtype=np.int64)
    for name in np.unique(names):
        indices, other_indices = np.flatnonzero(names == name), np.flatnonzero(other_names == name)
        if len(other_indices):
            rows[indices] = other_indices[np.abs(times[indices][:, None] - other_times[other_indices]).argmin(axis=1)]
    return rows
