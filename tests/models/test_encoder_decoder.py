from typing import Any

import pytest
import torch

from asr_lightning.errors import InputError
from asr_lightning.losses.ctc import ctc_loss
from asr_lightning.models.checkpoints import build_recognizer
from asr_lightning.models.encoder_decoder import EncoderDecoder
from tests.support.tones import attention_decoder, batch_of, lstm_encoder, speller

TEXTS = ["A CAB", "DEAF BEE", "BED"]


def make(**changes: Any) -> EncoderDecoder:
    torch.manual_seed(3)
    config = attention_decoder(**{"encoder": lstm_encoder(20), "decoder": speller("DotAttention"), **changes})
    recognizer = build_recognizer(config)
    assert isinstance(recognizer, EncoderDecoder)
    return recognizer.eval()


def search(**arguments: Any) -> dict[str, Any]:
    return {"class_path": "asr_lightning.decoding.attention.AttentionSearch", "init_args": arguments}


@torch.no_grad()
def log_prob(recognizer: EncoderDecoder, text: str, smoothing: float = 0.0) -> float:
    """Log probability of a text and its end, token by token by the decoder's step; of smoothed targets."""
    batch = batch_of([text])
    memory = recognizer.decoder.remember(*recognizer(batch.audio, batch.audio_lengths))
    state, total, eos = recognizer.decoder.initial_state(memory), 0.0, recognizer.tokenizer.eos_id
    previous = eos
    for token in [*recognizer.tokenizer.encode(text), eos]:
        logits, state = recognizer.decoder.step(torch.tensor([previous]), state, memory)
        log_probs = logits[0].log_softmax(dim=0)
        total += float((1 - smoothing) * log_probs[token] + smoothing * log_probs.mean())
        previous = token
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_that_of_the_transcript_and_its_end(smoothing: float) -> None:
    recognizer = make(label_smoothing=smoothing)
    expected = torch.tensor([-log_prob(recognizer, text, smoothing) for text in TEXTS])
    # the noise of a text depends on its index in batch_of: the first text is the same alone and in company
    torch.testing.assert_close(recognizer.loss(batch_of(TEXTS))[:1], expected[:1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(recognizer.loss(batch_of(TEXTS[1:2])), expected[1:2], rtol=1e-4, atol=1e-4)


def test_a_share_of_the_loss_is_that_of_ctc() -> None:
    recognizer, batch = make(ctc_weight=0.3), batch_of(TEXTS)
    mixed = recognizer.loss(batch)
    encoded, lengths = recognizer(batch.audio, batch.audio_lengths)
    targets, target_lengths = recognizer.targets(batch)
    assert recognizer.ctc is not None
    aligned = ctc_loss(recognizer.ctc(encoded), targets, lengths, target_lengths, recognizer.tokenizer.blank_id)
    recognizer.ctc = None
    torch.testing.assert_close(mixed, 0.7 * recognizer.loss(batch) + 0.3 * aligned)


def greedy(recognizer: EncoderDecoder, text: str) -> tuple[list[int], float]:
    batch = batch_of([text])
    encoded, lengths = recognizer(batch.audio, batch.audio_lengths)
    memory = recognizer.decoder.remember(encoded, lengths)
    state, tokens, total = recognizer.decoder.initial_state(memory), [recognizer.tokenizer.eos_id], 0.0
    while True:
        logits, state = recognizer.decoder.step(torch.tensor(tokens[-1:]), state, memory)
        log_probs = logits[0].log_softmax(dim=0)
        log_probs[recognizer.tokenizer.blank_id] = -torch.inf
        last = len(tokens) > 2 * int(lengths[0])
        token = recognizer.tokenizer.eos_id if last else int(log_probs.argmax())
        total += float(log_probs[token])
        if token == recognizer.tokenizer.eos_id:
            return tokens[1:], total
        tokens.append(token)


@pytest.mark.parametrize("steps", [0, 25])
def test_a_beam_of_one_is_greedy_and_scores_are_log_probabilities(steps: int) -> None:
    recognizer = make().train()
    optimizer = recognizer.configure_optimizers()
    for _ in range(steps):
        optimizer.zero_grad()
        recognizer.loss(batch_of(TEXTS)).mean().backward()
        optimizer.step()
    recognizer.eval()
    with torch.no_grad():
        for text in TEXTS:
            [[hypothesis]] = recognizer.recognize(batch_of([text]))
            tokens, score = greedy(recognizer, text)
            assert list(hypothesis.tokens) == tokens
            assert hypothesis.score == pytest.approx(score, abs=1e-3) == hypothesis.parts["attention"]
            if steps:
                [ranked] = make_wider(recognizer, 6).recognize(batch_of([text]))
                assert ranked[0].score >= hypothesis.score - 1e-4
                recognizer.search.beam = 1


def make_wider(recognizer: EncoderDecoder, beam: int) -> EncoderDecoder:
    recognizer.search.beam = beam
    return recognizer


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ctc_weight": 1.0}, "0 <= ctc_weight < 1, got 1.0"),
        ({"label_smoothing": 1.0}, "0 <= label_smoothing < 1, got 1.0"),
        (
            {"tokenizer": {"class_path": "asr_lightning.text.tokenizers.LetterTokenizer"}},
            "which LetterTokenizer does not have",
        ),
        ({"encoder": lstm_encoder(40)}, "encoder's input_dimension is 40"),
        ({"search": search(beam=0)}, "beam=0"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**changes)


def test_a_search_with_ctc_needs_a_recognizer_with_ctc() -> None:
    with pytest.raises(InputError, match="the recognizer was trained without CTC"):
        make(search=search(ctc_weight=0.3)).recognize(batch_of(TEXTS))


def test_attention_mechanisms_stand_in_each_others_place() -> None:
    names = ["DotAttention", "AdditiveAttention", "LocationAwareAttention", "MultiHeadAttention", "ScaledDotAttention"]
    shapes = {tuple(make(decoder=speller(name)).loss(batch_of(TEXTS)).shape) for name in names}
    assert shapes == {(3,)}
