"""Checkpoints and experiments of strangers: nothing in them runs, and what is damaged is refused."""

import os
import pickle
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import yaml
from hostile import FUZZED, RANDOM, Refusing, mutated
from hypothesis import given
from tones import RATE, make, transducer

from asr_lightning import cli
from asr_lightning.callbacks.weight_selection import WeightSelection
from asr_lightning.errors import InputError
from asr_lightning.models.checkpoints import build_recognizer, load_recognizer
from asr_lightning.models.experiment import read_part
from asr_lightning.models.language_model import PretrainedLanguageModel
from asr_lightning.text.tokenizers import CharacterTokenizer
from asr_lightning.tools import align, path, transcribe

ZERO = "torch.distributed.optim.ZeroRedundancyOptimizer"  # has a parameter of any type


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    recognizer = make()
    file = tmp_path_factory.mktemp("checkpoint") / "good.ckpt"
    torch.save({"state_dict": recognizer.state_dict(), "hyper_parameters": dict(recognizer.hparams)}, file)
    return file.read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@FUZZED
@given(random=RANDOM)
def test_damaged_checkpoints(random: Random, folder: Path, good: bytes) -> None:
    (folder / "some.ckpt").write_bytes(mutated(good, random))
    with Refusing("some.ckpt"):
        load_recognizer(folder / "some.ckpt")


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": [1]},
        {"state_dict": {}, "hyper_parameters": [1, 2]},
        {"state_dict": {}, "hyper_parameters": {"_class_path": 3}},
        {"state_dict": {1: 2}, "hyper_parameters": {"_class_path": "a.b"}},
    ],
    ids=str,
)
def test_checkpoints_of_other_things(content: dict[str, Any], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "some.ckpt")
    with pytest.raises(InputError, match="some.ckpt"):
        load_recognizer(tmp_path / "some.ckpt")


def test_weights_that_are_no_tensors(tmp_path: Path) -> None:
    recognizer = make()
    weights = {name: "text" for name in recognizer.state_dict()}
    torch.save({"state_dict": weights, "hyper_parameters": dict(recognizer.hparams)}, tmp_path / "some.ckpt")
    with pytest.raises(InputError, match="some.ckpt"):
        load_recognizer(tmp_path / "some.ckpt")


class Payload:
    """Makes a folder when it is unpickled in the unsafe way."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    recognizer = make()
    content = {"state_dict": recognizer.state_dict(), "hyper_parameters": dict(recognizer.hparams)}
    torch.save({**content, "extra": Payload(tmp_path / "ran")}, tmp_path / "evil.ckpt", pickle_module=pickle)
    return tmp_path / "evil.ckpt"


def test_the_payload_would_run(evil: Path, tmp_path: Path) -> None:
    torch.load(evil, weights_only=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("reader", ["load", "teacher", "language model", "transcribe", "align", "path", "test", "fit"])
def test_nothing_runs_by_any_way_that_a_checkpoint_goes(reader: str, evil: Path, tmp_path: Path) -> None:
    config = tmp_path / "x.yaml"
    config.write_text(yaml.safe_dump({"model": transducer(), "data": {"class_path": "a.B"}}))
    output = ["--output", str(tmp_path / "o"), "--config", str(config)]
    readers = {
        "load": lambda: load_recognizer(evil),
        "teacher": lambda: WeightSelection(str(evil)).set_weights(None, make()),  # type: ignore[arg-type]
        "language model": lambda: PretrainedLanguageModel(str(evil)).prepare(CharacterTokenizer(), torch.device("cpu")),
        "transcribe": lambda: transcribe.main(["--checkpoint", str(evil), "a.wav"]),
        "align": lambda: align.main(["--checkpoint", str(evil), *output]),
        "path": lambda: path.load_pair(evil, evil, "cpu"),
        "test": lambda: cli.main(["test", *_of_ours(config), "--ckpt_path", str(evil)]),
        "fit": lambda: cli.main(["fit", *_of_ours(config), "--ckpt_path", str(evil)]),
    }
    try:
        assert readers[reader]() == 2
    except (InputError, SystemExit) as error:
        assert "evil.ckpt" in str(error)
    assert not (tmp_path / "ran").exists()


def _of_ours(config: Path) -> list[str]:
    data = {"class_path": "data_modules.librispeech.LibriSpeechDataModule", "init_args": {"root": "nowhere"}}
    data["init_args"] |= {"sample_rate": RATE}  # type: ignore[operator]
    config.write_text(yaml.safe_dump({"model": transducer(), "data": data, "trainer": {"logger": False}}))
    return ["--config", str(config)]


class Called(torch.nn.Module):
    """Of no class that anything expects; says so where it is made."""

    def __init__(self, path: str) -> None:
        super().__init__()
        Path(path).mkdir()


@pytest.mark.parametrize(
    "place", ["model", "tokenizer", "features", "encoder", "predictor", "search", "optimizer", "scheduler", "augment"]
)
@pytest.mark.parametrize(
    "named",
    ["test_hostile_checkpoints.Called", "os.mkdir", "subprocess.Popen", "logging.FileHandler", "functools.partial",
     "unittest.__main__.main", "antigravity.fly", "asr_lightning.models.checkpoints.load_recognizer"],
)  # fmt: skip
def test_only_classes_of_the_expected_kind_are_called(place: str, named: str, tmp_path: Path) -> None:
    arguments = {"test_hostile_checkpoints.Called": "path", "logging.FileHandler": "filename"}
    spec = {"class_path": named, "init_args": {arguments.get(named, "path"): str(tmp_path / "ran")}}
    with pytest.raises(InputError):
        build_recognizer(spec if place == "model" else transducer(**{place: spec}))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("named", ["test_hostile_checkpoints.Called", "logging.FileHandler"])
def test_nothing_is_called_where_any_value_may_stand(named: str, tmp_path: Path) -> None:
    key = "path" if named.endswith("Called") else "filename"
    inner = {"class_path": named, "init_args": {key: str(tmp_path / "ran")}}
    recognizer = make()
    content = {"state_dict": recognizer.state_dict(), "hyper_parameters": dict(recognizer.hparams)}
    content["hyper_parameters"]["optimizer"] = {
        "class_path": ZERO, "init_args": {"optimizer_class": "torch.optim.Adam", "process_group": inner},
    }  # fmt: skip
    torch.save(content, tmp_path / "some.ckpt")
    try:
        load_recognizer(tmp_path / "some.ckpt")
    except InputError as error:
        assert "some.ckpt" in str(error)
    assert not (tmp_path / "ran").exists()


@FUZZED
@given(random=RANDOM)
def test_experiments(random: Random, folder: Path) -> None:
    good = yaml.safe_dump({"model": transducer(), "trainer": {"max_epochs": 1}}).encode()
    (folder / "some.yaml").write_bytes(mutated(good, random))
    with Refusing():
        part = read_part(folder / "some.yaml")
        if random.random() < 0.1:  # takes a while
            build_recognizer(part)


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir", "!!python/name:os.mkdir", "!!python/module:os"])
def test_yaml_makes_no_objects(tag: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(f"model: {tag} ['{tmp_path / 'ran'}']\n")
    with pytest.raises(InputError):
        read_part(tmp_path / "x.yaml")
    with pytest.raises(SystemExit):
        cli.main(["fit", "--config", str(tmp_path / "x.yaml")])
    assert not (tmp_path / "ran").exists()


def test_sizes_that_no_machine_holds_are_refused_at_once() -> None:
    many = transducer()
    many["init_args"]["encoder"]["init_args"]["layers"] = 999_999_999
    wide = transducer()
    wide["init_args"]["features"]["init_args"]["sample_rate"] = 999_999_999
    with Refusing("fewer layers", megabytes=300):
        build_recognizer(many)
    with Refusing("sample_rate=999999999", megabytes=50):
        build_recognizer(wide)


def test_a_long_name_makes_no_long_message() -> None:
    with pytest.raises(InputError) as raised:
        build_recognizer(transducer(features={"class_path": "asr_lightning." + "(" * 5_000}))
    assert len(str(raised.value)) < 3_000
