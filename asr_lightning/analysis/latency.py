"""Delay of recognized words behind their ends in the audio, and what recognition costs."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from asr_lightning.scoring.word_edits import find_word_edits
from asr_lightning.text.phones import Segment


@dataclass(frozen=True)
class EmittedWords:
    """Words of an utterance, with the audio that had been read when each was complete.

    Attributes:
        words: Of the hypothesis.
        seconds: How much audio had been read when each word was complete.
        first: The same for the first token; None where there is none.
        audio: Seconds of the utterance.
        compute: Seconds of a processor.
        state: Most bytes kept between two pieces.
    """

    words: tuple[str, ...]
    seconds: tuple[float, ...]
    first: float | None
    audio: float
    compute: float
    state: int = 0


@dataclass
class Latency:
    """Delays and costs of utterances.

    Attributes:
        delays: From the end of each correct word in the audio until it was complete, in seconds.
        first_delays: From the start of the first word until the first token was written; one of each utterance.
        at_end: Correct words that were complete only when the audio had ended.
        words: Of the references.
        errors: Substitutions, deletions and insertions.
        audio: Seconds.
        compute: Seconds of a processor.
        state: Most bytes kept between two pieces.
        utterances: All of them.
        untimed: Utterances without times of their words, which count for errors and costs only.
    """

    delays: list[float] = field(default_factory=list)
    first_delays: list[float] = field(default_factory=list)
    at_end: int = 0
    words: int = 0
    errors: int = 0
    audio: float = 0.0
    compute: float = 0.0
    state: int = 0
    utterances: int = 0
    untimed: int = 0

    def add(self, reference: Sequence[str], written: EmittedWords, spoken: Sequence[Segment] | None) -> None:
        """Count an utterance.

        Args:
            reference: Its words.
            written: What was recognized.
            spoken: When each word of the reference is spoken; None if unknown.

        Raises:
            ValueError: There are not as many times as words.
        """
        edits = find_word_edits(" ".join(reference), " ".join(written.words))
        if len(written.seconds) != len(written.words) or (spoken is not None and len(spoken) != len(edits.reference)):
            raise ValueError(
                f"expected times of {len(edits.reference)} spoken and {len(written.words)} written words, got "
                f"{'none' if spoken is None else len(spoken)} and {len(written.seconds)}"
            )
        self.utterances += 1
        self.words += len(edits.reference)
        self.errors += edits.errors
        self.audio += written.audio
        self.compute += written.compute
        self.state = max(self.state, written.state)
        if spoken is None:
            self.untimed += 1
            return
        position = 0  # in the hypothesis
        for number, segment in enumerate(spoken):
            position += len(edits.insertions[number])
            if edits.recognized[number] == edits.reference[number]:
                self.delays.append(written.seconds[position] - segment.end)
                self.at_end += written.seconds[position] >= written.audio
            position += edits.recognized[number] is not None
        if spoken and written.first is not None:
            self.first_delays.append(written.first - spoken[0].start)

    @property
    def wer(self) -> float:
        """Word error rate; not a number where there are no words."""
        return self.errors / self.words if self.words else float("nan")

    @property
    def real_time_factor(self) -> float:
        """Seconds of a processor for a second of audio."""
        return self.compute / self.audio if self.audio else float("nan")

    def delay(self, percent: float) -> float:
        """Return a percentile of the delays of words, in seconds; not a number where there are none."""
        return _percentile(self.delays, percent)

    def first_delay(self, percent: float) -> float:
        """Return a percentile of the delays of first tokens, in seconds; not a number where there are none."""
        return _percentile(self.first_delays, percent)


def _percentile(values: Sequence[float], percent: float) -> float:
    return float(np.percentile(values, percent)) if len(values) else float("nan")
