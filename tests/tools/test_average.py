"""Averages of checkpoints: by hand, tested as any other checkpoint, and in one table with what is not averaged."""

import csv
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import nn

from asr_lightning.analysis.interpolation import quality
from asr_lightning.asr import main
from asr_lightning.models.averaging import mean_weights
from asr_lightning.models.checkpoints import build_recognizer, load_recognizer, read_checkpoint
from asr_lightning.nn.batch_norm import MaskedBatchNorm
from data_modules.librispeech import LibriSpeechDataModule
from tests.support.tones import RATE, TEXTS, features, make_trainer, transducer, write_corpus

DATA = {
    "train_subsets": ["train"], "validation_subsets": ["dev"], "test_subsets": ["test"], "batch_seconds": 3.0,
    "workers": 0, "sample_rate": RATE,
}  # fmt: skip
MODEL = transducer(features=features("LogMel", "GlobalNormalization", mels=20))


class Counts(nn.Module):
    """Sums and the count of their terms, which are not averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("sums", torch.zeros(2, dtype=torch.float64))


def test_weights_and_statistics_are_averaged_but_not_what_is_counted() -> None:
    module, states = nn.Sequential(MaskedBatchNorm(2), Counts(), nn.BatchNorm1d(2)), []
    for step in (1, 2, 6):
        states.append({name: torch.full_like(value, step) for name, value in module.state_dict().items()})
    mean = mean_weights(module, states)
    assert mean.keys() == module.state_dict().keys()
    for name, value in mean.items():
        expected = 6.0 if name in ("1.count", "1.sums", "2.num_batches_tracked") else 3.0
        assert value.dtype == module.state_dict()[name].dtype
        assert torch.equal(value, torch.full_like(value, expected)), name
    assert torch.equal(mean_weights(module, states[:1])["0.weight"], states[0]["0.weight"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs with its checkpoints, one of them averaged over steps too."""
    folder = tmp_path_factory.mktemp("run")
    for subset in ("train", "dev", "test"):
        write_corpus(folder / "corpus", subset, TEXTS[:3])
    data = {"root": str(folder / "corpus"), **DATA}
    experiment = {
        "model": MODEL,
        "data": {"class_path": "data_modules.librispeech.LibriSpeechDataModule", "init_args": data},
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    for name, callbacks in (("plain", []), ("ema", [EMAWeightAveraging(decay=0.5)])):
        torch.manual_seed(1)
        saving = ModelCheckpoint(folder / name, "{epoch}", save_top_k=-1, every_n_epochs=1)
        trainer = make_trainer(folder, max_epochs=3, callbacks=[saving, *callbacks], enable_checkpointing=True)
        trainer.fit(build_recognizer(MODEL), datamodule=LibriSpeechDataModule(**data))
    return folder


def average(run: Path, *arguments: str) -> tuple[int, Path]:
    output = run / "average"
    options = ["--output", str(output), "--config", str(run / "experiment.yaml"), "--device", "cpu"]
    return main(["average", *arguments, *options]), output


def test_the_average_is_the_mean_and_can_be_used(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [run / "plain" / f"epoch={epoch}.ckpt" for epoch in (2, 0, 1)]  # in any order
    beside = ["--beside", str(paths[0]), str(run / "ema" / "epoch=2.ckpt")]
    status, output = average(run, *map(str, paths), *beside)
    assert status == 0
    states = [read_checkpoint(path)["state_dict"] for path in paths]
    averaged = read_checkpoint(output / "average.ckpt")
    for name, value in averaged["state_dict"].items():
        parts = torch.stack([state[name].double() for state in states])
        expected = parts[0] if "normalization" in name else parts.mean(dim=0)
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6, msg=name)
    assert averaged["global_step"] == read_checkpoint(paths[0])["global_step"]
    assert "optimizer_states" not in averaged
    network = load_recognizer(output / "average.ckpt")

    rows = list(csv.DictReader((output / "average.csv").open()))
    ema = "epoch=2, averaged over its steps"
    assert [row["weights"] for row in rows] == ["epoch=2", "epoch=2", ema, "averaged"]
    assert {row["subset"] for row in rows} == {"dev"}  # never what is tested on, unless it is asked for
    data = LibriSpeechDataModule(str(run / "corpus"), **DATA)  # type: ignore[arg-type]
    data.prepare_data()
    data.setup("validate")
    expected = quality(network, data.val_dataloader()["dev"], recognize=True)
    assert float(rows[-1]["loss"]) == pytest.approx(expected.loss, rel=1e-4)
    assert float(rows[-1]["wer"]) == pytest.approx(expected.error_rates["wer"])
    losses = {row["loss"] for row in rows}
    assert len(losses) >= 3  # the averages are other networks
    printed = capsys.readouterr().out
    assert "dev WER %" in printed and "weights of 3 checkpoints" in printed
    assert ema in (output / "average.md").read_text()


def test_subsets_that_are_asked_for_are_measured(run: Path) -> None:
    paths = [str(run / "plain" / f"epoch={epoch}.ckpt") for epoch in (0, 1)]
    status, output = average(run, *paths, "--subsets", "dev", "test")
    assert status == 0
    assert [row["subset"] for row in csv.DictReader((output / "average.csv").open())] == ["dev", "test"]


def test_what_cannot_be_averaged_is_told(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = str(run / "plain" / "epoch=0.ckpt")
    assert average(run, first)[0] == 2
    assert "two or more checkpoints" in capsys.readouterr().err
    assert average(run, first, first)[0] == 2
    assert "of different steps, found several of one" in capsys.readouterr().err
    other = read_checkpoint(run / "plain" / "epoch=1.ckpt")
    other["hyper_parameters"]["joint_dimension"] = 16
    torch.save(other, tmp_path / "other.ckpt")
    assert average(run, first, str(tmp_path / "other.ckpt"))[0] == 2
    assert "another network" in capsys.readouterr().err
