import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from asr_lightning.asr import main
from asr_lightning.models.checkpoints import build_recognizer
from asr_lightning.models.experiment import count_parameters, parameters_without_memory
from asr_lightning.models.rnn_transducer import RNNTransducer, StatelessPredictor

PARTS = ["encoder", "encoder_projection", "prediction", "joint"]  # in the order in which RNNTransducer makes them


def write(path: Path, model: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"seed_everything": 1, "model": model, "data": {"class_path": "no.such.Data"}}))
    return path


def true_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def test_the_command_counts_and_names_what_is_bad(config: dict[str, Any], tmp_path: Path) -> None:
    good = write(tmp_path / "experiments" / "demo" / "tiny.yaml", config)
    elsewhere = write(tmp_path / "other" / "v1.2.yaml", config)
    command = [sys.executable, "-m", "asr_lightning.tools.parameters", str(good), "missing.yaml", str(elsewhere)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert result.returncode == 1, result.stderr
    recognizer = build_recognizer(config)
    parts = [f"  {part}\t{true_count(recognizer.get_submodule(part))}" for part in PARTS]
    total = true_count(recognizer)
    assert result.stdout.splitlines() == [f"demo/tiny\t{total}", *parts, f"v1.2\t{total}", *parts]
    assert result.stderr.splitlines() == ["missing.yaml: No such file or directory"]


def test_good_experiments_exit_with_0(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "experiments" / "tiny.yaml", config)
    monkeypatch.chdir(tmp_path / "experiments")
    assert main(["parameters", "tiny.yaml"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("tiny\t")
    assert not printed.err


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"model: [1, 2", "this is no YAML: while parsing"),
        (b"model: \xff", "this is no YAML: 'utf-8' codec"),
        (b"data: 1", "expected an experiment with a part `model:`"),
        (b"- model", "expected an experiment with a part `model:`"),
        (b"", "expected an experiment with a part `model:`"),
        (b"model: {class_path: asr_lightning.models.nothing.Nothing}", "there is no nothing in asr_lightning.models;"),
        (b"model: {}", "this is no configuration of a recognizer"),
    ],
)
def test_bad_experiments_are_named_and_the_rest_goes_on(
    config: dict[str, Any], tmp_path: Path, content: bytes, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.yaml").write_bytes(content)
    good = write(tmp_path / "good.yaml", config)
    assert main(["parameters", str(tmp_path / "bad.yaml"), str(tmp_path), str(good)]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(f"{tmp_path / 'bad.yaml'}: ")
    assert reason in printed.err
    assert f"{tmp_path}: Is a directory" in printed.err
    assert printed.out.startswith("good\t")


def test_arguments_that_do_not_fit_each_other_are_named(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config["init_args"]["encoder"]["init_args"]["input_dimension"] = 40
    assert main(["parameters", str(write(tmp_path / "misfit.yaml", config))]) == 1
    assert "LogMel gives 20 dimensions, but the encoder's input_dimension is 40" in capsys.readouterr().err


class Peculiar(StatelessPredictor):
    """Shares a weight, has one that is not trained, and remembers where its weights were made."""

    devices: list[str] = []

    def __init__(self, dimension: int) -> None:
        super().__init__(dimension)
        self.one, self.other = nn.Linear(3, 5, bias=False), nn.Linear(3, 5, bias=False)
        self.other.weight = self.one.weight
        self.frozen = nn.Parameter(torch.zeros(1000), requires_grad=False)
        self.devices.append(self.one.weight.device.type)


class Inquisitive(Peculiar):
    """Cannot be made without the values of its weights."""

    def __init__(self, dimension: int) -> None:
        super().__init__(dimension)
        self.largest = float(self.one.weight.detach().max())


class WithScale(RNNTransducer):
    """Has a parameter of its own, besides its parts."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.scale = nn.Parameter(torch.ones(7))


@pytest.mark.parametrize(("predictor", "devices"), [(Peculiar, ["meta"]), (Inquisitive, ["meta", "cpu"])])
def test_shared_and_frozen_parameters_and_no_memory_where_none_is_needed(
    config: dict[str, Any], predictor: type[Peculiar], devices: list[str]
) -> None:
    def count(name: str) -> int:
        config["init_args"]["predictor"]["class_path"] = name
        return count_parameters(config)["prediction"]

    Peculiar.devices.clear()
    plain = count("asr_lightning.models.rnn_transducer.StatelessPredictor")
    assert count(f"{__name__}.{predictor.__name__}") == plain + 15
    assert Peculiar.devices == devices
    assert nn.Linear(1, 1).weight.device.type == "cpu", "the hook must not outlive the count"


def test_parameters_outside_the_parts_are_listed(config: dict[str, Any]) -> None:
    plain = count_parameters(config)
    assert list(plain) == PARTS
    counted = count_parameters({**config, "class_path": f"{__name__}.WithScale"})
    assert counted == {"scale": 7, **plain}


def test_large_experiments_take_no_memory(config: dict[str, Any]) -> None:
    count_parameters(config)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kB
    config["init_args"]["predictor"]["init_args"]["dimension"] = 8_000
    assert count_parameters(config)["prediction"] > 512_000_000  # 2 GB of weights
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 100_000


def test_the_hook_leaves_buffers_alone() -> None:
    with parameters_without_memory():
        norm = nn.BatchNorm1d(3)
    assert norm.weight.is_meta
    assert norm.running_mean is not None
    assert norm.running_mean.tolist() == [0, 0, 0]
