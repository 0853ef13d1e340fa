"""Checkpoints and experiments of strangers: nothing in them runs, and what is damaged is refused."""

import importlib
import os
import pickle
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from jsonargparse._common import parsing_settings

from asr_lightning import cli
from asr_lightning.asr import main
from asr_lightning.callbacks.weight_selection import WeightSelection
from asr_lightning.errors import InputError
from asr_lightning.models.checkpoints import build_recognizer, checkpoint_model, load_recognizer, read_checkpoint
from asr_lightning.models.experiment import read_part
from asr_lightning.models.language_model import PretrainedLanguageModel
from asr_lightning.models.same_network import check_same_network, check_training_state
from asr_lightning.text.tokenizers import CharacterTokenizer
from asr_lightning.tools import weight_lines
from tests.support.mutations import FUZZED, RANDOM, Refusing, mutated
from tests.support.tones import RATE, make, transducer

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
        "transcribe": lambda: main(["transcribe", "--checkpoint", str(evil), "a.wav"]),
        "align": lambda: main(["align", "--checkpoint", str(evil), *output]),
        "path": lambda: weight_lines.load_pair(evil, evil, "cpu"),
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
    """A module that is no expected part of a recognizer; it makes a folder when it is called."""

    def __init__(self, path: str) -> None:
        super().__init__()
        Path(path).mkdir()


@pytest.mark.parametrize(
    "part", ["model", "tokenizer", "features", "encoder", "predictor", "search", "optimizer", "scheduler", "augment"]
)
@pytest.mark.parametrize(
    "named",
    ["test_hostile_checkpoints.Called", "os.mkdir", "subprocess.Popen", "logging.FileHandler", "functools.partial",
     "unittest.__main__.main", "antigravity.fly", "asr_lightning.models.checkpoints.load_recognizer"],
)  # fmt: skip
def test_only_classes_of_the_expected_kind_are_called(part: str, named: str, tmp_path: Path) -> None:
    arguments = {"test_hostile_checkpoints.Called": "path", "logging.FileHandler": "filename"}
    spec = {"class_path": named, "init_args": {arguments.get(named, "path"): str(tmp_path / "ran")}}
    with pytest.raises(InputError):
        build_recognizer(spec if part == "model" else transducer(**{part: spec}))
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


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Code that leaves a file behind when it is imported (`planted.py`) or read by torch.hub (`hubconf.py`)."""
    code = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
    classes = "import torch\nclass Adam(torch.optim.Adam): pass\ndef make(*_, **__): return None\n"
    for name in ("planted.py", "hubconf.py"):
        (tmp_path / name).write_text(code + classes)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "ran"


def test_the_planted_code_would_run(planted: Path) -> None:
    torch.hub.load(str(planted.parent), "make", source="local")
    assert planted.exists()
    planted.unlink()
    importlib.import_module("planted")
    del sys.modules["planted"]
    assert planted.exists()


HUB = {"class_path": "torch.hub.load", "init_args": {"repo_or_dir": ".", "model": "make", "source": "local"}}
SPELLINGS: dict[str, dict[str, Any]] = {
    "a function as the optimizer": {"optimizer": HUB},
    "a function by its name alone": {"optimizer": "torch.hub.load"},
    "a function as the schedule": {"scheduler": HUB},
    "a class path in text": {"optimizer": '{"class_path": "planted.Adam"}'},
    "a class of elsewhere": {"optimizer": {"class_path": "planted.Adam"}},
    "a class of elsewhere by its name alone": {"optimizer": "planted.Adam"},
    "a function of elsewhere": {"scheduler": "planted.make"},
    "the model": {"_class_path": "planted.Adam"},
    "a function of ours": {"optimizer": "asr_lightning.models.checkpoints.load_recognizer"},
    "the command line": {"optimizer": "asr_lightning.cli.main"},
    "in an argument": {
        "scheduler": {"class_path": "torch.optim.lr_scheduler.LambdaLR", "init_args": {"lr_lambda": "planted.make"}}
    },
    "in arguments that no class has": {
        "optimizer": {"class_path": "torch.optim.Adam", "dict_kwargs": {"more": {"class_path": "planted.Adam"}}}
    },
    "in a list": {"encoder": [{"class_path": "planted.Adam"}]},
    "a part of the network": {"encoder": {"class_path": "planted.Adam", "init_args": {"input_dimension": 20}}},
    "the search": {"search": {"class_path": "planted.Adam"}},
    "a file with a configuration": {"encoder": "planted.yaml"},
    "what makes it": {"_instantiator": "planted.make"},
}


def with_hyperparameters(path: Path, changes: dict[str, Any]) -> Path:
    recognizer = make()
    hyperparameters = {**recognizer.hparams, **changes}
    state = {"optimizer_states": [{}], "lr_schedulers": [], "epoch": 0, "pytorch-lightning_version": "2.6.6"}
    torch.save({"state_dict": recognizer.state_dict(), "hyper_parameters": hyperparameters, **state}, path)
    return path


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_no_code_is_imported_however_a_checkpoint_names_it(
    spelling: str, planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "planted.yaml").write_text("class_path: planted.Adam\n")
    path = with_hyperparameters(tmp_path / "evil.ckpt", SPELLINGS[spelling])
    with pytest.raises(InputError, match="evil.ckpt"):
        load_recognizer(path)
    with pytest.raises(InputError, match="evil.ckpt"):
        checkpoint_model(path)
    recognizer = build_recognizer(transducer(ctc_weight=0.3))
    with suppress(InputError):  # where the experiment's own value holds
        check_same_network(recognizer, read_checkpoint(path), path)
    with pytest.raises(InputError, match="evil.ckpt") if "search" not in spelling else nullcontext():
        check_same_network(recognizer, read_checkpoint(path), path)
        check_training_state(recognizer, read_checkpoint(path), path)
    assert not planted.exists() and "planted" not in sys.modules


@pytest.mark.parametrize("command", ["test", "validate", "predict", "fit", "without a model"])
def test_no_code_is_imported_by_the_command_line(
    command: str, planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning"])
    evil = str(with_hyperparameters(tmp_path / "evil.ckpt", {"optimizer": HUB, "encoder": "planted.Adam"}))
    config = tmp_path / "x.yaml"
    options = _of_ours(config)
    if command == "without a model":
        config.write_text(yaml.safe_dump({"data": yaml.safe_load(config.read_text())["data"]}))
    with pytest.raises(SystemExit) as ended:
        cli.main(["test" if " " in command else command, *options, "--ckpt_path", evil])
    assert "evil.ckpt" in str(ended.value.code)
    assert not planted.exists() and "planted" not in sys.modules


def test_a_user_may_allow_a_package(planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = with_hyperparameters(tmp_path / "some.ckpt", {"optimizer": {"class_path": "planted.Adam"}})
    with pytest.raises(
        InputError, match="optimizer: .*planted.Adam, .*allow the package by ASR_LIGHTNING_ALLOW=planted"
    ):
        load_recognizer(path)
    assert not planted.exists()
    monkeypatch.setenv("ASR_LIGHTNING_ALLOW", "other.package, planted")
    assert load_recognizer(path).hparams["optimizer"]["class_path"] == "planted.Adam"
    assert planted.exists()
    monkeypatch.setenv("ASR_LIGHTNING_ALLOW", "planted.*")
    with pytest.raises(InputError, match="ASR_LIGHTNING_ALLOW: expected names of packages or classes .* 'planted"):
        load_recognizer(path)
    del sys.modules["planted"]


def test_a_checkpoint_may_name_what_the_experiment_beside_it_names(planted: Path, tmp_path: Path) -> None:
    named = {"class_path": "planted.Adam"}
    path = with_hyperparameters(tmp_path / "some.ckpt", {"optimizer": named})
    load_recognizer(path, transducer(ctc_weight=0.3, optimizer=named))
    assert planted.exists()  # by the experiment
    del sys.modules["planted"]


def test_what_may_be_imported_is_afterwards_as_it_was(tmp_path: Path) -> None:
    verdicts = dict(parsing_settings["import_path_verdicts"])
    with pytest.raises(InputError):
        load_recognizer(with_hyperparameters(tmp_path / "evil.ckpt", {"optimizer": "torch.hub.load"}))
    assert parsing_settings["import_path_verdicts"] == verdicts and "*" not in verdicts


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
