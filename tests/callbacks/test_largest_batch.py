"""A recogniser with a planted limit: what is found, and that the run is otherwise the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from tones import RATE, TEXTS, make, make_trainer, write_corpus
from torch import Tensor

from asr_lightning.batch import Batch
from asr_lightning.callbacks.largest_batch import LargestBatch
from asr_lightning.errors import InputError
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.models.rnn_transducer import RNNTransducer
from data_modules.librispeech import LibriSpeechDataModule


class Narrow(RNNTransducer):
    """Has room for so many seconds of padded audio."""

    room: float
    tried: list[float]

    def loss(self, batch: Batch) -> Tensor:
        seconds = batch.audio.numel() / RATE
        self.tried.append(seconds)
        if seconds > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return super().loss(batch)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, "train", TEXTS * 6)
    return folder


def narrow(room: float) -> Narrow:
    torch.manual_seed(1)
    model = make()
    model.__class__ = Narrow
    assert isinstance(model, Narrow)
    model.room, model.tried = room, []
    return model


def fit(
    model: Recognizer, root: Path, folder: Path, *callbacks: Callback, batch_seconds: float = 3.0, **more: Any
) -> Any:
    data = LibriSpeechDataModule(
        str(root), train_subsets=["train"], validation_subsets=[], test_subsets=[], predict_subsets=[],
        batch_seconds=batch_seconds, sample_rate=RATE, workers=0, seed=1,
    )  # fmt: skip
    trainer = make_trainer(folder, callbacks=list(callbacks), enable_checkpointing=True, limit_val_batches=0)
    torch.manual_seed(7)
    trainer.fit(model, datamodule=data, **more)
    return data


@pytest.mark.parametrize("room", [1.0, 2.7, 3.0, 8.0, 20.0])
def test_the_most_that_fits_is_found(room: float, root: Path, tmp_path: Path) -> None:
    model, found = narrow(room), LargestBatch(margin=1.0, most=200.0)
    data = fit(model, root, tmp_path, found)
    seconds = found.batch_seconds
    assert seconds == data.batch_seconds
    assert seconds is not None and max(model.tried) > room  # it was exceeded
    trained = [one for one in model.tried if one <= room]
    assert len(trained) > 3  # no step was lost
    longest = float(data.train_dataloader().durations.max())
    assert room - longest - 0.1 <= seconds <= room * 1.05 + longest  # batches are whole utterances


def test_what_all_fits_is_taken_without_a_margin(root: Path, tmp_path: Path) -> None:
    found = LargestBatch(most=12.0)
    fit(narrow(1e9), root, tmp_path / "a", found)
    assert found.batch_seconds == 12.0
    everything = LargestBatch(most=1e9)
    data = fit(narrow(1e9), root, tmp_path / "b", everything)
    assert everything.batch_seconds and everything.batch_seconds >= data.train_dataloader().durations.sum()


def test_the_run_is_as_if_the_seconds_had_been_given(root: Path, tmp_path: Path) -> None:
    searched, found = narrow(8.0), LargestBatch(margin=0.8, most=100.0)
    fit(searched, root, tmp_path / "a", found)
    assert found.batch_seconds and found.batch_seconds < 8.0
    given = narrow(1e9)
    fit(given, root, tmp_path / "b", batch_seconds=found.batch_seconds)
    for (name, one), (_, other) in zip(searched.state_dict().items(), given.state_dict().items(), strict=True):
        assert one.equal(other), name
    assert searched.tried[-len(given.tried) :] == given.tried


def test_a_resumed_run_keeps_what_was_found(root: Path, tmp_path: Path) -> None:
    found = LargestBatch(most=100.0)
    fit(narrow(8.0), root, tmp_path, found, ModelCheckpoint(tmp_path, "last"))
    again, model = LargestBatch(most=100.0), narrow(4.0)  # other memory
    model.room = 1e9
    data = fit(model, root, tmp_path, again, ckpt_path=str(tmp_path / "last.ckpt"))
    assert again.batch_seconds == data.batch_seconds == found.batch_seconds
    assert model.tried == []  # the epoch was done


def test_what_does_not_fit_at_all_is_told(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"room for one utterance of 0.\d s .* lower data.max_seconds"):
        fit(narrow(0.1), root, tmp_path, LargestBatch(most=100.0))


def test_other_errors_are_not_taken_for_want_of_memory(root: Path, tmp_path: Path) -> None:
    class Broken(Narrow):
        def loss(self, batch: Batch) -> Tensor:
            raise RuntimeError("shapes do not fit")

    model = narrow(1.0)
    model.__class__ = Broken
    with pytest.raises(RuntimeError, match="shapes"):
        fit(model, root, tmp_path, LargestBatch(most=100.0))


def test_without_an_accelerator_a_limit_is_needed(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected an accelerator"):
        fit(narrow(1.0), root, tmp_path, LargestBatch())


@pytest.mark.parametrize("wrong", [{"margin": 0.0}, {"margin": 1.5}, {"most": 0.0}, {"most": np.nan}])
def test_numbers_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        LargestBatch(**wrong)
