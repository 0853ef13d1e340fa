"""A transducer that recognizes audio piece by piece finds what greedy search finds in the whole."""

from typing import Any

import pytest
import torch

from asr_lightning.errors import InputError
from asr_lightning.models.checkpoints import build_recognizer
from asr_lightning.models.rnn_transducer import RNNTransducer
from tests.support.architectures import ARCHITECTURES
from tests.support.streaming_recognizer import output_with_bias
from tests.support.tones import RATE, features, lstm_encoder, speak, transducer

STREAMING = {  # and what the blank's score is lowered by, so that they write in many frames but not in all
    "RNN-T with a streaming Conformer": 1.0,
    "RNN-T with a streaming LSTM and CTC": 0.0,
    "one-hot RNN-T with a streaming Conformer of LayerNorms": 2.0,
    "RNN-T with an Emformer": 0.0,
    "RNN-T with an Emformer and layer norms": 1.0,
}
AUDIO = torch.stack([speak("A DEAF BEE FED", 1), speak("CAGED EGG FACE", 2)])


def talkative(name: str) -> RNNTransducer:
    """Random weights that write something in many frames."""
    torch.manual_seed(1)
    config = ARCHITECTURES[name]
    init = {**config["init_args"], "features": features("LogMel", mels=20)}
    recognizer = build_recognizer({**config, "init_args": init})
    assert isinstance(recognizer, RNNTransducer)
    recognizer.eval()
    with torch.no_grad():
        recognizer.encoder_projection.weight.mul_(4)
        output = output_with_bias(recognizer)
        output.weight.mul_(4)
        encoded, _ = recognizer(AUDIO, torch.full((2,), AUDIO.shape[1]))
        start = recognizer.predict(torch.zeros(2, 0, dtype=torch.int64))
        scores = recognizer.joint(recognizer.project(encoded), start)
        blank = scores[..., recognizer.tokenizer.blank_id]
        others = scores.masked_fill(torch.nn.functional.one_hot(torch.tensor(0), scores.shape[2]).bool(), -1e9).amax(2)
        output.bias[recognizer.tokenizer.blank_id] += (others - blank).flatten().quantile(0.7)
        output.bias[recognizer.tokenizer.blank_id] -= STREAMING[name]
    recognizer.search.max_symbols = 2
    return recognizer


@pytest.mark.parametrize("name", STREAMING)
def test_pieces_have_the_tokens_of_the_whole(name: str) -> None:
    recognizer = talkative(name)
    size = AUDIO.shape[1]
    whole = recognizer.decode(*recognizer(AUDIO, torch.full((2,), size)))
    assert all(len(best.tokens) > 5 and len(set(best.tokens)) > 1 for [best] in whole)
    for pieces in ([size], [160] * (size // 160) + [size % 160], [1000, 0, size - 1000], [37] * (size // 37 + 1)):
        state, tokens, frames, scores = recognizer.initial_stream(2), ([], []), ([], []), [0.0, 0.0]
        parts = AUDIO.split([min(piece, size - start) for start, piece in _starts(pieces)], dim=1)
        for number, piece in enumerate(parts):
            added, state = recognizer.stream(piece, state, last=number == len(parts) - 1)
            for row, hypothesis in enumerate(added):
                tokens[row].extend(hypothesis.tokens)
                frames[row].extend(hypothesis.frames)
                scores[row] += hypothesis.score
        for row, [best] in enumerate(whole):
            assert (tuple(tokens[row]), tuple(frames[row])) == (best.tokens, best.frames)
            assert scores[row] == pytest.approx(best.score, rel=1e-4)


def _starts(pieces: list[int]) -> list[tuple[int, int]]:
    return [(sum(pieces[:number]), piece) for number, piece in enumerate(pieces)]


def test_networks_that_need_whole_utterances_are_named() -> None:
    recognizer = build_recognizer(transducer(encoder=lstm_encoder(20)))
    with pytest.raises(InputError, match="LSTMEncoder reads whole utterances: .* StreamingConformer"):
        recognizer.initial_stream(1)
    config: dict[str, Any] = ARCHITECTURES["RNN-T with a streaming LSTM and CTC"]
    init = {**config["init_args"], "features": features("LogMel", "UtteranceNormalization", mels=20)}
    recognizer = build_recognizer({**config, "init_args": init}).eval()
    with pytest.raises(InputError, match="UtteranceNormalization needs the whole utterance.*GlobalNormalization"):
        recognizer.stream(torch.zeros(1, RATE), recognizer.initial_stream(1))


def test_what_is_kept_does_not_grow_with_the_audio() -> None:
    recognizer = talkative("RNN-T with a streaming Conformer")
    state, sizes = recognizer.initial_stream(1), []
    for _ in range(6):
        _, state = recognizer.stream(torch.randn(1, 2 * RATE), state)
        sizes.append(sum(part.numel() for part in state.tensors()))
    assert max(sizes[1:]) < 1.1 * min(sizes[1:])
