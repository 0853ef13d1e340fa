"""What every architecture must do. To add one, add a row to ARCHITECTURES."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hybrids import KOREAN, hybrid, write_states
from tones import (
    RATE,
    TEXTS,
    attention_decoder,
    batch_of,
    conformer,
    ctc,
    deep_speech_2,
    features,
    frame_attention,
    lstm_encoder,
    make_trainer,
    speller,
    transducer,
)
from torch.distributed.device_mesh import DeviceMesh

from asr_lightning.batch import Batch, Utterance
from asr_lightning.callbacks.observation import observe
from asr_lightning.models.blstm_hmm import BLSTMHMM
from asr_lightning.models.checkpoints import build_recognizer, load_recognizer
from asr_lightning.models.encoder_decoder import EncoderDecoder
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.models.sharding import share, whole

STATELESS = {
    "class_path": "asr_lightning.models.rnn_transducer.StatelessPredictor",
    "init_args": {"dimension": 32, "context": 2},
}


def recurrent(name: str, **sizes: Any) -> dict[str, Any]:
    arguments = {"input_dimension": 20, "hidden": 32, **sizes}
    return {"class_path": f"asr_lightning.nn.recurrent.{name}", "init_args": arguments}


def transformer(name: str, **sizes: Any) -> dict[str, Any]:
    arguments = {"dimension": 32, "layers": 2, "heads": 2, "feed_forward": 64, "dropout": 0.0, **sizes}
    return {"class_path": f"asr_lightning.models.speech_transformer.{name}", "init_args": arguments}


def searching(**arguments: Any) -> dict[str, Any]:
    return {"class_path": "asr_lightning.decoding.attention.AttentionSearch", "init_args": arguments}


ARCHITECTURES: dict[str, dict[str, Any]] = {  # small, without dropout, for audio of RATE
    "RNN-T of LSTMs": transducer(),
    "RNN-T of LSTMs with CTC": transducer(
        encoder=lstm_encoder(81, subsampling=2),
        features=features("PowerSpectrogram", "GlobalNormalization"),
        ctc_weight=0.3,
    ),
    "RNN-T with a Conformer": transducer(
        encoder=conformer(20), features=features("KaldiFilterBank", "GlobalNormalization", mels=20)
    ),
    "stateless RNN-T with a Conformer and CTC": transducer(
        encoder=conformer(13, head_dimension=8),
        features=features("MFCC", "UtteranceNormalization", coefficients=13, mels=20),
        predictor=STATELESS,
        ctc_weight=0.5,
    ),
    "LAS": attention_decoder(
        encoder=recurrent("PyramidalLSTMEncoder", layers=2, plain_layers=1),
        decoder=speller("DotAttention", sampling=0.1),
    ),
    "end-to-end of projected LSTMs": attention_decoder(
        encoder=recurrent("ProjectedLSTMEncoder", layers=2, projection=48, subsampling=[2, 2]),
        decoder=speller("LocationAwareAttention", channels=4, filter_frames=10),
        label_smoothing=0.05,
        optimizer={"class_path": "torch.optim.Adam", "init_args": {"lr": 6e-3}},
    ),
    "end-to-end of projected LSTMs, attention asked with the previous state": attention_decoder(
        encoder=recurrent("ProjectedLSTMEncoder", layers=2, projection=48, subsampling=[2, 2], last_tanh=False),
        decoder=speller(
            "LocationAwareAttention", channels=4, filter_frames=10, sharpening=2.0, layers=2, query_state="previous"
        ),
        ctc_weight=0.5,
        search=searching(beam=2),
    ),
    "joint CTC-attention": attention_decoder(
        encoder=lstm_encoder(20), decoder=speller("AdditiveAttention"), ctc_weight=0.3, search=searching(ctc_weight=0.3)
    ),
    "Conformer with multi-head attention and a beam": attention_decoder(
        encoder=conformer(20), decoder=speller("MultiHeadAttention", heads=2), search=searching(beam=3)
    ),
    "Speech Transformer": attention_decoder(
        encoder=transformer("TransformerEncoder", input_dimension=20, channels=8),
        decoder=transformer("TransformerDecoder"),
    ),
    "Speech Transformer with CTC": attention_decoder(
        encoder=transformer("TransformerEncoder", input_dimension=20, channels=8),
        decoder=transformer("TransformerDecoder"),
        ctc_weight=0.3,
        search=searching(ctc_weight=0.3, beam=2),
    ),
    "Deep Speech 2": ctc(deep_speech_2(fully_connected=40)),
    "Deep Speech 2 as KoSpeech has it": ctc(
        deep_speech_2(directions="concatenate", batch_norm="input"), output_bias=False, loss_per_token=True
    ),
    "Deep Speech 2 with an input that both directions share": ctc(deep_speech_2(shared_input=True)),
    "Deep Speech 2 with vanilla units and without BatchNorm": ctc(
        deep_speech_2("Convolutions1d", kind="vanilla", batch_norm=False)
    ),
    "Deep Speech 2 with vanilla units, published attention and a prefix beam": ctc(
        deep_speech_2("VGG", kind="vanilla", attention=frame_attention("HeadAttention", heads=4)),
        search={"class_path": "asr_lightning.decoding.ctc_search.CTCSearch", "init_args": {"beam": 3}},
    ),
    "Deep Speech 2 with LSTMs and attention over time": ctc(
        deep_speech_2(kind="lstm", directions="concatenate", attention=frame_attention("TimeAttention", heads=2))
    ),
    "Deep Speech 2 with positions and temporal weights": ctc(
        deep_speech_2(attention=frame_attention("TimeAttention", heads=2, positions=True, decay=True))
    ),
    "Deep Speech 2 with additive attention": ctc(
        deep_speech_2("Convolutions1d", attention=frame_attention("AdditiveTimeAttention", hidden=16))
    ),
    "Deep Speech 2 with location-aware attention": ctc(
        deep_speech_2(
            attention=frame_attention("AdditiveTimeAttention", hidden=16, location=True, channels=10, filter_frames=5)
        )
    ),
    "Deep Speech 2 with cross-attention": attention_decoder(
        encoder=deep_speech_2(),
        decoder=transformer("TransformerDecoder"),
        ctc_weight=0.5,
        search=searching(ctc_weight=0.5),
    ),
    "Jasper": ctc(
        {
            "class_path": "asr_lightning.models.jasper.Jasper",
            "init_args": {
                "input_dimension": 20, "repeats": 2, "channels": [24, 32], "kernels": [5, 7], "dropouts": [0.0, 0.0],
                "copies": 1, "prologue": [24, 5], "epilogue": [32, 7], "dimension": 32, "epilogue_dropout": 0.0,
            },
        }
    ),
    "Jasper without dense residuals": ctc(
        {
            "class_path": "asr_lightning.models.jasper.Jasper",
            "init_args": {
                "input_dimension": 20, "repeats": 2, "channels": [24], "kernels": [5], "dropouts": [0.0], "copies": 2,
                "dense": False, "prologue": [24, 5], "epilogue": [32, 7], "dimension": 32, "epilogue_dropout": 0.0,
            },
        }
    ),
    "Conformer with CTC": ctc(conformer(20)),
    "LSTMs with recurrent projections and CTC": ctc(
        {
            "class_path": "asr_lightning.nn.projected_lstm.RecurrentProjectionEncoder",
            "init_args": {
                "input_dimension": 20, "hidden": 48, "layers": 2, "recurrent_projection": 16, "projection": 12,
                "context": 2, "subsampling": 3,
            },
        }
    ),
    "hybrid with hidden Markov models": hybrid(),
    "hybrid with hidden Markov models and lattice-free MMI": hybrid(mmi_weight=0.5),
}  # fmt: skip
STEPS = 400
UNSEEN = ["BAD", "HEAD CHEF AGED", "A", "FEE"]
NAMED = {"tone": TEXTS, "unseen": UNSEEN}


def train(recognizer: Recognizer, batch: Batch) -> None:
    """Until the eight utterances are known by heart, or for STEPS."""
    optimizer = recognizer.configure_optimizers()
    for step in range(1, STEPS + 1):
        recognizer.train()
        optimizer.zero_grad()
        recognizer.loss(batch).mean().backward()
        torch.nn.utils.clip_grad_norm_(recognizer.parameters(), 5.0)
        optimizer.step()
        if step % 20 == 0 and recognizer.eval().transcribe(batch) == batch.texts:
            break


@pytest.fixture(scope="module", params=ARCHITECTURES)
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return with_states(ARCHITECTURES[request.param], tmp_path_factory.mktemp("states"))


def with_states(config: dict[str, Any], folder: Path, korean: bool = False) -> dict[str, Any]:
    """The same with what a hybrid needs besides its network, if it is one."""
    if "folder" not in config["init_args"]:
        return config
    spoken = {f"{name}-{n}": text for name, texts in NAMED.items() for n, text in enumerate(texts)}
    write_states(folder, [*TEXTS, *UNSEEN], spoken, korean)
    return {**config, "init_args": {**config["init_args"], "folder": str(folder)}}


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
    """The same utterances with more behind their ends."""
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
    encoded_alone = [trained(one.audio, one.audio_lengths) for one in alone]
    losses_alone = torch.cat([trained.loss(one) for one in alone])
    said_alone = [text for one in alone for text in trained.transcribe(one)]
    for company in (batch, padded(batch, 3_001, 0.0), padded(batch, 1_234, 0.5)):
        encoded, lengths = trained(company.audio, company.audio_lengths)
        for row, (expected, expected_lengths) in enumerate(encoded_alone):
            length = int(lengths[row])
            assert expected_lengths.tolist() == [length] == [expected.shape[1]]
            torch.testing.assert_close(encoded[row : row + 1, :length], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(trained.loss(company), losses_alone, rtol=1e-4, atol=1e-4)
        assert trained.transcribe(company) == said_alone


@torch.no_grad()
def test_words_have_their_times_and_confidence(trained: Recognizer) -> None:
    """A letter of the corpus lasts 0.1 s, so it is known when each word is spoken."""
    errors = []
    for text, hypotheses in zip(TEXTS, trained.recognize_words(batch_of()), strict=True):
        words = hypotheses[0].words
        assert " ".join(word.text for word in words) == hypotheses[0].text == text
        before, begin = 0.0, 0
        for word in words:
            assert before <= word.start <= word.end <= 0.1 * len(text) + 1e-6
            assert isinstance(trained, BLSTMHMM) == (word.confidence is None)
            assert word.confidence is None or 0.0 < word.confidence <= 1.0
            middle = 0.1 * begin + 0.05 * len(word.text)
            errors.append(abs((word.start + word.end) / 2 - middle))
            before, begin = word.start, begin + len(word.text) + 1
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
def test_layers_can_be_looked_at(trained: Recognizer) -> None:
    reader = READERS.get(type(getattr(trained, "decoder", trained)).__name__)
    paths = {"top": "encoder", "features": "features", **({"reader": reader} if reader else {})}
    batch = batch_of(UNSEEN)
    tokens = [trained.tokenizer.encode(text) for text in batch.texts]
    seen = observe(trained, batch, paths, tokens)
    encoded, lengths = trained(batch.audio, batch.audio_lengths)
    torch.testing.assert_close(seen.watched["top"].values, encoded)
    assert seen.watched["top"].lengths.tolist() == lengths.tolist()
    assert {name: one.unit for name, one in seen.watched.items() if name != "reader"} == {
        "top": "frame",
        "features": "frame",
    }
    starts, ends = seen.spans(seen.watched["top"].lengths)
    seconds = batch.audio.shape[1] / batch.sample_rate
    assert len(starts) == encoded.shape[1] and 0.9 * seconds < ends[-1] < seconds + 0.1
    assert (ends[:-1] == pytest.approx(starts[1:])) and starts[0] > -0.1
    for row, utterance in enumerate(separate(batch)):
        alone = observe(trained, Batch.collate([utterance], RATE), paths, tokens[row : row + 1])
        for name, one in seen.watched.items():
            length = int(one.lengths[row])
            assert length == alone.watched[name].values.shape[1]
            assert one.unit == "frame" or length == len(tokens[row]) + 1
            torch.testing.assert_close(
                one.values[row : row + 1, :length], alone.watched[name].values, rtol=1e-4, atol=1e-4
            )
    assert not trained.training and not any(module._forward_hooks for module in trained.modules())


def test_a_wider_beam_finds_nothing_less_probable(trained: Recognizer, monkeypatch: pytest.MonkeyPatch) -> None:
    search: Any = trained.search
    scores = {}
    for beam in (1, 4):
        monkeypatch.setattr(search, "beam", beam)
        found = trained.recognize(batch_of(UNSEEN))
        assert all(1 <= len(hypotheses) <= beam for hypotheses in found)
        for hypotheses in found:
            assert [one.score for one in hypotheses] == sorted((one.score for one in hypotheses), reverse=True)
        scores[beam] = [hypotheses[0].score for hypotheses in found]
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
    [heard] = trained.transcribe(batch)
    assert isinstance(heard, str)


def test_an_empty_transcript_can_be_scored(config: dict[str, Any]) -> None:
    recognizer = build_recognizer(config).eval()
    for texts in (["", ""], ["", TEXTS[1]]):
        batch = replace(batch_of(TEXTS[:2]), texts=texts)  # which hybrids have aligned
        with torch.no_grad():
            assert not recognizer.loss(batch).isnan().any()


def test_every_parameter_gets_a_gradient(config: dict[str, Any]) -> None:
    recognizer = build_recognizer(config).train()
    recognizer.loss(batch_of()).mean().backward()
    without = [name for name, parameter in recognizer.named_parameters() if parameter.grad is None]
    assert not without
    for name, parameter in recognizer.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_processes_can_share_its_weights(config: dict[str, Any], mesh: DeviceMesh) -> None:
    gradients = []
    for sharing in (False, True):
        torch.manual_seed(2)
        recognizer = build_recognizer(config).train()
        if sharing:
            share(recognizer, recognizer.encoder, mesh)
        torch.manual_seed(3)
        recognizer.loss(batch_of()).mean().backward()
        named = [(name, parameter.grad) for name, parameter in recognizer.named_parameters()]
        gradients.append({name: whole(gradient) for name, gradient in named if gradient is not None})
    expected, found = gradients
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


@torch.no_grad()
def test_a_checkpoint_brings_the_same_recognizer_back(trained: Recognizer, tmp_path: Path) -> None:
    trainer, path = make_trainer(tmp_path), tmp_path / "last.ckpt"
    trainer.strategy.connect(trained)
    trainer.save_checkpoint(path)
    assert torch.load(path, weights_only=True)["hyper_parameters"]["_class_path"].endswith(type(trained).__name__)
    torch.manual_seed(99)
    again = load_recognizer(path)
    assert type(again) is type(trained) and not again.training
    assert {name: value.tolist() for name, value in again.state_dict().items()} == {
        name: value.tolist() for name, value in trained.state_dict().items()
    }
    batch = batch_of(UNSEEN, "unseen")
    assert torch.equal(again(batch.audio, batch.audio_lengths)[0], trained(batch.audio, batch.audio_lengths)[0])
    assert torch.equal(again.loss(batch), trained.loss(batch))
    assert again.transcribe(batch) == trained.transcribe(batch)
    assert dict(again.hparams) == dict(trained.hparams)  # so that a checkpoint of the copy is as good
