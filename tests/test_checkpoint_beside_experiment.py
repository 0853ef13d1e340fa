"""`lightning … --config … --ckpt_path …`: the experiment decides, the checkpoint gives the weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from asr_lightning import cli
from asr_lightning.text.tokenizers import train_sentencepiece
from tests.support.commands import exit_message
from tests.support.tones import RATE, attention_decoder, lstm_encoder, speller, transducer, write_corpus

TEXTS = ["A CAB", "DEAF BEE", "BED", "HE FED", "GAD", "FACE"]
MASKS = {"class_path": "asr_lightning.audio.augment.SpecAugment", "init_args": {"frequency_mask_bands": 4}}
SEARCH = "asr_lightning.decoding.transducer.TransducerSearch"
WIDE = {"class_path": SEARCH, "init_args": {"beam": 3}}
LAST = "run/checkpoints/last.ckpt"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning"])
    write_corpus(tmp_path / "corpus", "train", TEXTS[:2])
    write_corpus(tmp_path / "corpus", "test", TEXTS[2:3])
    return tmp_path


def write(name: str, model: dict[str, Any] | None, **trainer: Any) -> list[str]:
    subsets = {f"{role}_subsets": ["train" if role == "train" else "test"] for role in ("train", "validation", "test")}
    data = {"root": "corpus", "sample_rate": RATE, "workers": 0, "batch_seconds": 10, **subsets}
    saving = {"filename": "last", "enable_version_counter": False}
    content = {
        "model": model,
        "data": {
            "class_path": "data_modules.librispeech.LibriSpeechDataModule",
            "init_args": {**data, "predict_subsets": ["test"]},
        },
        "trainer": {
            "default_root_dir": "run", "max_epochs": 1, "accelerator": "cpu", "logger": False,
            "enable_progress_bar": False, "enable_model_summary": False,
            "callbacks": [
                {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": saving},
                {"class_path": "asr_lightning.callbacks.transcripts.Transcripts"},
            ],
            **trainer,
        },
    }  # fmt: skip
    if model is None:
        del content["model"]
    Path(f"{name}.yaml").write_text(yaml.safe_dump(content))
    return ["--config", f"{name}.yaml"]


def syllables(letters: str) -> dict[str, Any]:
    Path("units").write_text("".join(f"{letter}\t1\n" for letter in letters))
    return {"class_path": "asr_lightning.text.hangul.SyllableTokenizer", "init_args": {"characters": "units"}}


def beams() -> int:
    [path] = Path("run/transcripts").glob("test-*.jsonl")
    return max(len(json.loads(line).get("n_best", [0])) for line in path.read_text().splitlines())


def last() -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(LAST, weights_only=True)
    return checkpoint


def test_a_checkpoint_of_listed_units_goes_with_its_own_experiment() -> None:
    experiment = write("own", transducer(tokenizer=syllables("ABCDEFGH"), augment=MASKS))
    assert "found no checkpoint of the run in run" in exit_message("test", *experiment, "--ckpt_path", "last")
    cli.main(["fit", *experiment])
    for command in ("test", "validate", "predict"):
        cli.main([command, *experiment, "--ckpt_path", LAST])
    two = ["--trainer.max_epochs", "2"]
    rate, off = ["--model.init_args.optimizer.init_args.lr", "1e-5"], ["--model.init_args.augment", "null"]
    cli.main(["fit", *experiment, *rate, "--ckpt_path", LAST, *two, *off])  # before and behind it
    checkpoint = last()
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == 1e-5 and checkpoint["epoch"] == 1
    assert checkpoint["hyper_parameters"]["augment"] is None
    assert "beyond trainer.max_epochs 0" in exit_message(
        "fit", *experiment, "--ckpt_path", "last", "--trainer.max_epochs", "0"
    )
    syllables("BACDEFGH")  # as many, in another order
    for path in (LAST, "last"):
        message = exit_message("fit", *experiment, "--ckpt_path", path, *two)
        assert "tokenizer, token 4: 'A' in the checkpoint, 'B' in the experiment" in message


def test_a_checkpoint_of_pieces_goes_with_its_own_experiment() -> None:
    model = train_sentencepiece(TEXTS, 14, "pieces")
    tokenizer = {
        "class_path": "asr_lightning.text.tokenizers.SentencePieceTokenizer",
        "init_args": {"model": str(model)},
    }
    experiment = write("own", transducer(tokenizer=tokenizer))
    cli.main(["fit", *experiment])
    cli.main(["test", *experiment, "--ckpt_path", LAST])
    cli.main(["fit", *experiment, "--ckpt_path", "last", "--trainer.max_epochs", "2"])
    assert last()["epoch"] == 1
    model.unlink()
    cli.main(["test", *write("data", None), "--ckpt_path", LAST])  # without a model: the checkpoint has all of it


def test_the_search_is_that_of_the_experiment_and_without_a_model_that_of_the_checkpoint() -> None:
    experiment = write("own", transducer(search=WIDE))
    cli.main(["fit", *experiment])
    Path("more.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"search": {"init_args": {"beam": 2}}}}}))
    plain = write("plain", transducer())
    for options, expected in (
        (experiment, 3),
        (plain, 1),  # left out: the default
        ([*plain, "--model.init_args.search", "null"], 1),
        ([*experiment, "--config", "more.yaml"], 2),
        (write("data", None), 3),
    ):
        cli.main(["test", *options, "--ckpt_path", LAST])
        assert beams() == expected, options


def test_another_network_is_refused_before_anything_is_loaded() -> None:
    experiment = write("own", transducer())
    cli.main(["fit", *experiment])
    hidden = ["--model.init_args.encoder.init_args.hidden", "16"]
    for path in (LAST, "last"):
        message = exit_message("test", *experiment, *hidden, "--ckpt_path", path)
        assert "encoder.hidden: 32 in the checkpoint, 16 in the experiment" in message
    listener = attention_decoder(encoder=lstm_encoder(20), decoder=speller("DotAttention"))
    message = exit_message("test", *write("las", listener), "--ckpt_path", LAST)
    assert "RNNTransducer in the checkpoint, asr_lightning.models.encoder_decoder.EncoderDecoder in" in message
    message = exit_message("fit", *experiment, "--ckpt_path", "last", "--model.init_args.optimizer", "torch.optim.SGD")
    assert "optimizer: torch.optim.Adam in the checkpoint, torch.optim.SGD in the experiment" in message
    assert exit_message("test", *write("data", None)).startswith("error: expected a model, found none: give --config")
