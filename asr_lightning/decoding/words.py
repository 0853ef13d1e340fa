"""From the tokens of a hypothesis to words with times and confidence."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from asr_lightning.decoding.hypothesis import Hypothesis
from asr_lightning.text.timed_words import Word
from asr_lightning.text.tokenizers import Tokenizer

Pooling = Literal["product", "min", "mean"]

POOLINGS: dict[str, Callable[[Sequence[float]], float]] = {
    "product": lambda log_probs: math.exp(sum(log_probs)),
    "min": lambda log_probs: math.exp(min(log_probs)),
    "mean": lambda log_probs: sum(map(math.exp, log_probs)) / len(log_probs),
}


class FrameTimes(NamedTuple):
    """Times of encoder frames.

    A frame stands for as much time as lies between frames, around the middle of the window of its first feature frame.

    Attributes:
        step: Seconds between encoder frames.
        window: Seconds of a feature frame.
    """

    step: float
    window: float

    def start(self, frame: int) -> float:
        """Return when a frame begins, in seconds; not before 0."""
        return max(0.0, frame * self.step + (self.window - self.step) / 2)

    def end(self, frame: int) -> float:
        """Return when a frame ends, in seconds."""
        return self.start(frame + 1)


def with_texts(recognized: list[list[Hypothesis]], tokenizer: Tokenizer) -> list[list[Hypothesis]]:
    """Return the hypotheses of each utterance with their texts."""
    return [
        [replace(hypothesis, text=tokenizer.decode(hypothesis.tokens)) for hypothesis in hypotheses]
        for hypotheses in recognized
    ]


def words_of(
    hypothesis: Hypothesis, tokenizer: Tokenizer, times: FrameTimes, seconds: float, pooling: Pooling = "product"
) -> tuple[Word, ...]:
    """Return the words of a hypothesis.

    A word begins with the first frame of its first visible token and ends with the last frame of its last one. So it is
    as exact as the frames of its tokens: CTC and transducers emit a token in one or few frames, mostly within its sound
    or soon after it, and do not know how long it lasts.

    Args:
        hypothesis: With the frame of each token; without them there are no words.
        tokenizer: Of its tokens.
        times: Of the encoder's frames.
        seconds: Length of the utterance; no word ends later.
        pooling: How the confidence of a word follows from the probabilities of its tokens.
    """
    if len(hypothesis.frames) != len(hypothesis.tokens):
        return ()
    ends = hypothesis.ends or hypothesis.frames
    texts = tokenizer.decode(hypothesis.tokens).split()
    words = []
    for text, tokens in zip(texts, word_tokens(hypothesis.tokens, tokenizer), strict=True):
        start = min(seconds, times.start(hypothesis.frames[tokens[0]]))
        end = min(seconds, max(start, times.end(ends[tokens[-1]])))
        log_probs = [hypothesis.log_probs[token] for token in tokens] if hypothesis.log_probs else []
        words.append(Word(text, start, end, POOLINGS[pooling](log_probs) if log_probs else None))
    return tuple(words)


def word_tokens(tokens: Sequence[int], tokenizer: Tokenizer) -> list[list[int]]:
    """Return for each word of the decoded tokens the positions of the tokens that write it, at least one each.

    Tokens that change nothing visible, as a space or an end, belong to no word. Longer and longer beginnings are
    decoded, since tokenizers mark the beginnings of words in different ways.
    """
    count = len(tokenizer.decode(tokens).split())
    groups: list[list[int]] = [[] for _ in range(count)]
    previous = ""
    for position in range(len(tokens)):
        text = tokenizer.decode(tokens[: position + 1])
        if text != previous:
            index = min(len(text.split()), count) - 1
            if index >= 0:
                groups[index].append(position)
        previous = text
    for index, group in enumerate(groups):  # written by a token that also writes its neighbour
        if not group:
            group.append(groups[index - 1][-1] if index else 0)
    return groups
