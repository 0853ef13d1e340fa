"""Old names of classes in YAMLs and checkpoints."""

import importlib
from pathlib import Path

import pytest
import torch
import yaml

from asr_lightning import cli
from asr_lightning.files import load_yaml
from asr_lightning.models.checkpoints import build_recognizer, checkpoint_model, load_recognizer, read_checkpoint
from asr_lightning.models.experiment import read_part
from asr_lightning.models.rnn_transducer import LSTMPredictor, RNNTransducer
from asr_lightning.renamed import RENAMED, current_class_paths, current_names, current_state_key
from tests.support.tones import RATE, transducer, write_corpus

OLD = {
    "asr_lightning.networks.transducers": "asr_lightning.models.rnn_transducer",  # a module
    "asr_lightning.networks.transducers.Memory": "asr_lightning.models.rnn_transducer.LSTMPredictor",
    "asr_lightning.callbacks.watching.Watched": "asr_lightning.callbacks.transcripts.Transcripts",
}


@pytest.fixture
def renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    for old, new in OLD.items():
        monkeypatch.setitem(RENAMED, old, new)


def old_model() -> dict:
    model = transducer()
    text = yaml.safe_dump(model).replace("rnn_transducer.LSTMPredictor", "rnn_transducer.Memory")
    model = yaml.safe_load(text.replace("asr_lightning.models.rnn_transducer", "asr_lightning.networks.transducers"))
    assert model["class_path"] == "asr_lightning.networks.transducers.RNNTransducer"
    return model


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_entries_lead_from_a_name_that_is_gone_to_one_that_is_there(old: str, new: str) -> None:
    def exists(name: str) -> bool:
        module, _, attribute = name.rpartition(".")
        try:
            return hasattr(importlib.import_module(module), attribute) or bool(importlib.import_module(name))
        except ImportError:
            return False

    assert exists(new) and not exists(old)
    assert current_names(new) == new


@pytest.mark.usefixtures("renamed")
def test_only_whole_names_are_replaced() -> None:
    assert current_names("asr_lightning.networks.transducers.Joint") == "asr_lightning.models.rnn_transducer.Joint"
    assert current_names("{asr_lightning.networks.transducers.Memory: 1}") == (
        "{asr_lightning.models.rnn_transducer.LSTMPredictor: 1}"
    )
    for other in (
        "asr_lightning.networks.transducers_2.Joint",
        "my.asr_lightning.networks.transducers.Joint",
        "networks.transducers.Memory",
    ):
        assert current_names(other) == other
    # Of a module's class that has its own entry, the longer name counts; another class only begins like it.
    assert current_names("asr_lightning.networks.transducers.Memory2") == "asr_lightning.models.rnn_transducer.Memory2"


@pytest.mark.usefixtures("renamed")
def test_configurations_are_changed_at_class_paths_only() -> None:
    old = "asr_lightning.networks.transducers.Memory"
    config = {"class_path": old, "init_args": {"text": old, "parts": [{"class_path": old}], "pair": (1, None)}}
    new = LSTMPredictor.__module__ + ".LSTMPredictor"
    assert current_class_paths(config) == {
        "class_path": new,
        "init_args": {"text": old, "parts": [{"class_path": new}], "pair": (1, None)},
    }


@pytest.mark.usefixtures("renamed")
def test_a_checkpoint_with_old_names_loads(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = build_recognizer(old_model())  # a configuration in Python
    assert isinstance(model, RNNTransducer)
    path = tmp_path / "old.ckpt"
    arguments = dict(old_model()["init_args"], _class_path=old_model()["class_path"])
    arguments["tokenizer"] = dict(model.hparams["tokenizer"])
    states = {"Watched": {"lines": 1}, "Watched{'n_best': 2}": {"lines": 2}, "ModelCheckpoint": {}}
    checkpoint = {"state_dict": model.state_dict(), "hyper_parameters": arguments, "callbacks": states}
    torch.save(checkpoint, path)
    for loaded in (load_recognizer(path), load_recognizer(path, transducer()), load_recognizer(path, old_model())):
        assert type(loaded) is RNNTransducer and type(loaded.prediction.predictor) is LSTMPredictor
        assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
        assert loaded.hparams["_class_path"] == transducer()["class_path"]
    assert checkpoint_model(path).class_path == transducer()["class_path"]
    assert list(read_checkpoint(path)["callbacks"]) == ["Transcripts", "Transcripts{'n_best': 2}", "ModelCheckpoint"]
    assert current_state_key("Memory") == "Memory"  # no callback


@pytest.mark.usefixtures("renamed")
def test_an_experiment_with_old_names_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning"])
    write_corpus(tmp_path / "corpus", "train", ["A CAB"])
    subsets = {f"{role}_subsets": ["train"] for role in ("train", "validation", "test")}
    experiment = {
        "model": old_model(),
        "data": {
            "class_path": "data_modules.librispeech.LibriSpeechDataModule",
            "init_args": {"root": "corpus", "sample_rate": RATE, "workers": 0, "batch_seconds": 10, **subsets},
        },
        "trainer": {
            "default_root_dir": "run", "max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "run"}},
            "callbacks": [{"class_path": "asr_lightning.callbacks.watching.Watched"}],
        },
    }  # fmt: skip
    Path("old.yaml").write_text(yaml.safe_dump(experiment))
    old = "asr_lightning.networks.transducers.StatelessPredictor"
    cli.main(["fit", "--config", "old.yaml", "--model.init_args.predictor", old,
              "--model.init_args.predictor.init_args.dimension", "32"])  # fmt: skip
    [config] = Path("run").glob("**/config.yaml")  # of the run: written with current names
    assert "asr_lightning.networks" not in config.read_text() and "StatelessPredictor" in config.read_text()
    assert list(Path("run").glob("transcripts/*.jsonl"))

    assert read_part(Path("old.yaml")) == load_yaml(Path("old.yaml").read_text())["model"] == transducer()
