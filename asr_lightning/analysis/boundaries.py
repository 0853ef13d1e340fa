"""Distances of phone or word boundaries from a reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from asr_lightning.scoring.word_edits import find_word_edits
from asr_lightning.text.phones import Segment


@dataclass(frozen=True)
class BoundaryErrors:
    """Boundary errors of a corpus.

    Attributes:
        seconds: (N,) absolute errors.
        expected: Boundaries of the reference. Those before a segment with another label are not among the N.
    """

    seconds: np.ndarray
    expected: int

    def within(self, seconds: float) -> float:
        """Return the share of the N boundaries with at most this error."""
        return float((self.seconds <= seconds).mean()) if len(self.seconds) else float("nan")

    def percentile(self, percent: float) -> float:
        """Return a percentile of the errors in seconds; 50 is the median."""
        return float(np.percentile(self.seconds, percent)) if len(self.seconds) else float("nan")

    @property
    def matched(self) -> float:
        """Share of the reference boundaries that could be compared."""
        return len(self.seconds) / self.expected if self.expected else float("nan")


def boundary_errors(truth: Sequence[Segment], estimate: Sequence[Segment]) -> np.ndarray:
    """Return the errors of the starts of segments that both have, paired by the fewest edits between their labels.

    The start of the first segment is not counted. Labels must not contain white space.

    Args:
        truth: Reference segments of an utterance in the order of time.
        estimate: Segments to evaluate.

    Returns:
        (N,) seconds, absolute.
    """
    aligned = find_word_edits(
        " ".join(segment.label for segment in truth), " ".join(segment.label for segment in estimate)
    )
    errors: list[float] = []
    row = 0  # in `estimate`
    for number, (segment, label) in enumerate(zip(truth, aligned.recognized, strict=True)):
        row += len(aligned.insertions[number])
        if label is not None:
            if label == segment.label and number and row:
                errors.append(abs(estimate[row].start - segment.start))
            row += 1
    return np.array(errors)


def corpus_boundary_errors(
    truth: Mapping[str, Sequence[Segment]], estimates: Mapping[str, Sequence[Segment]]
) -> BoundaryErrors:
    """Return the boundary errors of all utterances that have a reference."""
    names = [name for name in estimates if truth.get(name)]
    errors = [boundary_errors(truth[name], estimates[name]) for name in names]
    return BoundaryErrors(np.concatenate([np.zeros(0), *errors]), sum(len(truth[name]) - 1 for name in names))
