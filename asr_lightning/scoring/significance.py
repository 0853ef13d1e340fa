"""Significance of a difference in word error rate between two recognizers.

`matched_pairs` and `bootstrap` compare two systems on the same utterances. A system may be several transcripts of each
utterance, as of networks trained with several seeds: its errors are then their mean. They ask what other utterances
would show of these networks, and do not measure the variance between seeds. `mean_difference` does, and asks what
networks of other seeds would show on these utterances.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit  # the quantile of Student's t

from asr_lightning.scoring.word_edits import WordEdits

SEPARATING_WORDS = 2  # recognized by both systems, one after the other: NIST's default
RESAMPLES = 10_000
FEWEST_SPEAKERS = 5  # 4 speakers can be drawn in 35 ways only
LEVEL = 0.95  # confidence level of the interval
POWER = 0.8  # probability to see the smallest difference that is called visible
CHUNK = 1 << 20  # numbers drawn at a time
ROUNDING = 1e-9  # means over three seeds do not add up exactly

Counts = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MatchedPairs:
    """Result of `matched_pairs`.

    Attributes:
        segments: How many differences there are.
        mean: Of the differences of errors of a segment, first system minus second.
        deviation: Their sample standard deviation.
        z: `mean` in units of its standard error; None where that is 0 but the mean is not, or with a single segment.
        p: Probability of so large a |z| if the systems do not differ; None as `z`.
    """

    segments: int
    mean: float
    deviation: float
    z: float | None
    p: float | None


@dataclass(frozen=True)
class Bootstrap:
    """Result of `bootstrap`.

    Attributes:
        difference: Word error rate of the first system minus that of the second; a fraction, negative where the first
            is better.
        low, high: The 95 % interval of it; None with a single speaker or utterance.
        improvement: Share of the resamples in which the first system has the lower rate; ties count half. None
            likewise.
        units: How many speakers or utterances were drawn.
        by_speaker: Which of the two.
    """

    difference: float
    low: float | None
    high: float | None
    improvement: float | None
    units: int
    by_speaker: bool


def segment_errors(first: Sequence[WordEdits], second: Sequence[WordEdits]) -> list[tuple[float, float]]:
    """Return the errors of the independent segments of an utterance [Gillick & Cox 1989].

    A segment holds errors of any transcript. On each side it is bounded by at least two successive words of the
    reference that all transcripts have right, without an insertion before or between them, or by an end of the
    utterance. Errors with fewer right words between them are in the same segment, and each error is in one segment.
    With one transcript for each system these are the rules of sc_stats in NIST's SCTK 2.4.10.

    Args:
        first: Alignments of the transcripts of the first system, one for each seed, to the same reference.
        second: The same of the second system; their numbers may differ.

    Returns:
        For each segment the errors of the first and the second system, each a mean over its transcripts.

    Raises:
        ValueError: The references differ, or a system has no transcript.
    """
    reference = _common_reference(first, second)
    segments: list[tuple[float, float]] = []
    errors = [0, 0]  # since the last segment, of all transcripts of a system
    correct = 0  # successive words
    for position in range(len(reference) + 1):
        inserted = [sum(len(edits.insertions[position]) for edits in system) for system in (first, second)]
        wrong = [0, 0]
        if position < len(reference):
            wrong = [
                sum(edits.recognized[position] != reference[position] for edits in system) for system in (first, second)
            ]
        errors = [sum(counts) for counts in zip(errors, inserted, wrong, strict=True)]
        correct = 0 if any(wrong) else 1 if any(inserted) else correct + 1
        if any(errors) and (correct >= SEPARATING_WORDS or position == len(reference)):
            segments.append((errors[0] / len(first), errors[1] / len(second)))
            errors = [0, 0]
    return segments


def _common_reference(first: Sequence[WordEdits], second: Sequence[WordEdits]) -> tuple[str, ...]:
    references = {alignment.reference for alignment in (*first, *second)}
    if not first or not second or len(references) != 1:
        raise ValueError(
            f"expected transcripts of two systems with one reference, got {len(first)} and {len(second)} transcripts"
            f" with {len(references)} references"
        )
    return references.pop()


def matched_pairs(differences: Sequence[float]) -> MatchedPairs:
    """Test whether two systems make equally many errors: MAPSSWE, the matched-pairs sentence-segment word error test.

    z is the mean of the differences by its standard error, from the variance with n - 1; p is two-tailed, of the normal
    distribution [Gillick & Cox 1989; sc_stats of NIST's SCTK]. It is meant for many segments (50 and more). Where all
    differences are the same number other than 0, their spread says nothing and z and p are None (sc_stats says z = 0);
    where all are 0, or there are none, z = 0 and p = 1.

    Args:
        differences: Errors of the first system minus those of the second, of all segments of all utterances.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not values.any():
        return MatchedPairs(len(values), 0.0, 0.0, 0.0, 1.0)
    mean = float(values.mean())
    if np.ptp(values) < ROUNDING:
        return MatchedPairs(len(values), mean, 0.0, None, None)
    deviation = float(values.std(ddof=1))
    z = mean / (deviation / math.sqrt(len(values)))
    return MatchedPairs(len(values), mean, deviation, z, math.erfc(abs(z) / math.sqrt(2)))


def bootstrap(
    differences: Sequence[float],
    words: Sequence[int],
    speakers: Sequence[str] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Bootstrap:
    """Return a bootstrap interval of the difference of word error rates [Bisani & Ney 2004].

    Both systems have the same utterances in a resample, and so have all seeds of a system. Speakers are drawn instead,
    each with all its utterances, where the speaker of every utterance is known and there are at least 5: utterances of
    a speaker are alike, and drawing them singly makes the interval too narrow. The interval is that of percentiles.

    Args:
        differences: (N,) errors of the first system minus those of the second, of each utterance; each system's may be
            a mean over seeds.
        words: (N,) of the reference.
        speakers: (N,) names, empty where unknown; or nothing.
        resamples: How many.
        seed: Of the random numbers.

    Raises:
        ValueError: The lengths differ, or no reference has a word.
    """
    if len(differences) != len(words) or len(speakers) not in (0, len(words)):
        raise ValueError(f"got {len(differences)} differences, {len(words)} numbers of words, {len(speakers)} speakers")
    if not sum(words):
        raise ValueError(f"expected references with words, got {len(words)} without any")
    by_speaker = bool(speakers) and all(speakers) and len(set(speakers)) >= FEWEST_SPEAKERS
    counts: Counts = np.array([differences, words], dtype=np.float64)  # (2, N)
    counts = _sum_by_speaker(counts, speakers) if by_speaker else counts
    difference, units = float(counts[0].sum() / counts[1].sum()), counts.shape[1]
    if units < 2:
        return Bootstrap(difference, None, None, None, units, by_speaker)
    resampled = _resample(counts, resamples, np.random.default_rng(seed))
    low, high = map(float, np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    return Bootstrap(
        difference=difference,
        low=low,
        high=high,
        improvement=float(np.mean(resampled < -ROUNDING) + np.mean(np.abs(resampled) <= ROUNDING) / 2),
        units=units,
        by_speaker=by_speaker,
    )


def _sum_by_speaker(counts: Counts, speakers: Sequence[str]) -> Counts:
    names, members = np.unique(np.array(speakers), return_inverse=True)
    return np.stack([np.bincount(members, row, len(names)) for row in counts])  # (2, speakers)


def _resample(counts: Counts, resamples: int, generator: np.random.Generator) -> Counts:
    """Return differences of rates, (resamples,), from differences of errors and words of N units, (2, N)."""
    units = counts.shape[1]
    step = max(CHUNK // units, 1)
    parts = []
    for start in range(0, resamples, step):
        chosen = generator.integers(units, size=(min(step, resamples - start), units))
        # a resample may have empty references only: as if they were one word
        parts.append(counts[0][chosen].sum(axis=1) / np.maximum(counts[1][chosen].sum(axis=1), 1))
    return np.concatenate(parts)


@dataclass(frozen=True)
class MeanDifference:
    """Result of `mean_difference` and `paired_difference`.

    Attributes:
        difference: Mean of the first values minus that of the second.
        low: Lower end of its 95 % interval; None where the spread is not known.
        high: Upper end.
        visible: The smallest true difference that so many values of such a spread would show, by an interval without
            0, in four of five trials; None likewise.
    """

    difference: float
    low: float | None
    high: float | None
    visible: float | None


def mean_difference(first: Sequence[float], second: Sequence[float]) -> MeanDifference:
    """Return the difference of two means with its interval, for values of any two variances [Welch 1947].

    Args:
        first: Values of the first system, one for each seed.
        second: Those of the second; the numbers of seeds may differ.

    Raises:
        ValueError: A system has no value, or one that is no finite number.
    """
    means, errors = [], []
    for values in (first, second):
        sample = np.asarray(values, dtype=np.float64)
        if not len(sample) or not np.isfinite(sample).all():
            raise ValueError(f"expected finite values of both systems, got {list(values)}")
        means.append(float(sample.mean()))
        errors.append(float(sample.var(ddof=1)) / len(sample) if len(sample) > 1 else math.nan)  # squared
    freedom = math.nan
    if sum(errors) > 0:
        parts = [error**2 / (len(values) - 1) for error, values in zip(errors, (first, second), strict=True)]
        freedom = sum(errors) ** 2 / sum(parts)
    return _with_interval(means[0] - means[1], math.sqrt(sum(errors)), freedom)


def paired_difference(first: Sequence[float], second: Sequence[float]) -> MeanDifference:
    """Return the mean difference of paired values, as of the same speakers, with the interval of Student's t.

    Raises:
        ValueError: There are no pairs, their numbers differ, or a value is no finite number.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"expected pairs of values, got {len(first)} and {len(second)}")
    pairs = np.array([first, second], dtype=np.float64)
    if not np.isfinite(pairs).all():
        raise ValueError(f"expected finite values, got {list(first)} and {list(second)}")
    differences = pairs[0] - pairs[1]
    count = len(differences)
    error = float(differences.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    return _with_interval(float(differences.mean()), error, count - 1)


def _with_interval(difference: float, error: float, freedom: float) -> MeanDifference:
    """Add the interval of Student's t to a difference, from its standard error and degrees of freedom."""
    if math.isnan(error):
        return MeanDifference(difference, None, None, None)
    if error == 0:
        return MeanDifference(difference, difference, difference, 0.0)
    width = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error
    visible = width + float(stdtrit(freedom, POWER)) * error
    return MeanDifference(difference, difference - width, difference + width, visible)
