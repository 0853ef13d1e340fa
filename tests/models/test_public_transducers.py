"""Networks from torchaudio's weights compute what torchaudio computes with them."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import sentencepiece
import torch
import torchaudio
import yaml
from torch import Tensor, nn
from torchaudio.models import RNNT, RNNTBeamSearch, emformer_rnnt_base, emformer_rnnt_model

from asr_lightning.asr import main
from asr_lightning.callbacks.transfer import transfer_weights
from asr_lightning.callbacks.weight_selection import select_weights
from asr_lightning.decoding.transducer import TransducerSearch
from asr_lightning.errors import InputError
from asr_lightning.models.checkpoints import CheckpointFiles, build_recognizer, load_recognizer
from asr_lightning.models.normalized_transducer import NormalizedTransducer
from asr_lightning.models.public_transducers import torchaudio_transducer
from asr_lightning.nn.axes import module_axes
from tests.support.small_texts import sentences

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SENTENCES = sentences(400)

PIECES = 60
SMALL = {
    "input_dim": 80, "encoding_dim": 24, "num_symbols": PIECES + 1, "segment_length": 16, "right_context_length": 4,
    "time_reduction_input_dim": 8, "time_reduction_stride": 4, "transformer_num_heads": 4, "transformer_ffn_dim": 20,
    "transformer_num_layers": 2, "transformer_dropout": 0.1, "transformer_activation": "gelu",
    "transformer_left_context_length": 30, "transformer_max_memory_size": 0,
    "transformer_weight_init_scale_strategy": "depthwise", "transformer_tanh_on_mem": True,
    "symbol_embedding_dim": 12, "num_lstm_layers": 2, "lstm_layer_norm": True, "lstm_layer_norm_epsilon": 1e-3,
    "lstm_dropout": 0.3,
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model with torchaudio's numbering, and statistics."""
    folder = tmp_path_factory.mktemp("public")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text.lower() for text in SENTENCES]), model_prefix=str(folder / "tokens"),
        vocab_size=PIECES, hard_vocab_limit=True, minloglevel=2,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    mean, inverse = torch.rand(2, 80, generator=generator)
    content = {"mean": (10 * mean).tolist(), "invstddev": (0.2 + inverse / 5).tolist()}
    (folder / "statistics.json").write_text(json.dumps(content))
    return folder


def public(kind: str) -> RNNT:
    torch.manual_seed(0)
    model = emformer_rnnt_base(PIECES + 1) if kind == "base" else emformer_rnnt_model(**SMALL)
    with torch.no_grad():  # random networks are sure of nothing, and emit tokens without end
        model.joiner.linear.weight.mul_(24)
        model.joiner.linear.bias[PIECES] += {"small": 32.5, "base": 42.5}[kind]
    return model.eval()


@pytest.fixture(scope="module", params=["small", "base"])
def pair(request: pytest.FixtureRequest, files: Path) -> Iterator[tuple[RNNT, NormalizedTransducer]]:
    reference = public(request.param)
    weights = files / f"{request.param}.pt"
    torch.save(reference.state_dict(), weights)
    heads = {"small": {"heads": 4}, "base": {}}[request.param]
    ours = torchaudio_transducer(weights, files / "tokens.model", files / "statistics.json", **heads)
    weights.unlink()
    assert isinstance(ours, NormalizedTransducer)
    yield reference, ours


def public_features(files: Path, audio: Tensor) -> Tensor:
    """The features of `RNNTBundle.get_feature_extractor`, which would load its statistics from the network."""
    statistics = json.loads((files / "statistics.json").read_text())
    gain = 10 ** (0.05 * 2 * 20 * math.log10(torch.iinfo(torch.int16).max))
    mel = torchaudio.transforms.MelSpectrogram(sample_rate=16_000, n_fft=400, n_mels=80, hop_length=160)
    x = mel(audio).transpose(1, 0) * gain
    x = torch.where(x > math.e, x.log(), x / math.e)
    x = (x - torch.tensor(statistics["mean"])) * torch.tensor(statistics["invstddev"])
    return nn.functional.pad(x, (0, 0, 0, 4))


def speech(seconds: float) -> Tensor:
    samples = torch.arange(int(16_000 * seconds)) / 16_000
    return 0.1 * torch.sin(700 * samples.square() + 900 * samples) * (1 + torch.sin(9 * samples)) / 2


@torch.no_grad()
def test_features_are_those_of_torchaudios_pipeline(pair: tuple[RNNT, NormalizedTransducer], files: Path) -> None:
    _, ours = pair
    audio = nn.utils.rnn.pad_sequence([speech(1.0), speech(0.73), speech(0.5)], batch_first=True)
    features, lengths = ours.features(audio, torch.tensor([16_000, 11_680, 8_000]))
    for row, seconds in enumerate((1.0, 0.73, 0.5)):
        expected = public_features(files, speech(seconds))[:-4]
        assert lengths[row] == len(expected)
        torch.testing.assert_close(features[row, : len(expected)], expected, atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_log_probabilities_and_transcripts_are_torchaudios(
    pair: tuple[RNNT, NormalizedTransducer], files: Path
) -> None:
    reference, ours = pair
    audio, targets = speech(1.3), torch.tensor([[5, 9, 3]])
    x = public_features(files, audio)
    start = torch.tensor([[PIECES, *targets[0].tolist()]])
    logits, *_ = reference(x[None], torch.tensor([len(x)]), start, torch.tensor([4]))
    encoded, lengths = ours(audio[None], torch.tensor([len(audio)]))
    our_logits = ours.joint(ours.project(encoded).unsqueeze(2), ours.predict(targets).unsqueeze(1))
    torch.testing.assert_close(our_logits.log_softmax(3), logits.log_softmax(3), atol=2e-4, rtol=0)

    loss = ours.decoder_loss(encoded, lengths, targets, torch.tensor([3]))
    expected = torchaudio.functional.rnnt_loss(
        logits, targets.int(), torch.tensor([logits.shape[1]]).int(), torch.tensor([3]).int(), PIECES, reduction="none"
    )
    torch.testing.assert_close(loss, expected, atol=1e-3, rtol=1e-4)

    for beam in (1, 4):
        ours.search = TransducerSearch(beam=beam, max_symbols=20)
        [[best, *_]] = ours.decode(encoded, lengths)
        hypotheses = RNNTBeamSearch(reference, PIECES, step_max_tokens=20)(x, torch.tensor([len(x)]), beam)
        assert list(best.tokens) == hypotheses[0][0][1:] and 2 < len(best.tokens) < 20


def test_a_checkpoint_of_it_is_read_as_any_other(pair: tuple[RNNT, NormalizedTransducer], tmp_path: Path) -> None:
    _, ours = pair
    checkpoint = {"state_dict": ours.state_dict(), "hyper_parameters": dict(ours.hparams)}
    CheckpointFiles().save_checkpoint(checkpoint, tmp_path / "public.ckpt")
    loaded = load_recognizer(tmp_path / "public.ckpt")
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("THE CAT")) == "THE CAT"
    for name, value in ours.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    axes = module_axes(ours)
    assert [factor.size for factor in axes["encoder_projection.weight"][1][0]] == [4, ours.encoder.dimension // 4]


def test_a_student_of_the_experiment_is_selected_from_it(pair: tuple[RNNT, NormalizedTransducer], files: Path) -> None:
    """Or takes its statistics alone: the two students begin with the same features and with other weights."""
    _, teacher = pair
    experiment = yaml.safe_load((EXPERIMENTS / "rnnt_ws_public.yaml").read_text("utf-8"))["model"]
    experiment["init_args"]["tokenizer"]["init_args"]["model"] = str(files / "tokens.model")
    if teacher.encoder.dimension < 256:  # the small teacher has a smaller student
        experiment["init_args"]["encoder"]["init_args"] |= {
            "projection": 4, "heads": 2, "feed_forward": 10, "layers": 1
        }  # fmt: skip
        experiment["init_args"]["predictor"]["init_args"]["dimension"] = 6
        experiment["init_args"]["joint_dimension"] = 12
    student = build_recognizer(experiment)
    weights, report = select_weights(student, teacher)
    left = {entry.name for entry in report if entry.share < 1}
    assert left == {name for name in weights if name.startswith("ctc.")} and left
    random = (yaml.safe_load((EXPERIMENTS / "rnnt_random_public.yaml").read_text("utf-8")))["initialize_from"]
    taken, _ = transfer_weights(student, teacher, skip=random["skip"])
    changed = {name for name, value in student.state_dict().items() if not torch.equal(taken[name], value)}
    assert changed == {"features.mean", "features.inverse_deviation"}
    for name in changed:
        assert torch.equal(taken[name], weights[name])


def test_wrong_files_are_named(files: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    torch.save({name: value for name, value in public("small").state_dict().items() if "joiner" not in name}, weights)
    arguments = (files / "tokens.model", files / "statistics.json")
    with pytest.raises(InputError, match="none that become joint.output.bias"):
        torchaudio_transducer(weights, *arguments)
    torch.save({"conv.weight": torch.zeros(1)}, weights)
    with pytest.raises(InputError, match="expected weights of torchaudio's RNN-T, found conv.weight"):
        torchaudio_transducer(weights, *arguments)
    weights.write_bytes(b"no weights")
    with pytest.raises(InputError, match="weights.pt: expected weights"):
        torchaudio_transducer(weights, *arguments)
    torch.save(public("small").state_dict(), weights)
    (tmp_path / "statistics.json").write_text('{"mean": [1], "invstddev": [1]}')
    with pytest.raises(InputError, match="of 80 features, found 1, 1"):
        torchaudio_transducer(weights, arguments[0], tmp_path / "statistics.json")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_prefix=str(tmp_path / "other"), vocab_size=40, minloglevel=2
    )
    with pytest.raises(InputError, match="60 pieces before the blank, found 41 tokens"):
        torchaudio_transducer(weights, tmp_path / "other.model", arguments[1])


def test_the_command_writes_a_checkpoint(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(public("small").state_dict(), tmp_path / "weights.pt")
    named = ["--weights", tmp_path / "weights.pt", "--tokens", files / "tokens.model"]
    options = ["--statistics", files / "statistics.json", "--heads", 4, "--output", tmp_path / "run/public.ckpt"]

    def run(*arguments: object) -> int:
        return main(["import", "torchaudio", *map(str, arguments)])

    assert run(*named, *options) == 0
    assert "61 tokens" in capsys.readouterr().out
    assert isinstance(load_recognizer(tmp_path / "run/public.ckpt"), NormalizedTransducer)
    assert (tmp_path / "run/tokens.model").read_bytes() == (files / "tokens.model").read_bytes()
    assert run(*named, "--output", tmp_path / "none.ckpt") == 2
    assert "either --bundle, or all of --weights" in capsys.readouterr().err
    assert run("--bundle", "WAV2VEC2_BASE", "--output", tmp_path / "none.ckpt") == 2
    assert "expected one of EMFORMER_RNNT_BASE_LIBRISPEECH" in capsys.readouterr().err

    def fail(path: str) -> str:
        raise OSError("no network")

    monkeypatch.setattr("asr_lightning.models.public_transducers._download_asset", fail)
    assert run("--bundle", "EMFORMER_RNNT_BASE_LIBRISPEECH", "--output", tmp_path / "none.ckpt") == 2
    assert "cannot download its files: no network" in capsys.readouterr().err
