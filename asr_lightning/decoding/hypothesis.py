"""A hypothesis: tokens, score, frame of each token."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from asr_lightning.text.timed_words import Word


@dataclass
class Hypothesis:
    """One candidate transcript of an utterance.

    Attributes:
        tokens: Token ids, without blanks or marks of start and end.
        score: What hypotheses are ranked by; the natural log probability, unless the search says otherwise.
        frames: Encoder frame of each token; empty where there are no tokens, or the decoder does not know them, as
            attention without CTC. By CTC it is the first frame that names the token on the most probable of all paths
            that spell the hypothesis (forced alignment); by a transducer, the frame in which the most probable of the
            alignments that the search found emits the token.
        ends: Last encoder frame of each token, where a search knows how long it lasts; otherwise empty.
        text: What the tokens spell; empty until a recognizer has written it.
        words: The same with times and confidence; empty until a recognizer has made them.
        parts: Natural log probabilities by model, as `attention`, `ctc` and `language_model`.
        log_probs: Natural log probability of each token, by the recognizer alone: that of its emission in its frame by
            a transducer, its highest in its frames by CTC, that of the attention decoder; empty where it is not known.
    """

    tokens: tuple[int, ...]
    score: float
    frames: tuple[int, ...] = ()
    text: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)
    log_probs: tuple[float, ...] = ()
    ends: tuple[int, ...] = ()
    words: tuple[Word, ...] = ()


def without_impossible(ranked: Sequence[Hypothesis]) -> list[Hypothesis]:
    """Return the hypotheses of finite score, as where a language model excludes some ends; the first if none has."""
    return [hypothesis for hypothesis in ranked if hypothesis.score > -math.inf] or list(ranked[:1])
