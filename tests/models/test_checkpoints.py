"""Which checkpoints and configurations are refused, and that no code in them is run."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from asr_lightning.errors import InputError
from asr_lightning.models.checkpoints import CheckpointFiles, load_recognizer, newest_readable_checkpoint
from asr_lightning.models.ctc import CTCRecognizer
from asr_lightning.models.rnn_transducer import RNNTransducer
from tests.support.tones import batch_of, loader, lstm_encoder, make, make_trainer


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    trainer = make_trainer(tmp_path)
    trainer.strategy.connect(make())
    trainer.save_checkpoint(tmp_path / "good.ckpt")
    return tmp_path / "good.ckpt"


class Payload:
    """Runs code when it is unpickled in the unsafe way."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


FOREIGN: dict[str, bytes | Any] = {
    "an empty file": b"",
    "text": b"model:\n  class_path: something\n",
    "noise": bytes(range(256)) * 20,
    "a zip of something else": b"PK\x05\x06" + bytes(18),
    "a list": [1, 2, 3],
    "bare weights": {"weight": torch.zeros(3)},
    "no hyperparameters": {"state_dict": {}},
    "no class": {"state_dict": {}, "hyper_parameters": {"lr": 1}},
    "another class": {"state_dict": {}, "hyper_parameters": {"_class_path": "torch.nn.Linear", "in_features": 3}},
    "no such class": {"state_dict": {}, "hyper_parameters": {"_class_path": "asr_lightning.models.nothing.Nothing"}},
    "a function": {"state_dict": {}, "hyper_parameters": {"_class_path": "os.system", "command": "true"}},
    "an abstract class": {
        "state_dict": {},
        "hyper_parameters": {"_class_path": "asr_lightning.models.recognizer.Recognizer"},
    },
}


@pytest.mark.parametrize("content", FOREIGN)
def test_a_foreign_file_is_refused(tmp_path: Path, content: str) -> None:
    path, value = tmp_path / "foreign.ckpt", FOREIGN[content]
    if isinstance(value, bytes):
        path.write_bytes(value)
    else:
        torch.save(value, path)
    with pytest.raises(InputError):
        load_recognizer(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.ckpt", tmp_path):
        with pytest.raises(InputError, match="no checkpoint at"):
            load_recognizer(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused(checkpoint: Path, share: float) -> None:
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match="not a complete checkpoint"):
        load_recognizer(checkpoint)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {}, "hyper_parameters": Payload(tmp_path / "run")}, path, pickle_module=pickle)
    with pytest.raises(InputError):
        load_recognizer(path)
    assert not (tmp_path / "run").exists()


def test_weights_of_another_size_are_refused(checkpoint: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"]["encoder"] = lstm_encoder(20, hidden=16)
    torch.save(content, checkpoint)
    with pytest.raises(InputError, match="do not fit"):
        load_recognizer(checkpoint)


@pytest.mark.parametrize(
    "changes",
    [{"encoder": {"class_path": "torch.nn.Linear"}}, {"joint_dimension": "wide"}, {"color": "blue"}],
    ids=str,
)
def test_a_configuration_that_does_not_fit_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="configuration of a recognizer"):
        make(**changes)


def test_features_that_do_not_fit_the_encoder_are_refused() -> None:
    with pytest.raises(InputError, match="LogMel gives 20 dimensions, .* input_dimension is 21: make them equal"):
        make(encoder=lstm_encoder(21))


def aged(folder: Path, *names: str) -> list[Path]:
    """Checkpoints, the oldest first."""
    paths = [folder / name for name in names]
    for seconds, path in enumerate(paths):
        torch.save({"state_dict": {}}, path)
        os.utime(path, (seconds, seconds))
    return paths


def test_the_newest_readable_checkpoint_is_taken_and_damaged_ones_are_named(tmp_path: Path) -> None:
    assert newest_readable_checkpoint([]) is None
    old, middle, new = aged(tmp_path, "c.ckpt", "a.ckpt", "b.ckpt")
    assert newest_readable_checkpoint([old, middle, new]) == new
    for damaged, expected in ((new, middle), (middle, old)):
        status = damaged.stat()
        os.truncate(damaged, status.st_size // 2)
        os.utime(damaged, (status.st_atime, status.st_mtime))
        with pytest.warns(UserWarning, match=f"(?s){damaged} is not a complete.*An earlier one is used: {expected}"):
            assert newest_readable_checkpoint([old, new, middle]) == expected
    old.write_bytes(b"")
    with pytest.raises(InputError, match="(?s)c.ckpt is not a complete.*remove them to begin again") as refusal:
        newest_readable_checkpoint([old, middle, new])
    assert str(new) in str(refusal.value) and str(middle) in str(refusal.value)


def test_a_checkpoint_is_loaded_as_users_of_lightning_do(checkpoint: Path) -> None:
    loaded, expected = RNNTransducer.load_from_checkpoint(checkpoint), make().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    assert not loaded.training
    with pytest.raises(InputError, match="CTCRecognizer"):
        CTCRecognizer.load_from_checkpoint(checkpoint)


def test_a_checkpoint_of_another_project_is_tested_too(checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    torch.save({name: content[name] for name in ("state_dict", "hyper_parameters")}, checkpoint)  # as `asr import`
    trainer = make_trainer(tmp_path, plugins=[CheckpointFiles()])
    [rates] = trainer.test(make(), loader([batch_of(["CAB"])]), ckpt_path=checkpoint, verbose=False)
    assert rates["test/words"] == 1
