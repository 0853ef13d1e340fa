"""Gaussian mixtures of monophones, from a flat start, and of triphones [Young et al., "The HTK Book", §3], by Kaldi."""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import kaldi_hmm_gmm as kaldi
import kaldifst
import numpy as np
import torch
from torch import Tensor
from torchaudio.functional import compute_deltas

from asr_lightning.audio.features import MFCC
from asr_lightning.audio.normalization import UtteranceNormalization
from asr_lightning.errors import InputError
from asr_lightning.hmm.frame_alignment import align_frames
from asr_lightning.hmm.model import HiddenMarkovModel

ACOUSTIC_SCALE = 0.1
HOP_SECONDS, WINDOW_SECONDS = 0.010, 0.025
LEAST_FRAMES = 20.0  # of a Gaussian, where there is another one of the same pdf
OCCUPANCY_POWER = 0.2  # the number of a pdf's Gaussians grows with this power of its frames
PERTURBATION = 0.01  # standard deviations between halves of a Gaussian and itself
GAUSSIANS_UPDATED = kaldi.str_to_gmm_flags("mvw")  # means, variances, weights


@dataclass(frozen=True)
class TrainingUtterance:
    """An utterance to learn from or to align.

    Attributes:
        id: Its name.
        features: (T, D) float32.
        graph: From transition ids to word ids, of its transcript.
    """

    id: str
    features: np.ndarray
    graph: kaldifst.StdVectorFst


@dataclass
class GaussianMixtures:
    """Gaussian mixtures of all pdfs of a model."""

    model: HiddenMarkovModel
    mixtures: kaldi.AmDiagGmm

    def decodable(self, features: np.ndarray, scale: float = ACOUSTIC_SCALE) -> kaldi.DecodableInterface:
        """Return the log likelihoods of features (T, D) in the form that Kaldi's searches read."""
        return kaldi.DecodableAmDiagGmmScaled(self.mixtures, self.model.transitions, features, scale)


@dataclass(frozen=True)
class TrainingPass:
    """Result of a pass over the data.

    Attributes:
        number: From 1.
        log_likelihood: Per frame, of the features given the alignment.
        gaussians: In all mixtures together.
        failed: Utterances that could not be aligned.
    """

    number: int
    log_likelihood: float
    gaussians: int
    failed: int


def train(
    model: HiddenMarkovModel,
    examples: Sequence[TrainingUtterance],
    passes: int = 40,
    gaussians: int = 1000,
    seed: int = 1,
    begin: Mapping[str, list[int]] | None = None,
) -> Iterator[tuple[TrainingPass, GaussianMixtures]]:
    """Train mixtures, pass by pass, by alignments of the passes before; mixtures grow in the first 3/4 of them.

    Args:
        model: Of monophones, or of tied triphones.
        examples: Held in memory.
        passes: Over all examples. After a flat start every second pass aligns anew, the first ten every time; after
            other alignments, which are better from the start, every fifth.
        gaussians: In all mixtures together, in the end.
        seed: Of the flat alignments and of what splits Gaussians.
        begin: Alignments to begin with, by the examples' names, empty where there are none; flat ones if None.

    Raises:
        InputError: There is nothing to learn from.
    """
    if not examples:
        raise InputError("expected utterances to train Gaussian mixtures on, got none")
    gmms = GaussianMixtures(model, _flat(model.pdfs, examples))
    alignments = {example.id: _equal(example, seed) if begin is None else begin[example.id] for example in examples}
    random = np.random.default_rng(seed)
    growing = max(1, 3 * passes // 4)
    for number in range(1, passes + 1):
        realign = number <= 10 or number % 2 == 0 if begin is None else number % 5 == 0
        if number > 1 and realign:
            decodables = ((example, gmms.decodable(example.features)) for example in examples)
            alignments = {example.id: align_frames(decodable, example.graph) for example, decodable in decodables}
        failed = sum(not alignment for alignment in alignments.values())
        if failed == len(examples):
            raise InputError(f"none of {failed} utterances could be aligned: do transcripts and audio belong together?")
        total = model.pdfs + (gaussians - model.pdfs) * min(number, growing) // growing
        log_likelihood, gmms = _update(gmms, examples, alignments, total, random)
        yield TrainingPass(number, log_likelihood, gmms.mixtures.num_gauss, failed), gmms


def _flat(pdfs: int, examples: Sequence[TrainingUtterance]) -> kaldi.AmDiagGmm:
    """Give every pdf the mean and variance of all frames."""
    frames = np.concatenate([example.features for example in examples])
    variance = np.maximum(frames.var(axis=0, dtype=np.float64), 1e-3)
    gaussian = _mixture(np.ones(1), frames.mean(axis=0, dtype=np.float64)[None], variance[None])
    mixtures = kaldi.AmDiagGmm()
    mixtures.init(gaussian, pdfs)
    mixtures.compute_gconsts()
    return mixtures


def _mixture(weights: np.ndarray, means: np.ndarray, variances: np.ndarray) -> kaldi.DiagGmm:
    mixture = kaldi.DiagGmm(*means.shape)
    mixture.set_weights(weights.astype(np.float32))
    mixture.set_invvars_and_means((1.0 / variances).astype(np.float32), means.astype(np.float32))
    mixture.compute_gconsts()
    return mixture


def _equal(example: TrainingUtterance, seed: int) -> list[int]:
    ok, path = kaldifst.equal_align(example.graph, len(example.features), seed, 10)
    return list(kaldifst.get_linear_symbol_sequence(path)[1]) if ok else []


def _update(
    gmms: GaussianMixtures,
    examples: Sequence[TrainingUtterance],
    alignments: dict[str, list[int]],
    gaussians: int,
    random: np.random.Generator,
) -> tuple[float, GaussianMixtures]:
    """Return the mean log likelihood of a frame, and the mixtures that maximize it given the alignments."""
    model, mixtures = gmms.model, gmms.mixtures
    statistics = kaldi.AccumAmDiagGmm()
    statistics.init(mixtures, GAUSSIANS_UPDATED)
    counts = np.zeros(len(model.pdf_of))
    total = 0.0
    for example in examples:
        alignment = np.array(alignments[example.id], dtype=np.int64)
        counts += np.bincount(alignment, minlength=len(counts))
        for frame, pdf in zip(example.features, model.pdf_of[alignment].tolist(), strict=bool(len(alignment))):
            total += statistics.accumulate_for_gmm(mixtures, frame, pdf, 1.0)
    kaldi.mle_am_diag_gmm_update(kaldi.MleDiagGmmOptions(), statistics, GAUSSIANS_UPDATED, mixtures)
    if gaussians > mixtures.num_gauss:
        mixtures = _split(mixtures, np.bincount(model.pdf_of[1:], counts[1:], minlength=model.pdfs), gaussians, random)
    mixtures.compute_gconsts()
    return total / max(1.0, counts.sum()), GaussianMixtures(model.with_counts(counts), mixtures)


def _split(
    mixtures: kaldi.AmDiagGmm, frames: np.ndarray, gaussians: int, random: np.random.Generator
) -> kaldi.AmDiagGmm:
    """Split Gaussians in two; Kaldi's own code is not reproducible.

    Args:
        mixtures: Of all pdfs.
        frames: (pdfs,) number of frames of each.
        gaussians: Wanted in all; pdfs that were seen too seldom get fewer.
        random: Draws the directions of the halves.
    """
    sizes = [1] * len(frames)
    shares = frames**OCCUPANCY_POWER
    queue = [(-share, pdf) for pdf, share in enumerate(shares.tolist())]
    heapq.heapify(queue)
    remaining = gaussians - len(frames)
    while remaining > 0 and queue:
        _, pdf = heapq.heappop(queue)
        if frames[pdf] > LEAST_FRAMES * (sizes[pdf] + 1):
            sizes[pdf] += 1
            remaining -= 1
            heapq.heappush(queue, (-shares[pdf] / sizes[pdf], pdf))
    split = kaldi.AmDiagGmm()
    for pdf, size in enumerate(sizes):
        split.add_pdf(_halve(mixtures.get_pdf(pdf), size, random))
    return split


def _halve(mixture: kaldi.DiagGmm, size: int, random: np.random.Generator) -> kaldi.DiagGmm:
    """Split the Gaussian of the greatest weight, until there are `size`."""
    weights, means, variances = (
        np.array(array, dtype=np.float64) for array in (mixture.weights, mixture.means, mixture.vars)
    )
    while len(weights) < size:
        heaviest = int(weights.argmax())
        weights[heaviest] /= 2
        step = PERTURBATION * np.sqrt(variances[heaviest]) * random.standard_normal(means.shape[1])
        weights = np.append(weights, weights[heaviest])
        variances = np.concatenate([variances, variances[heaviest : heaviest + 1]])
        means = np.concatenate([means, means[heaviest : heaviest + 1] + step])
        means[heaviest] -= step
    return _mixture(weights, means, variances)


class CepstralFeatures:
    """Features of Gaussian mixtures: 13 cepstral coefficients, normalized per utterance, with two differences of each.

    Args:
        sample_rate: Samples per second.
    """

    def __init__(self, sample_rate: int = 16_000) -> None:
        self.cepstra = MFCC(
            13, sample_rate, WINDOW_SECONDS, HOP_SECONDS, mels=40, normalization=UtteranceNormalization()
        )

    def __call__(self, audio: Tensor) -> np.ndarray:
        """Return the features (T, 39) of audio (S,)."""
        values, _ = self.cepstra(audio.unsqueeze(0), torch.tensor([len(audio)]))
        values = values.transpose(1, 2)  # (1, 13, T)
        slopes = compute_deltas(values)
        return torch.cat([values, slopes, compute_deltas(slopes)], dim=1).squeeze(0).T.contiguous().numpy()
