"""Recognition of audio that is still coming: text that may grow, and lines that are final."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from asr_lightning.audio.resampling import StreamingResampler
from asr_lightning.decoding.hypothesis import Hypothesis
from asr_lightning.decoding.words import word_tokens, words_of
from asr_lightning.errors import InputError
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.models.rnn_transducer import RNNTransducer
from asr_lightning.nn.streaming import StreamingEncoder
from asr_lightning.text.timed_words import Word

STEP_SECONDS = 0.08  # of audio that is recognized at once, however it comes in
MOST_TOKENS = 1_000  # of a line; only a network that writes nonsense has words of so many


class Partial(NamedTuple):
    """Text of the line that is going on.

    Attributes:
        stable: Words that no longer change, with a space behind them; empty, or what every later text of the line
            begins with.
        rest: The last word, which may grow.
    """

    stable: str = ""
    rest: str = ""


@dataclass(frozen=True)
class Line:
    """A line of a transcript that is final.

    Attributes:
        start: Seconds from the beginning of the audio to the first word.
        end: The same to the end of the last word.
        text: Of the line.
        words: With times from the beginning of the audio.
    """

    start: float
    end: float
    text: str
    words: tuple[Word, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the line for `json.dumps`: times in milliseconds' precision."""
        return {
            "start": round(self.start, 3),
            "end": round(self.end, 3),
            "text": self.text,
            "words": [word.as_json() for word in self.words],
        }


def check_streams(recognizer: Recognizer) -> RNNTransducer:
    """Return the recognizer, if it can recognize speech that is still going on.

    Raises:
        InputError: It needs the whole utterance.
    """
    needed = (
        "Train a transducer that streams: RNNTransducer, NormalizedTransducer or OneHotTransducer with an encoder as "
        "asr_lightning.nn.emformer.Emformer, and features without a normalization or with GlobalNormalization. "
        "`asr transcribe` reads whole files with this one."
    )
    if not isinstance(recognizer, RNNTransducer):
        raise InputError(f"a {type(recognizer).__name__} writes only when an utterance has ended. {needed}")
    if not isinstance(recognizer.encoder, StreamingEncoder):
        raise InputError(f"its encoder, {type(recognizer.encoder).__name__}, reads whole utterances. {needed}")
    if whole := recognizer.features.whole_utterance():
        raise InputError(f"its features have {whole}, over whole utterances. {needed}")
    return recognizer


class LiveRecognizer:
    """A transducer and how its lines end, for any number of streams.

    A line ends with a silence: no token for `silence` seconds behind its last one. The next line begins in the middle
    of this silence with a network that remembers nothing, as it began its utterances in training. A line that has grown
    longer than `longest` ends with its last complete word; then the network goes on as if nothing had happened.

    Search is greedy, with the `max_symbols` of the recognizer's own search.

    Args:
        recognizer: In evaluation mode, on its device.
        silence: Seconds; 0 for lines that no silence ends.
        longest: Seconds.

    Raises:
        InputError: The recognizer needs whole utterances.
    """

    def __init__(self, recognizer: Recognizer, silence: float = 0.8, longest: float = 30.0) -> None:
        self.recognizer = check_streams(recognizer)
        self.tokenizer = recognizer.tokenizer
        self.times = recognizer.frame_times()
        self.sample_rate = recognizer.features.sample_rate
        self.frame_samples = round(self.times.step * self.sample_rate)
        self.step_samples = max(1, round(STEP_SECONDS * self.sample_rate))
        self.silence_frames = max(2, round(silence / self.times.step)) if silence else 0
        self.longest_frames = max(1, round(longest / self.times.step))

    def stream(self, sample_rate: int | None = None) -> "Stream":
        """Return a new stream of audio of a sample rate; the recognizer's own if None."""
        return Stream(self, sample_rate or self.sample_rate)


class Stream:
    """Audio that is still coming, and its text.

    What is recognized does not depend on the pieces in which the audio comes.

    Args:
        live: The recognizer, which may have other streams.
        sample_rate: Of the audio.
    """

    def __init__(self, live: LiveRecognizer, sample_rate: int) -> None:
        self.live = live
        self.partial = Partial()
        self.resampler = StreamingResampler(sample_rate, live.sample_rate)
        self.audio = np.zeros(0, np.float32)  # that is kept, from sample `first` on
        self.first = 0
        self._begin(0)

    def read(self, audio: np.ndarray) -> list[Line]:
        """Read the next samples (S,) in [-1, 1]; return the lines that they complete."""
        return self._read(self.resampler(audio))

    def finish(self) -> list[Line]:
        """Return what remains when no audio follows."""
        lines = self._read(self.resampler(np.zeros(0, np.float32), last=True))
        if self.first + len(self.audio):  # without any audio there is nothing to recognize
            self._step(self.audio[self.position - self.first :], last=True)
            lines += self._split_line(len(self.hypothesis.tokens))
        self.partial = Partial()
        return lines

    def _read(self, audio: np.ndarray) -> list[Line]:
        self.audio = np.concatenate([self.audio, audio])
        lines: list[Line] = []
        step = self.live.step_samples
        while self.position + step <= self.first + len(self.audio):
            start = self.position - self.first
            self._step(self.audio[start : start + step])
            lines += self._finished_lines()
        begin = self.position
        if self.live.silence_frames:  # where the next line would begin
            begin = min(begin, self._sample(self.state.frames - self.live.silence_frames // 2))
        begin = max(self.first, self.start, begin)
        self.audio, self.first = self.audio[begin - self.first :].copy(), begin
        return lines

    def _sample(self, frame: int) -> int:
        """Return the first sample of an encoder frame, counted since the network's memory was last reset."""
        return self.start + frame * self.live.frame_samples

    def _begin(self, sample: int) -> None:
        """Forget everything; go on from a sample."""
        self.start = self.position = sample
        with torch.inference_mode():
            self.state = self.live.recognizer.initial_stream(1)
        self.hypothesis = Hypothesis((), 0.0)

    @torch.inference_mode()
    def _step(self, audio: np.ndarray, last: bool = False) -> None:
        """Recognize the next samples (S,)."""
        recognizer, hypothesis = self.live.recognizer, self.hypothesis
        self.position += len(audio)
        samples = torch.from_numpy(np.ascontiguousarray(audio)).to(recognizer.device).unsqueeze(0)
        [added], self.state = recognizer.stream(samples, self.state, last)
        if added.tokens:
            self.hypothesis = replace(
                hypothesis,
                tokens=hypothesis.tokens + added.tokens,
                frames=hypothesis.frames + added.frames,
                log_probs=hypothesis.log_probs + added.log_probs,
            )
            self.partial = self._extend_partial(self.live.tokenizer.decode(self.hypothesis.tokens))

    def _extend_partial(self, text: str) -> Partial:
        """Return the text of the line with what was stable before unchanged."""
        stable = text[: len(text) - len(text.split(" ")[-1])]
        if not stable.startswith(self.partial.stable):
            stable = self.partial.stable
        if not text.startswith(stable):  # a tokenizer that changes words which lie behind
            return self.partial
        return Partial(stable, text[len(stable) :])

    def _finished_lines(self) -> Iterator[Line]:
        """Return the lines that have ended by now: one or none."""
        live, tokens = self.live, self.hypothesis.tokens
        if not tokens:
            return
        if live.silence_frames and self.state.frames - 1 - self.hypothesis.frames[-1] >= live.silence_frames:
            start = self._sample(self.state.frames - live.silence_frames // 2)
            yield from self._split_line(len(tokens))
            self._begin(start)
        elif len(tokens) > MOST_TOKENS:
            yield from self._split_line(len(tokens))
        elif self.state.frames - self.hypothesis.frames[0] > live.longest_frames and len(self.partial.stable):
            groups = word_tokens(tokens, live.tokenizer)
            if groups[-1][0] > groups[-2][-1]:  # else one token writes the end of a word and the beginning of the next
                yield from self._split_line(groups[-2][-1] + 1)

    def _split_line(self, count: int) -> Iterator[Line]:
        """Return the first tokens of the line as a line, if they write something, and keep the others."""
        live, hypothesis = self.live, self.hypothesis
        head, tail = (
            Hypothesis(hypothesis.tokens[part], 0.0, hypothesis.frames[part], log_probs=hypothesis.log_probs[part])
            for part in (slice(count), slice(count, None))
        )
        self.hypothesis = tail
        self.partial = Partial()
        if tail.tokens:
            self.partial = self._extend_partial(live.tokenizer.decode(tail.tokens))
        origin = self.start / live.sample_rate
        seconds = (self.position - self.start) / live.sample_rate
        words = tuple(
            replace(word, start=origin + word.start, end=origin + word.end)
            for word in words_of(head, live.tokenizer, live.times, seconds)
        )
        if words:
            yield Line(words[0].start, words[-1].end, live.tokenizer.decode(head.tokens), words)
