"""Exported networks: equal to PyTorch in onnxruntime, and to our own search in sherpa-onnx."""

import importlib.util
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from asr_lightning.asr import main
from asr_lightning.batch import Batch, Utterance
from asr_lightning.models.checkpoints import load_recognizer
from asr_lightning.models.recognizer import Recognizer
from tests.support.exported import MELS, network, write_checkpoint

pytest.importorskip("onnx", reason="pip install 'asr_lightning[export]'")
pytest.importorskip("onnxruntime", reason="pip install 'asr_lightning[export]'")

import onnx
from onnx import numpy_helper

from asr_lightning.tools.export import onnx_run
from asr_lightning.tools.exported_networks import make_exported

RATE = 16_000
FORMS = [
    ("conformer", "StatelessPredictor", "UtteranceNormalization"),
    ("conformer", "LSTMPredictor", None),
    ("layer_norms", "StatelessPredictor", "UtteranceNormalization"),
    ("layer_norms", "LSTMPredictor", None, "OneHotTransducer"),
    ("lstm", "LSTMPredictor", "UtteranceNormalization"),
    ("lstm", "StatelessPredictor", None),
    ("emformer", "StatelessPredictor", None),
    ("emformer", "LSTMPredictor", "UtteranceNormalization"),
    ("conformer", None, "UtteranceNormalization"),
    ("jasper", None, None),
    ("ds2", None, "UtteranceNormalization"),
]
LOG_MEL = {"class_path": "asr_lightning.audio.features.LogMel", "init_args": {"mels": MELS}}
SNIPPED = {"class_path": "asr_lightning.audio.kaldi_filter_bank.KaldiFilterBank", "init_args": {"mels": MELS}}
Written = tuple[Recognizer, Path]


@pytest.fixture(scope="module", params=FORMS, ids=lambda form: "-".join(map(str, form)))
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A recognizer, and the folder of its files."""
    folder = tmp_path_factory.mktemp("exported")
    path = write_checkpoint(folder / "last.ckpt", network(*request.param))
    assert main(["export", str(path), "--output", str(folder), "--int8"]) == 0
    return load_recognizer(path), folder


def sounds() -> list[Tensor]:
    """Noise whose loudness changes, of several durations."""
    generator = torch.Generator().manual_seed(0)

    def sound(size: int) -> Tensor:
        loudness = torch.rand(size // 400 + 1, generator=generator).repeat_interleave(400)[:size]
        return 0.1 * loudness * torch.randn(size, generator=generator)

    return [sound(size) for size in (8_000, 16_123, 24_000)]


def as_batch(audio: list[Tensor]) -> Batch:
    return Batch.collate([Utterance(str(number), samples, RATE, "", "") for number, samples in enumerate(audio)], RATE)


def test_all_sizes_are_equal_to_pytorch(written: Written) -> None:
    recognizer, folder = written
    form = make_exported(recognizer)
    functions = {name: lambda *x, graph=graph: as_tuple(graph.module(*x)) for name, graph in form.graphs.items()}
    runs = {name: onnx_run(folder / f"{name}.onnx") for name in form.graphs}
    generator = torch.Generator().manual_seed(3)
    for count, frames in ((1, 9), (1, 64), (3, 33), (3, 150)):
        features = torch.randn(count, frames, MELS, generator=generator)
        lengths = torch.tensor([frames, max(8, frames // 2), max(8, frames - 3)][:count])
        tokens = torch.randint(1, 29, (count, 4), generator=generator)
        with torch.no_grad():
            expected = form.log_probs(functions, features, lengths, tokens)
        torch.testing.assert_close(form.log_probs(runs, features, lengths, tokens), expected, atol=1e-4, rtol=0)


def as_tuple(result: object) -> object:
    return result if isinstance(result, tuple) else (result,)


def test_the_form_is_what_the_recognizer_computes(written: Written) -> None:
    """The forms in PyTorch against the recognizer's own encoder, prediction network and joint network or output."""
    recognizer, folder = written
    form = make_exported(recognizer)
    runs = {name: onnx_run(folder / f"{name}.onnx") for name in form.graphs}
    audio = as_batch(sounds()[:2])
    normalization, recognizer.features.normalization = recognizer.features.normalization, None
    features, lengths = recognizer.features(audio.audio, audio.audio_lengths)  # as sherpa-onnx gives them
    recognizer.features.normalization = normalization
    history = torch.tensor([[5, 9, 5], [7, 7, 3]])  # our ids
    exported_history = torch.tensor([form.order.index(int(token)) for token in history.flatten()]).view_as(history)
    with torch.no_grad():
        encoded, counts = recognizer(audio.audio, audio.audio_lengths)
        if hasattr(recognizer, "joint"):
            logits = recognizer.joint(
                recognizer.project(encoded).unsqueeze(2), recognizer.predict(history).unsqueeze(1)
            )  # (B, T, U + 1, V)
        else:
            logits = recognizer.output(encoded)
        expected = torch.cat([row[:count] for row, count in zip(logits.log_softmax(-1), counts, strict=True)])
    log_probs = form.log_probs(runs, features, lengths, exported_history)
    torch.testing.assert_close(log_probs, expected[..., form.order], atol=1e-4, rtol=0)


def test_padding_changes_no_real_frame(written: Written) -> None:
    recognizer, folder = written
    form = make_exported(recognizer)
    runs = {name: onnx_run(folder / f"{name}.onnx") for name in form.graphs}
    features = torch.randn(2, 90, MELS, generator=torch.Generator().manual_seed(4))
    lengths, tokens = torch.tensor([90, 41]), torch.tensor([[3, 4], [3, 4]])
    together = form.log_probs(runs, features, lengths, tokens)
    features[1, 41:] = 1000.0
    alone = form.log_probs(runs, features[1:, :41], lengths[1:], tokens[1:])
    padded = form.log_probs(runs, features, lengths, tokens)
    torch.testing.assert_close(padded, together, atol=0, rtol=0)
    torch.testing.assert_close(padded[-len(alone) :], alone, atol=1e-4, rtol=0)


def test_int8_is_smaller_and_near(written: Written) -> None:
    recognizer, folder = written
    form = make_exported(recognizer)
    runs, small = ({name: onnx_run(folder / f"{name}{kind}.onnx") for name in form.graphs} for kind in ("", ".int8"))
    features = torch.randn(2, 90, MELS, generator=torch.Generator().manual_seed(5))
    inputs = features, torch.tensor([90, 41]), torch.tensor([[3, 4], [3, 4]])
    difference = (form.log_probs(runs, *inputs) - form.log_probs(small, *inputs)).abs().max()
    assert 0 < difference < 1.5, "of log probabilities, with weights that were made eight times larger"
    for name in form.graphs:  # two products with bytes of inputs fit into 16 bits, on processors without VNNI too
        stored = (numpy_helper.to_array(part) for part in onnx.load(folder / f"{name}.int8.onnx").graph.initializer)
        assert all(abs(weights.astype(int)).max() <= 64 for weights in stored if weights.dtype == np.int8)


def test_int8_files_of_larger_networks_are_smaller(tmp_path: Path) -> None:
    config = network("conformer", None)
    config["init_args"]["encoder"]["init_args"] |= {"dimension": 96, "feed_forward": 384}
    path = write_checkpoint(tmp_path / "last.ckpt", config)
    level = logging.getLogger().level
    assert main(["export", str(path), "--output", str(tmp_path), "--int8"]) == 0
    assert logging.getLogger().level == level
    assert (tmp_path / "model.int8.onnx").stat().st_size < 0.5 * (tmp_path / "model.onnx").stat().st_size


def test_transcripts_of_sherpa_onnx_are_those_of_our_search(written: Written) -> None:
    sherpa_onnx = pytest.importorskip("sherpa_onnx", reason="pip install 'asr_lightning[export]'")
    recognizer, folder = written
    files = {name: str(folder / f"{name}.onnx") for name in make_exported(recognizer).graphs}
    shared = {"tokens": str(folder / "tokens.txt"), "feature_dim": MELS}
    if "model" in files:
        sherpa = sherpa_onnx.OfflineRecognizer.from_zipformer_ctc(model=files["model"], **shared)
    else:
        kind = "transducer" if recognizer.search.max_symbols == 1 else "nemo_transducer"
        networks = {name: files[name] for name in ("encoder", "decoder", "joiner")}
        sherpa = sherpa_onnx.OfflineRecognizer.from_transducer(**networks, **shared, model_type=kind)
    streams = [sherpa.create_stream() for _ in sounds()]
    for stream, audio in zip(streams, sounds(), strict=True):
        stream.accept_waveform(RATE, audio.numpy())
    sherpa.decode_streams(streams)
    texts = recognizer.transcribe(as_batch(sounds()))
    assert [" ".join(stream.result.text.split()) for stream in streams] == texts
    assert all(texts) and len(set(texts)) == len(texts)


def test_steps_of_an_emformer_are_the_whole(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "last.ckpt", network("emformer", "StatelessPredictor"))
    assert main(["export", str(path), "--output", str(tmp_path)]) == 0
    form = make_exported(load_recognizer(path))
    runs = {name: onnx_run(tmp_path / f"{name}.onnx") for name in form.graphs}
    for frames in (5, 16, 33, 63, 64, 80):
        features = torch.randn(2, frames, MELS, generator=torch.Generator().manual_seed(frames))
        whole, counts = runs["encoder"](features, torch.full((2,), frames))
        streamed = form.streamed(runs, features)
        torch.testing.assert_close(streamed, whole[:, : int(counts[0])], atol=1e-4, rtol=0)


def test_sherpa_onnx_streams_an_emformer(tmp_path: Path) -> None:
    sherpa_onnx = pytest.importorskip("sherpa_onnx", reason="pip install 'asr_lightning[export]'")
    path = write_checkpoint(tmp_path / "last.ckpt", network("emformer", "StatelessPredictor"))
    assert main(["export", str(path), "--output", str(tmp_path)]) == 0
    recognizer = load_recognizer(path)
    files = {name: str(tmp_path / f"{name}.onnx") for name in ("decoder", "joiner")}
    sherpa = sherpa_onnx.OnlineRecognizer.from_transducer(
        tokens=str(tmp_path / "tokens.txt"), encoder=str(tmp_path / "streaming_encoder.onnx"), **files,
        feature_dim=MELS, enable_endpoint_detection=False,
    )  # fmt: skip
    for audio in sounds():
        stream = sherpa.create_stream()
        for piece in audio.split(1_600):
            stream.accept_waveform(RATE, piece.numpy())
            while sherpa.is_ready(stream):
                sherpa.decode_stream(stream)
        stream.input_finished()
        while sherpa.is_ready(stream):
            sherpa.decode_stream(stream)
        features, lengths = recognizer.features(audio.unsqueeze(0), torch.tensor([len(audio)]))
        encoder = recognizer.encoder
        with (
            torch.no_grad()
        ):  # only frames whose look-ahead is there; sherpa-onnx leaves the rest out, unless silence follows
            encoded, counts, _ = encoder.stream(features, lengths, encoder.initial_state(1, torch.device("cpu")))
            text = recognizer.tokenizer.decode(recognizer.decode(encoded, counts)[0][0].tokens)
        ready = " ".join(sherpa.get_result(stream).split())
        assert text.startswith(ready) and len(text) - len(ready) <= encoder.segment and ready


def test_programs_of_torch_export_are_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_checkpoint(tmp_path / "last.ckpt", network("conformer", "StatelessPredictor", features=LOG_MEL))
    assert main(["export", str(path), "--output", str(tmp_path), "--format", "torch"]) == 0
    assert "largest difference of log probabilities to PyTorch" in capsys.readouterr().out
    assert sorted(file.name for file in tmp_path.glob("*.pt2")) == ["decoder.pt2", "encoder.pt2", "joiner.pt2"]
    names = set(torch.export.load(tmp_path / "encoder.pt2").state_dict)
    assert names and not any(name.startswith(("transducer.ctc", "transducer.joint")) for name in names)


def test_what_is_for_training_stays_behind(tmp_path: Path) -> None:
    import onnx

    path = write_checkpoint(tmp_path / "last.ckpt", network("conformer", "StatelessPredictor"))
    assert main(["export", str(path), "--output", str(tmp_path)]) == 0
    weights = sum(
        onnx.numpy_helper.to_array(initializer).size
        for name in ("encoder", "decoder", "joiner")
        for initializer in onnx.load(tmp_path / f"{name}.onnx").graph.initializer
    )
    recognizer = load_recognizer(path)
    parameters = sum(p.numel() for p in recognizer.parameters()) - sum(p.numel() for p in recognizer.ctc.parameters())
    assert weights < 1.1 * parameters


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (network("lstm", "LSTMPredictor", features=LOG_MEL), [], "found LogMel.*mel_scale: slaney"),
        (network("lstm", "StatelessPredictor", features=SNIPPED), [], "found .*snip_edges True"),
        (network("vanilla", None), [], "kind: vanilla cannot be exported"),
        (network("lstm", "LSTMPredictor"), ["--format", "torch"], "unrolls recurrent layers"),
        (network("conformer", None), ["--format", "torch", "--int8"], "--int8: expected --format onnx"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_refused(
    config: dict, options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_checkpoint(tmp_path / "last.ckpt", config)
    assert main(["export", str(path), "--output", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not list(tmp_path.glob("out/*.onnx")) and not list(tmp_path.glob("out/tokens.txt"))


def test_a_missing_extra_is_named(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else find_spec(name))
    assert main(["export", str(checkpoint), "--output", str(tmp_path)]) == 2
    assert "onnx: not installed; pip install 'asr_lightning[export]'" in capsys.readouterr().err


def test_a_network_that_is_another_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_checkpoint(tmp_path / "last.ckpt", network("conformer", None))
    from asr_lightning.tools import export

    def wrong(path: Path) -> object:
        run = onnx_run(path)
        return lambda *inputs: [run(*inputs)[0] + 0.01, run(*inputs)[1]]

    monkeypatch.setattr(export, "onnx_run", wrong)
    assert main(["export", str(path), "--output", str(tmp_path)]) == 2
