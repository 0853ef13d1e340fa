"""What every architecture must do. To add one, add a row to ARCHITECTURES in `tests/support/architectures.py`."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh

from asr_lightning.batch import Batch, Utterance
from asr_lightning.callbacks.observation import observe
from asr_lightning.models.blstm_hmm import BLSTMHMM
from asr_lightning.models.checkpoints import build_recognizer, load_recognizer
from asr_lightning.models.encoder_decoder import EncoderDecoder
from asr_lightning.models.fsdp import full_tensor, share_weights
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.nn.int8 import use_int8
from asr_lightning.nn.sequences import real_frames
from tests.support.architectures import ARCHITECTURES, NAMED, UNSEEN, with_states
from tests.support.hybrids import KOREAN
from tests.support.tones import RATE, TEXTS, batch_of, make_trainer

STEPS = 400


def train(recognizer: Recognizer, batch: Batch) -> None:
    """Train until the eight utterances are recognized, for STEPS steps at most."""
    optimizer = recognizer.configure_optimizers()
    for step in range(1, STEPS + 1):
        recognizer.train()
        optimizer.zero_grad()
        recognizer.loss(batch).mean().backward()
        torch.nn.utils.clip_grad_norm_(recognizer.parameters(), 5.0)
        optimizer.step()
        if step % 20 == 0 and recognizes(recognizer.eval(), batch):
            break


@torch.no_grad()
def recognizes(recognizer: Recognizer, batch: Batch) -> bool:
    """Whether all utterances are recognized, also with bfloat16's rounding: not by a margin of one processor's."""
    if recognizer.transcribe(batch) != batch.texts:
        return False
    with torch.autocast("cpu", torch.bfloat16):
        return recognizer.transcribe(batch) == batch.texts


@pytest.fixture(scope="module", params=ARCHITECTURES)
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return with_states(ARCHITECTURES[request.param], tmp_path_factory.mktemp("states"))


@pytest.fixture(scope="module")
def trained(config: dict[str, Any]) -> Recognizer:
    torch.manual_seed(1)
    recognizer = build_recognizer(config)
    train(recognizer, batch_of())
    return recognizer.eval()


def in_korean(batch: Batch) -> Batch:
    """The same tones, with a syllable for every letter."""
    return replace(batch, texts=[text.translate(KOREAN) for text in batch.texts])


def padded(batch: Batch, samples: int, value: float) -> Batch:
    """The same utterances with more samples behind their ends."""
    audio = torch.full((len(batch), batch.audio.shape[1] + samples), value)
    for row, length in enumerate(batch.audio_lengths.tolist()):
        audio[row, :length] = batch.audio[row, :length]
    return Batch(batch.ids, audio, batch.audio_lengths, batch.sample_rate, batch.texts, batch.speakers, batch.subsets)


def test_it_learns_eight_utterances_by_heart(trained: Recognizer) -> None:
    assert trained.transcribe(batch_of()) == TEXTS


def test_it_learns_them_in_korean(config: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = {
        "class_path": "asr_lightning.text.hangul.SyllableTokenizer",
        "init_args": {"characters_in_order": "가나다라마바사아"},
    }
    config = with_states(config, tmp_path, korean=True)
    torch.manual_seed(1)
    recognizer = build_recognizer({**config, "init_args": {**config["init_args"], "tokenizer": tokenizer}})
    batch = in_korean(batch_of())
    train(recognizer, batch)
    assert recognizer.transcribe(batch) == batch.texts


@pytest.mark.parametrize("name", NAMED)
@torch.no_grad()
def test_an_utterance_is_the_same_alone_in_company_and_with_padding(trained: Recognizer, name: str) -> None:
    batch = batch_of(NAMED[name], name)
    alone = [Batch.collate([utterance], RATE) for utterance in separate(batch)]
    encoded_alone = [trained(single.audio, single.audio_lengths) for single in alone]
    losses_alone = torch.cat([trained.loss(single) for single in alone])
    texts_alone = [text for single in alone for text in trained.transcribe(single)]
    for company in (batch, padded(batch, 3_001, 0.0), padded(batch, 1_234, 0.5)):
        encoded, lengths = trained(company.audio, company.audio_lengths)
        for row, (expected, expected_lengths) in enumerate(encoded_alone):
            length = int(lengths[row])
            assert expected_lengths.tolist() == [length] == [expected.shape[1]]
            torch.testing.assert_close(encoded[row : row + 1, :length], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(trained.loss(company), losses_alone, rtol=1e-4, atol=1e-4)
        assert trained.transcribe(company) == texts_alone


@torch.no_grad()
def test_words_have_their_times_and_confidence(trained: Recognizer) -> None:
    """A letter of the corpus lasts 0.1 s, so it is known when each word is spoken."""
    errors = []
    for text, hypotheses in zip(TEXTS, trained.recognize_words(batch_of()), strict=True):
        words = hypotheses[0].words
        assert " ".join(word.text for word in words) == hypotheses[0].text == text
        previous, begin = 0.0, 0
        for word in words:
            assert previous <= word.start <= word.end <= 0.1 * len(text) + 1e-6
            assert isinstance(trained, BLSTMHMM) == (word.confidence is None)
            assert word.confidence is None or 0.0 < word.confidence <= 1.0
            middle = 0.1 * begin + 0.05 * len(word.text)
            errors.append(abs((word.start + word.end) / 2 - middle))
            previous, begin = word.start, begin + len(word.text) + 1
    if not isinstance(trained, EncoderDecoder) or trained.ctc is not None:  # attention may look anywhere
        assert sorted(errors)[len(errors) // 2] < 0.15


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_computes_on_every_processor(trained: Recognizer, dtype: torch.dtype) -> None:
    """Under autocast: near float32, the same alone and in company; gradients are float32 and finite."""
    batch, weights = batch_of(), deepcopy(trained.state_dict())
    with torch.no_grad():
        expected = trained.loss(batch)
        with torch.autocast("cpu", dtype):
            losses = trained.loss(batch)
            alone = torch.cat([trained.loss(Batch.collate([utterance], RATE)) for utterance in separate(batch)])
            assert trained.transcribe(batch) == TEXTS
    with torch.inference_mode(), torch.autocast("cpu", dtype, cache_enabled=False):  # as Lightning evaluates
        assert [best.text for best, *_ in trained.recognize_words(batch_of())] == TEXTS
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected, rtol=0.1, atol=0.2)
    torch.testing.assert_close(alone, losses, rtol=0.1, atol=0.2)
    try:
        with torch.autocast("cpu", dtype):
            trained.train().loss(batch).mean().backward()
        gradients = {name: parameter.grad for name, parameter in trained.named_parameters()}
    finally:  # other tests have the same network, whose running statistics have moved
        trained.eval().zero_grad()
        trained.load_state_dict(weights)
    for name, gradient in gradients.items():
        assert gradient is not None and gradient.dtype == torch.float32 and gradient.isfinite().all(), name


def separate(batch: Batch) -> list[Utterance]:
    return [
        Utterance(id, audio[:length], batch.sample_rate, text)
        for id, audio, length, text in zip(
            batch.ids, batch.audio, batch.audio_lengths.tolist(), batch.texts, strict=True
        )
    ]


READERS = {"RNNTransducer": "prediction", "Speller": "decoder.cells.0", "TransformerDecoder": "decoder.layers.0"}


@torch.no_grad()
@torch.no_grad()
def test_weights_of_8_bits_recognize_the_same(config: dict[str, Any], trained: Recognizer) -> None:
    small = build_recognizer(config).eval()
    small.load_state_dict(trained.state_dict())
    if not any(type(module) is torch.nn.Linear for module in small.modules()):
        pytest.skip("all layers are recurrent or convolutions")
    assert use_int8(small, least_weights=0) > 0
    batch = batch_of()
    transcripts = small.transcribe(batch)
    assert sum(text == reference for text, reference in zip(transcripts, batch.texts, strict=True)) >= 7
    encoded, lengths = trained(batch.audio, batch.audio_lengths)
    rounded, _ = small(batch.audio, batch.audio_lengths)
    real = real_frames(lengths, encoded.shape[1])
    assert float((rounded - encoded)[real].norm() / encoded[real].norm()) < 0.1


def test_layers_can_be_looked_at(trained: Recognizer) -> None:
    reader = READERS.get(type(getattr(trained, "decoder", trained)).__name__)
    paths = {"top": "encoder", "features": "features", **({"reader": reader} if reader else {})}
    batch = batch_of(UNSEEN)
    tokens = [trained.tokenizer.encode(text) for text in batch.texts]
    observation = observe(trained, batch, paths, tokens)
    encoded, lengths = trained(batch.audio, batch.audio_lengths)
    torch.testing.assert_close(observation.outputs["top"].values, encoded)
    assert observation.outputs["top"].lengths.tolist() == lengths.tolist()
    assert {name: output.unit for name, output in observation.outputs.items() if name != "reader"} == {
        "top": "frame",
        "features": "frame",
    }
    starts, ends = observation.spans(observation.outputs["top"].lengths)
    seconds = batch.audio.shape[1] / batch.sample_rate
    assert len(starts) == encoded.shape[1] and 0.9 * seconds < ends[-1] < seconds + 0.1
    assert (ends[:-1] == pytest.approx(starts[1:])) and starts[0] > -0.1
    for row, utterance in enumerate(separate(batch)):
        alone = observe(trained, Batch.collate([utterance], RATE), paths, tokens[row : row + 1])
        for name, output in observation.outputs.items():
            length = int(output.lengths[row])
            assert length == alone.outputs[name].values.shape[1]
            assert output.unit == "frame" or length == len(tokens[row]) + 1
            torch.testing.assert_close(
                output.values[row : row + 1, :length], alone.outputs[name].values, rtol=1e-4, atol=1e-4
            )
    assert not trained.training and not any(module._forward_hooks for module in trained.modules())


def test_a_wider_beam_finds_nothing_less_probable(trained: Recognizer, monkeypatch: pytest.MonkeyPatch) -> None:
    search: Any = trained.search
    scores = {}
    for beam in (1, 4):
        monkeypatch.setattr(search, "beam", beam)
        results = trained.recognize(batch_of(UNSEEN))
        assert all(1 <= len(hypotheses) <= beam for hypotheses in results)
        for hypotheses in results:
            assert [hypothesis.score for hypothesis in hypotheses] == sorted(
                (hypothesis.score for hypothesis in hypotheses), reverse=True
            )
        scores[beam] = [hypotheses[0].score for hypotheses in results]
    assert all(wide >= narrow - 1e-3 for narrow, wide in zip(scores[1], scores[4], strict=True)), scores


@pytest.mark.parametrize(
    ("audio", "text"),
    [
        (torch.full((5,), 0.1), "A"),
        (torch.zeros(RATE), "A"),
        (torch.zeros(RATE), ""),
        (torch.zeros(0), "A"),
    ],
    ids=["less than a window", "silence", "silence without a transcript", "nothing"],
)
def test_hardly_anything_to_hear_is_heard_without_nan(trained: Recognizer, audio: torch.Tensor, text: str) -> None:
    batch = Batch.collate([Utterance("quiet", audio, RATE, text)])
    encoded, lengths = trained(batch.audio, batch.audio_lengths)
    assert encoded.isfinite().all()
    assert lengths.tolist() == [encoded.shape[1]] and lengths.min() > 0
    assert not trained.loss(batch).isnan().any()
    [transcript] = trained.transcribe(batch)
    assert isinstance(transcript, str)


def test_an_empty_transcript_can_be_scored(config: dict[str, Any]) -> None:
    recognizer = build_recognizer(config).eval()
    for texts in (["", ""], ["", TEXTS[1]]):
        batch = replace(batch_of(TEXTS[:2]), texts=texts)  # which hybrids have aligned
        with torch.no_grad():
            assert not recognizer.loss(batch).isnan().any()


def test_every_parameter_gets_a_gradient(config: dict[str, Any]) -> None:
    recognizer = build_recognizer(config).train()
    recognizer.loss(batch_of()).mean().backward()
    without_gradient = [name for name, parameter in recognizer.named_parameters() if parameter.grad is None]
    assert not without_gradient
    for name, parameter in recognizer.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_processes_can_share_its_weights(config: dict[str, Any], mesh: DeviceMesh) -> None:
    gradients = []
    for sharing in (False, True):
        torch.manual_seed(2)
        recognizer = build_recognizer(config).train()
        if sharing:
            share_weights(recognizer, recognizer.encoder, mesh)
        torch.manual_seed(3)
        recognizer.loss(batch_of()).mean().backward()
        named = [(name, parameter.grad) for name, parameter in recognizer.named_parameters()]
        gradients.append({name: full_tensor(gradient) for name, gradient in named if gradient is not None})
    expected, shared = gradients
    assert shared.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(shared[name], gradient, msg=name)


@torch.no_grad()
def test_a_checkpoint_brings_the_same_recognizer_back(trained: Recognizer, tmp_path: Path) -> None:
    trainer, path = make_trainer(tmp_path), tmp_path / "last.ckpt"
    trainer.strategy.connect(trained)
    trainer.save_checkpoint(path)
    assert torch.load(path, weights_only=True)["hyper_parameters"]["_class_path"].endswith(type(trained).__name__)
    torch.manual_seed(99)
    loaded = load_recognizer(path)
    assert type(loaded) is type(trained) and not loaded.training
    assert {name: value.tolist() for name, value in loaded.state_dict().items()} == {
        name: value.tolist() for name, value in trained.state_dict().items()
    }
    batch = batch_of(UNSEEN, "unseen")
    assert torch.equal(loaded(batch.audio, batch.audio_lengths)[0], trained(batch.audio, batch.audio_lengths)[0])
    assert torch.equal(loaded.loss(batch), trained.loss(batch))
    assert loaded.transcribe(batch) == trained.transcribe(batch)
    assert dict(loaded.hparams) == dict(trained.hparams)  # so that a checkpoint of the copy is as good
