"""Who says what when: phones with their times, and which of them a frame belongs to."""

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
    """Base class: knows the phones of utterances, as the classes of `data_modules.phone_labels`."""

    def require(self) -> None:  # noqa: B027 - there may be nothing to look for
        """Check before anything is computed that there are labels.

        Raises:
            InputError: There are none; it says how they are made.
        """

    @abstractmethod
    def segments(self, utterance: str) -> list[Segment]:
        """Return the segments of an utterance in the order of time; none where nothing is known of it.

        Raises:
            InputError: What is known of it cannot be read.
        """


def label_spans(segments: Sequence[Segment], starts: np.ndarray, ends: np.ndarray) -> list[str]:
    """Say to which segment each span of time belongs: the one that it shares most time with, of equal ones the first.

    Args:
        segments: In the order of time.
        starts: (N,) seconds.
        ends: (N,) seconds.

    Returns:
        N labels; empty where a span shares no time with any segment.
    """
    if not segments:
        return [""] * len(starts)
    begins = np.array([segment.start for segment in segments])
    stops = np.array([segment.end for segment in segments])
    labels = []
    for start, end in zip(starts, ends, strict=True):
        shared = np.minimum(end, stops) - np.maximum(start, begins)
        best = int(shared.argmax())
        labels.append(segments[best].label if shared[best] > 0 else "")
    return labels
