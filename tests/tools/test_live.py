"""Speech that is recognized while it comes, against the same speech recognized whole."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from asr_lightning.audio.resampling import resample
from asr_lightning.batch import Batch, Utterance
from asr_lightning.decoding.hypothesis import Hypothesis
from asr_lightning.errors import InputError
from asr_lightning.models.checkpoints import build_recognizer
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.models.rnn_transducer import RNNTransducer
from asr_lightning.nn.streaming import StreamingEncoder
from asr_lightning.tools import live as module
from asr_lightning.tools.live import Line, LiveRecognizer, Partial, Stream
from tests.support.architectures import ARCHITECTURES
from tests.support.streaming_recognizer import CONFIG, EMFORMER, babble, streaming_recognizer

PIECES = [[1, 0, 399, 5000], [10**9]]  # samples, over and over


@pytest.fixture(scope="module")
def recognizer() -> RNNTransducer:
    return streaming_recognizer()


def with_pauses(seed: int, rate: int = 16_000) -> np.ndarray:
    pause = np.zeros(round(1.5 * rate), np.float32)
    return np.concatenate([babble(2, seed, rate), pause, babble(1.5, seed + 50, rate), pause, babble(0.5, seed, rate)])


def whole(recognizer: Recognizer, audio: np.ndarray) -> Hypothesis:
    utterance = Utterance("x", torch.from_numpy(audio), recognizer.features.sample_rate)
    return recognizer.recognize_words(Batch.collate([utterance]))[0][0]


def listen(stream: Stream, audio: np.ndarray, sizes: list[int]) -> tuple[list[Line], list[tuple[int, Partial]]]:
    """The lines of audio that comes in pieces, and the text after each piece, with the number of lines before."""
    lines: list[Line] = []
    partials = []
    start = number = 0
    while start < len(audio):
        size = sizes[number % len(sizes)]
        lines += stream.read(audio[start : start + size])
        partials.append((len(lines), stream.partial))
        start, number = start + size, number + 1
    return lines + stream.finish(), partials


STREAMING: dict[str, dict[str, Any]] = {
    name: config for name, config in ARCHITECTURES.items()
    if any(word in name for word in ("Emformer", "streaming"))
}  # fmt: skip
assert len(STREAMING) > 1


@pytest.mark.parametrize("name", [*STREAMING, "small"])
def test_the_text_of_a_stream_is_that_of_the_whole_whatever_the_pieces(name: str) -> None:
    config = copy.deepcopy(STREAMING.get(name, CONFIG))
    config["init_args"]["features"]["init_args"].pop("normalization", None)
    recognizer = streaming_recognizer(config)
    audio = with_pauses(1, recognizer.features.sample_rate)
    expected = whole(recognizer, audio)
    assert len(expected.tokens) > 2
    for sizes in PIECES:
        [line], _ = listen(LiveRecognizer(recognizer, silence=0).stream(), audio, sizes)
        assert line.text == expected.text
        assert line.start == expected.words[0].start and line.end == pytest.approx(expected.words[-1].end, abs=0.05)
        for word, expected_word in zip(line.words, expected.words, strict=True):
            assert (word.text, word.start) == (expected_word.text, pytest.approx(expected_word.start, abs=1e-6))
            assert word.confidence == pytest.approx(expected_word.confidence, abs=1e-2)


def test_long_lines_end_at_words_and_nothing_is_lost(recognizer: RNNTransducer) -> None:
    audio = babble(6, 7)
    expected = whole(recognizer, audio)
    lines, _ = listen(LiveRecognizer(recognizer, silence=0, longest=1.0).stream(), audio, [1_600])
    assert len(lines) > 2
    assert " ".join(line.text for line in lines) == expected.text
    words = [word for line in lines for word in line.words]
    assert [word.start for word in words] == pytest.approx([word.start for word in expected.words])
    assert max(line.end - line.start for line in lines) < 3.0


def expected_lines(recognizer: RNNTransducer, audio: np.ndarray, silence: int) -> list[str]:
    """Lines by the definition, each from what is recognized of all audio from its beginning on.

    The Emformer gives its frames, of 640 samples, two at a time, as soon as there are four feature frames behind.
    """
    texts, start = [], 0
    while start < len(audio):
        hypothesis = whole(recognizer, audio[start:])
        steps = (len(audio) - start) // 1_280  # of 80 ms, which are recognized before the end is known
        encoded = max(0, (1 + (1_280 * steps - 400) // 160 - 4) // 8 * 2)  # frames encoded by then
        for index, frame in enumerate(hypothesis.frames):
            end = -(-(frame + 1 + silence) // 2) * 2  # the first time that the silence is known to be long enough
            following = hypothesis.frames[index + 1 : index + 2]
            if end <= encoded and (not following or following[0] >= end):
                texts.append(recognizer.tokenizer.decode(hypothesis.tokens[: index + 1]))
                start += (end - silence // 2) * 640
                break
        else:
            return [*texts, hypothesis.text] if hypothesis.text else texts
    return texts


@pytest.mark.parametrize(("seed", "silence"), [(0, 0.4), (1, 0.8)])
def test_silence_ends_lines_wherever_the_pieces_end(recognizer: RNNTransducer, seed: int, silence: float) -> None:
    audio = with_pauses(seed)
    live = LiveRecognizer(recognizer, silence=silence)
    expected = [text for text in expected_lines(recognizer, audio, live.silence_frames) if text]
    lines, _ = listen(live.stream(), audio, PIECES[0])
    assert [line.text for line in lines] == expected and len(lines) > 1
    for sizes in PIECES[1:]:
        assert listen(live.stream(), audio, sizes)[0] == lines
    times = [time for line in lines for time in (line.start, line.end)]
    assert times == sorted(times)
    assert max(line.start for line in lines) > 3.4, "times are counted from the beginning of the audio"


def test_what_is_stable_stays(recognizer: RNNTransducer) -> None:
    audio = np.concatenate([babble(5, 7), with_pauses(2)])
    lines, partials = listen(LiveRecognizer(recognizer, silence=0.5, longest=3.0).stream(), audio, [640])
    assert len(lines) > 3
    grew = 0
    for number, line in enumerate(lines):
        texts = [partial for index, partial in partials if index == number]
        for previous, current in zip(texts, texts[1:], strict=False):
            assert (current.stable + current.rest).startswith(previous.stable) and current.stable.startswith(
                previous.stable
            )
            grew += current.stable != previous.stable
        assert all(line.text.startswith(partial.stable.rstrip()) for partial in texts)
        assert all(not partial.stable or partial.stable.endswith(" ") for partial in texts)
        assert all(" " not in partial.rest for partial in texts)
    assert grew > 3


def test_other_sample_rates_are_resampled(recognizer: RNNTransducer) -> None:
    audio = babble(4, 3, rate=44_100)
    lines, _ = listen(LiveRecognizer(recognizer, silence=0).stream(44_100), audio, [441])
    assert [line.text for line in lines] == [whole(recognizer, resample(audio, 44_100, 16_000)).text]


@pytest.mark.parametrize("samples", [0, 1, 399, 400, 640, 5_000])
def test_short_audio_and_none(recognizer: RNNTransducer, samples: int) -> None:
    audio = babble(1, 3)[:samples]
    lines, _ = listen(LiveRecognizer(recognizer).stream(), audio, [100])
    text = whole(recognizer, audio).text if samples else ""
    assert [line.text for line in lines] == ([text] if text else [])


def stored_numbers(stream: Stream) -> int:
    """The numbers that a stream holds."""
    return len(stream.audio) + sum(tensor.numel() for tensor in stream.state.tensors()) + len(stream.hypothesis.tokens)


@pytest.mark.parametrize("silence", [0, 0.8])
@pytest.mark.parametrize("audible", [False, True])
def test_memory_does_not_grow(recognizer: RNNTransducer, silence: float, audible: bool) -> None:
    stream = LiveRecognizer(recognizer, silence=silence, longest=2.0).stream()
    audio = babble(3, 5) if audible else np.zeros(48_000, np.float32)
    sizes = []
    for _ in range(4):
        stream.read(audio)
        sizes.append(stored_numbers(stream))
    assert max(sizes) < 20_000 and max(sizes[2:]) < 1.2 * max(sizes[:2])


def test_words_without_end_are_cut(recognizer: RNNTransducer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_TOKENS", 20)
    speechless = streaming_recognizer(bias=0.5)
    with torch.no_grad():
        speechless.joint.output.bias[3] = -1e3  # no space
    audio = babble(2, 1)
    lines, _ = listen(LiveRecognizer(speechless, silence=0).stream(), audio, [640])
    assert len(lines) > 1 and max(len(line.text) for line in lines) < 30
    assert "".join(line.text for line in lines) == whole(speechless, audio).text


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("RNN-T of LSTMs", "its encoder, LSTMEncoder, reads whole utterances"),
        ("RNN-T with a Conformer", "its encoder, Conformer, reads whole utterances"),
        ("LAS", "a EncoderDecoder writes only when an utterance has ended"),
        ("normalized", "its features have UtteranceNormalization, over whole utterances"),
    ],
)
def test_what_reads_whole_utterances_is_named(name: str, named: str) -> None:
    config = copy.deepcopy(ARCHITECTURES.get(name, CONFIG))
    if name == "normalized":
        normalization = {"class_path": "asr_lightning.audio.normalization.UtteranceNormalization"}
        config["init_args"]["features"]["init_args"]["normalization"] = normalization
    with pytest.raises(InputError) as refusal:
        LiveRecognizer(build_recognizer(config))
    message = str(refusal.value)
    assert message.startswith(named) and "Train a transducer that streams" in message and "asr transcribe" in message


def test_the_small_recognizer_streams(recognizer: RNNTransducer) -> None:
    assert isinstance(recognizer.encoder, StreamingEncoder) and EMFORMER["segment"] == 2
