"""Measurements of layers: clustering by phone and by time, spread of silence, linear probe of phones."""

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr

from asr_lightning.analysis.neighbours import nearest
from asr_lightning.analysis.similarity import centered
from asr_lightning.text.phones import SILENCE

FOLDS = 5
RIDGE = 1e-2  # of the mean square of a standardized dimension, per point
TIME_DIGITS = 6  # decimals of a second: nearer distances are the same
LONGEST = 1500  # frames of an utterance whose pairs are compared; longer ones are thinned evenly


@dataclass(frozen=True)
class LayerFigures:
    """Measurements of the frames of one layer, of one speaker or of all.

    Attributes:
        purity: Mean share of the k nearest frames of other utterances that have the same phone.
        chance: The same for neighbours drawn at random: the sum of squared phone shares.
        order: Mean over utterances of Spearman's correlation between distance in time and distance in space.
        silence: Root mean square distance of silent frames from their center, divided by that of all frames.
        probe: Accuracy of a linear classifier of phones on utterances that it has not seen.
    """

    purity: float
    chance: float
    order: float
    silence: float
    probe: float


def measure_layer(
    values: np.ndarray, phones: np.ndarray, groups: np.ndarray, times: np.ndarray, k: int = 5
) -> LayerFigures:
    """Measure frames.

    Args:
        values: (N, D).
        phones: (N,) labels; frames with an empty one only count for the order.
        groups: (N,) utterances, as integers.
        times: (N,) seconds.
        k: Neighbours.
    """
    labeled = phones != ""
    shares = np.unique(phones[labeled], return_counts=True)[1] / max(1, labeled.sum())
    return LayerFigures(
        purity=phone_purity(values[labeled], phones[labeled], groups[labeled], k),
        chance=float(np.square(shares).sum()),
        order=order_correlation(values, times, groups),
        silence=silence_spread(values[labeled], phones[labeled]),
        probe=linear_probe(values[labeled], phones[labeled], groups[labeled]),
    )


def phone_purity(values: np.ndarray, phones: np.ndarray, groups: np.ndarray, k: int = 5) -> float:
    """Return the mean share of the k nearest frames of other utterances with the same phone; NaN without any."""
    if len(np.unique(groups)) < 2:
        return float("nan")
    neighbours, _ = nearest(values, groups, k)
    same = (phones[neighbours.clip(min=0)] == phones[:, None]) & (neighbours >= 0)
    return float((same.sum(axis=1) / np.maximum(1, (neighbours >= 0).sum(axis=1))).mean())


def order_correlation(values: np.ndarray, times: np.ndarray, groups: np.ndarray) -> float:
    """Return the mean over utterances of Spearman's correlation of distances in time and in space.

    Utterances of fewer than three frames, and those whose frames are all alike, are left out; NaN if none is left.
    """
    correlations = []
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), LONGEST)).round().astype(int)]
        if len(rows) < 3:
            continue
        distances = pdist(values[rows].astype(np.float64))
        if np.ptp(distances) > 0:
            apart = pdist(times[rows, None]).round(TIME_DIGITS)  # 0.3 - 0.2 and 0.2 - 0.1 share a rank
            correlations.append(spearmanr(apart, distances).statistic)
    return float(np.mean(correlations)) if correlations else float("nan")


def silence_spread(values: np.ndarray, phones: np.ndarray) -> float:
    """Return the spread of silence relative to that of all frames; NaN without silence."""
    silent = values[phones == SILENCE]
    if len(silent) < 2:
        return float("nan")
    silent_size, total_size = (np.sqrt(np.square(centered(part)).sum(axis=1).mean()) for part in (silent, values))
    return float(silent_size / total_size) if total_size > 0 else float("nan")


def linear_probe(values: np.ndarray, phones: np.ndarray, groups: np.ndarray) -> float:
    """Return the accuracy of ridge regression on one-hot phones, utterances in five folds; NaN with fewer than two.

    Every fold is classified by the weights of the others; dimensions are standardized by the others as well.
    """
    names = np.unique(groups)
    if len(names) < 2:
        return float("nan")
    kinds, classes = np.unique(phones, return_inverse=True)
    fold_of = dict(zip(names.tolist(), (np.arange(len(names)) % min(FOLDS, len(names))).tolist(), strict=True))
    folds = np.array([fold_of[group] for group in groups.tolist()])
    correct = 0
    for fold in np.unique(folds):
        learn, test = folds != fold, folds == fold
        weights, mean, scale = _ridge(values[learn].astype(np.float64), np.eye(len(kinds))[classes[learn]])
        scores = np.c_[(values[test] - mean) / scale, np.ones(test.sum())] @ weights
        correct += int((scores.argmax(axis=1) == classes[test]).sum())
    return correct / len(values)


def _ridge(points: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mean, scale = points.mean(axis=0), points.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    design = np.c_[(points - mean) / scale, np.ones(len(points))]
    penalty = RIDGE * len(points) * np.eye(design.shape[1])
    penalty[-1, -1] = 0.0
    return np.linalg.solve(design.T @ design + penalty, design.T @ targets), mean, scale


def speaker_interval(values: np.ndarray, seed: int = 1, draws: int = 2000) -> tuple[float, float]:
    """Return the 95 % confidence interval of a mean over speakers, by bootstrap; NaN twice for fewer than two."""
    sample = np.asarray(values, dtype=np.float64)
    sample = sample[~np.isnan(sample)]
    if len(sample) < 2:
        return float("nan"), float("nan")
    means = sample[np.random.default_rng(seed).integers(len(sample), size=(draws, len(sample)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
