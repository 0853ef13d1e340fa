"""How far the borders of phones or words are from where they ought to be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from asr_lightning.scoring.word_edits import find_word_edits
from asr_lightning.text.phones import Segment


@dataclass(frozen=True)
class BoundaryErrors:
    """Errors of all borders of a corpus.

    Attributes:
        seconds: (N,) how far each border was off, without sign.
        expected: How many borders there ought to be; those whose segment was called something else are no part of N.
    """

    seconds: np.ndarray
    expected: int

    def within(self, seconds: float) -> float:
        """Return the share of the N borders that are no farther off."""
        return float((self.seconds <= seconds).mean()) if len(self.seconds) else float("nan")

    def percentile(self, percent: float) -> float:
        """Return by how many seconds so many percent of borders are off at most; 50 is the median."""
        return float(np.percentile(self.seconds, percent)) if len(self.seconds) else float("nan")

    @property
    def matched(self) -> float:
        """The share of borders that could be compared."""
        return len(self.seconds) / self.expected if self.expected else float("nan")


def boundary_errors(truth: Sequence[Segment], estimate: Sequence[Segment]) -> np.ndarray:
    """Compare where segments begin that both have, as the alignment of their labels with the fewest errors pairs them.

    The beginning of the first segment is no border. Labels must not hold white space.

    Args:
        truth: Exact segments of an utterance in the order of time.
        estimate: Segments to be judged.

    Returns:
        (N,) seconds, without sign.
    """
    aligned = find_word_edits(
        " ".join(segment.label for segment in truth), " ".join(segment.label for segment in estimate)
    )
    errors: list[float] = []
    row = 0  # in `estimate`
    for number, (segment, label) in enumerate(zip(truth, aligned.heard, strict=True)):
        row += len(aligned.insertions[number])
        if label is not None:
            if label == segment.label and number and row:
                errors.append(abs(estimate[row].start - segment.start))
            row += 1
    return np.array(errors)


def corpus_boundary_errors(
    truth: Mapping[str, Sequence[Segment]], estimates: Mapping[str, Sequence[Segment]]
) -> BoundaryErrors:
    """Compare all utterances that were found and whose truth is known."""
    both = [name for name in estimates if truth.get(name)]
    errors = [boundary_errors(truth[name], estimates[name]) for name in both]
    return BoundaryErrors(np.concatenate([np.zeros(0), *errors]), sum(len(truth[name]) - 1 for name in both))
