"""Phone labels with times, and the label of each frame."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SILENCE = "SIL"


@dataclass(frozen=True)
class Segment:
    """A phone, or another unit, and its time.

    Attributes:
        start: Seconds from the beginning of the utterance.
        end: The same; never before the start.
        label: As `AH` or `SIL`.
    """

    start: float
    end: float
    label: str


class PhoneLabels(ABC):
    """Base class of sources of phone labels, such as those in `data_modules.phone_labels`."""

    def require(self) -> None:  # noqa: B027 - there may be nothing to look for
        """Check that labels exist, before anything is computed.

        Raises:
            InputError: There are no labels; the message says how to make them.
        """

    @abstractmethod
    def segments(self, utterance: str) -> list[Segment]:
        """Return the segments of an utterance in the order of time; an empty list if unknown.

        Raises:
            InputError: Its labels cannot be read.
        """


def label_spans(segments: Sequence[Segment], starts: np.ndarray, ends: np.ndarray) -> list[str]:
    """Return the label of each time span: of the segment with the largest overlap, the first of equals.

    Args:
        segments: In the order of time.
        starts: (N,) seconds.
        ends: (N,) seconds.

    Returns:
        N labels; empty where a span shares no time with any segment.
    """
    if not segments:
        return [""] * len(starts)
    segment_starts = np.array([segment.start for segment in segments])
    segment_ends = np.array([segment.end for segment in segments])
    labels = []
    for start, end in zip(starts, ends, strict=True):
        overlaps = np.minimum(end, segment_ends) - np.maximum(start, segment_starts)
        best = int(overlaps.argmax())
        labels.append(segments[best].label if overlaps[best] > 0 else "")
    return labels
