"""A recognizer with a planted memory limit: the accumulation found, and a run that is otherwise the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from asr_lightning.batch import Batch
from asr_lightning.callbacks.largest_batch import LargestBatch
from asr_lightning.errors import InputError
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.models.rnn_transducer import RNNTransducer
from data_modules.librispeech import LibriSpeechDataModule
from tests.support.tones import RATE, TEXTS, make, make_trainer, write_corpus


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
    model: Recognizer,
    root: Path,
    folder: Path,
    *callbacks: Callback,
    batch_seconds: float = 3.0,
    ckpt_path: str | None = None,
    **options: Any,
) -> Any:
    data = LibriSpeechDataModule(
        str(root), train_subsets=["train"], validation_subsets=[], test_subsets=[], predict_subsets=[],
        batch_seconds=batch_seconds, sample_rate=RATE, workers=0, seed=1,
    )  # fmt: skip
    options = {"enable_checkpointing": True, "limit_val_batches": 0, **options}
    trainer = make_trainer(folder, callbacks=list(callbacks), **options)
    torch.manual_seed(7)
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return data


@pytest.mark.parametrize("room", [1.0, 2.7, 3.0, 8.0, 20.0])
def test_the_least_accumulation_that_fits_is_found(room: float, root: Path, tmp_path: Path) -> None:
    model, callback = narrow(room), LargestBatch(margin=1.0, most=200.0)
    data = fit(model, root, tmp_path, callback, batch_seconds=18.0)
    accumulation = data.trainer.accumulate_grad_batches
    assert callback.accumulation == accumulation
    largest = {}
    for parts in (max(1, accumulation - 1), accumulation):
        data.trainer.accumulate_grad_batches = parts
        loader = data.train_dataloader()
        largest[parts] = max(loader.durations[part].max() * len(part) for part in loader.plan()[0] if part)
    assert largest[accumulation] <= room
    assert accumulation == 1 or largest[accumulation - 1] > room
    steps = len(data.train_dataloader()) // accumulation
    assert data.trainer.global_step == steps > 1  # of 18 s, however they are cut
    assert len([seconds for seconds in model.tried if seconds <= room]) > steps  # no part was lost


def test_steps_that_fit_stay_uncut(root: Path, tmp_path: Path) -> None:
    callback = LargestBatch(most=200.0)
    data = fit(narrow(1e9), root, tmp_path, callback)
    assert callback.accumulation == data.trainer.accumulate_grad_batches == 1


def test_no_part_has_more_seconds_than_allowed(root: Path, tmp_path: Path) -> None:
    model, callback = narrow(1e9), LargestBatch(margin=1.0, most=4.0)
    fit(model, root, tmp_path, callback, batch_seconds=18.0)
    assert max(model.tried) <= 4.0
    assert callback.accumulation and callback.accumulation > 3


def test_the_run_is_as_if_the_accumulation_had_been_given(root: Path, tmp_path: Path) -> None:
    searched, callback = narrow(8.0), LargestBatch(margin=0.8, most=100.0)
    fit(searched, root, tmp_path / "a", callback, batch_seconds=18.0)
    assert callback.accumulation and callback.accumulation > 3
    reference = narrow(1e9)
    fit(reference, root, tmp_path / "b", batch_seconds=18.0, accumulate_grad_batches=callback.accumulation)
    for (name, value), (_, expected) in zip(searched.state_dict().items(), reference.state_dict().items(), strict=True):
        assert value.equal(expected), name
    assert searched.tried[-len(reference.tried) :] == reference.tried


def test_a_resumed_run_keeps_what_was_found(root: Path, tmp_path: Path) -> None:
    callback = LargestBatch(most=100.0)
    fit(narrow(8.0), root, tmp_path, callback, ModelCheckpoint(tmp_path, "last"), batch_seconds=18.0)
    resumed, model = LargestBatch(most=100.0), narrow(1e9)  # other memory
    data = fit(model, root, tmp_path, resumed, batch_seconds=18.0, ckpt_path=str(tmp_path / "last.ckpt"))
    assert resumed.accumulation == data.trainer.accumulate_grad_batches == callback.accumulation != 1
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
