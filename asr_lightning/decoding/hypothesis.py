"""What a decoder says was said."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Hypothesis:
    """One candidate transcript of an utterance.

    Attributes:
        tokens: Token ids, without blanks or marks of start and end.
        score: Natural log probability.
        frames: Encoder frame at which each token was emitted; empty where the decoder does not know.
    """

    tokens: tuple[int, ...]
    score: float
    frames: tuple[int, ...] = ()
