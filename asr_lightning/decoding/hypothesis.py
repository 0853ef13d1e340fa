"""What a decoder says was said."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Hypothesis:
    """One candidate transcript of an utterance.

    Attributes:
        tokens: Token ids, without blanks or marks of start and end.
        score: What hypotheses are ranked by; the natural log probability, unless the search says otherwise.
        frames: Encoder frame at which each token was emitted; empty where the decoder does not know.
        text: What the tokens spell; empty until a recogniser has written it.
        parts: Natural log probabilities by who gave them, as `attention`, `ctc` and `language_model`.
    """

    tokens: tuple[int, ...]
    score: float
    frames: tuple[int, ...] = ()
    text: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)
