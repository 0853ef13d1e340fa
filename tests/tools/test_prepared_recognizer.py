from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import soundfile
import torch

from asr_lightning.asr import main
from asr_lightning.errors import InputError
from asr_lightning.models.checkpoints import build_recognizer, load_recognizer
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.nn.int8 import Int8Linear, use_int8
from asr_lightning.tools import prepared_recognizer
from asr_lightning.tools.prepared_recognizer import prepare_recognizer


def run(checkpoint: Path, *arguments: Any) -> int:
    return main(["transcribe", "--checkpoint", str(checkpoint), "--device", "cpu", *map(str, arguments)])


def test_the_beam_is_replaced_where_there_is_one(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare_recognizer(checkpoint, "cpu", None).search.beam == 1
    assert prepare_recognizer(checkpoint, "cpu", 3).search.beam == 3
    with pytest.raises(SystemExit, match="2"):
        run(checkpoint, "--beam", "0", "a.wav")
    assert "argument --beam: invalid whole number from 1 value: '0'" in capsys.readouterr().err


def test_what_the_recognizer_cannot_do_is_an_error(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load_without_beam(path: Path, experiment: dict[str, Any] | None) -> Recognizer:
        recognizer = load_recognizer(path, experiment)
        del recognizer.search
        return recognizer

    monkeypatch.setattr(prepared_recognizer, "load_recognizer", load_without_beam)
    assert run(checkpoint, "--beam", "2", "a.wav") == 2
    assert "--beam: a RNNTransducer has no beam" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="--device cuda: torch finds no GPU"):
        prepare_recognizer(checkpoint, "cuda", None)


def test_weights_of_8_bits_are_an_option(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="RNNTransducer has no linear layers of 16,384 weights"):  # it is tiny
        prepare_recognizer(checkpoint, "auto", None, int8=True)
    monkeypatch.setattr(prepared_recognizer, "use_int8", partial(use_int8, least_weights=0))
    recognizer = prepare_recognizer(checkpoint, "auto", None, int8=True)
    assert any(isinstance(module, Int8Linear) for module in recognizer.modules())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert prepare_recognizer(checkpoint, "auto", None, int8=True).device.type == "cpu"
    with pytest.raises(InputError, match="--int8: expected --device cpu"):
        prepare_recognizer(checkpoint, "cuda", None, int8=True)
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 8_000), 16_000)
    assert run(checkpoint, "--int8", "--device", "cpu", str(tmp_path / "a.wav")) == 0


def remove_class(content: dict[str, Any]) -> None:
    del content["hyper_parameters"]["_class_path"]


def remove_weights(content: dict[str, Any]) -> None:
    del content["state_dict"]


def change_shape(content: dict[str, Any]) -> None:
    content["hyper_parameters"]["joint_dimension"] = 9


def misfit_encoder(content: dict[str, Any]) -> None:
    content["hyper_parameters"]["features"] = {
        "class_path": "asr_lightning.audio.features.LogMel",
        "init_args": {"mels": 10},
    }


@pytest.mark.parametrize("spoil", [remove_class, remove_weights, change_shape, misfit_encoder])
def test_a_checkpoint_of_something_else_is_an_error(
    checkpoint: Path, tmp_path: Path, spoil: Callable[[dict[str, Any]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    spoil(content)
    torch.save(content, tmp_path / "bad.ckpt")
    assert run(tmp_path / "bad.ckpt", "a.wav") == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert not printed.out


@pytest.mark.parametrize("kind", ["missing", "text", "half"])
def test_a_file_that_is_no_checkpoint_is_an_error(
    checkpoint: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.ckpt"
    if kind != "missing":
        content = checkpoint.read_bytes()
        path.write_bytes(b"no weights" if kind == "text" else content[: len(content) // 2])
    assert run(path, "a.wav") == 2
    assert str(path) in capsys.readouterr().err


def test_a_missing_language_model_is_named(
    config: dict[str, Any], recordings: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {"class_path": "asr_lightning.decoding.ngram.NGramLanguageModel", "init_args": {"arpa": "missing.arpa"}}
    search = {"beam": 2, "language_model": model, "language_model_weight": 0.3}
    decoder = {
        "class_path": "asr_lightning.models.listen_attend_spell.Speller",
        "init_args": {
            "attention": {"class_path": "asr_lightning.nn.mechanisms.DotAttention", "init_args": {"dimension": 4}},
            "hidden": 4,
        },
    }
    shared = {name: config["init_args"][name] for name in ("tokenizer", "features", "encoder")}
    recognizer = build_recognizer(
        {
            "class_path": "asr_lightning.models.encoder_decoder.EncoderDecoder",
            "init_args": {
                **shared,
                "decoder": decoder,
                "search": {"class_path": "asr_lightning.decoding.attention.AttentionSearch", "init_args": search},
            },
        }
    )
    trainer = lightning.Trainer(default_root_dir=tmp_path, logger=False, accelerator="cpu", enable_checkpointing=False)
    trainer.strategy.connect(recognizer)
    trainer.save_checkpoint(tmp_path / "las.ckpt")
    assert run(tmp_path / "las.ckpt", str(recordings["read.flac"])) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: cannot read the language model missing.arpa")
