"""A run stopped by a signal and resumed trains on the same batches and ends as an undisturbed one."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from asr_lightning.callbacks import stopping
from asr_lightning.callbacks.stopping import NAME, SIGNALS, FinishEpoch, MovedFolder, SaveLastEpoch, SaveWhenStopped

STEPS_AN_EPOCH = 8


class Line(lightning.LightningModule):
    """Learns one number from numbers, and records the numbers of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.given: list[float] = []
        self.validated: list[tuple[int, int, float]] = []
        self.ended: list[int] = []
        self.status: Any = 0

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.given.append(float(batch))
        return (self.weight - batch.sum()) ** 2

    def validation_step(self, batch: torch.Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.validated.append((self.current_epoch, dataloader_idx, float(batch)))

    def on_train_epoch_end(self) -> None:
        self.ended.append(self.current_epoch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


class Numbers:
    """0, 1, 2, … of an epoch, from its first batch that was not trained on."""

    def __init__(self) -> None:
        self.trainer: lightning.Trainer | None = None

    def __len__(self) -> int:
        return STEPS_AN_EPOCH

    def __iter__(self) -> Any:
        assert self.trainer is not None
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        yield from (torch.tensor([float(number)]) for number in range(done, STEPS_AN_EPOCH))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Kill(Callback):
    """Send a signal in a training batch or in the first validation."""

    def __init__(self, number: int, where: int | str) -> None:
        self.number, self.where = number, where

    def on_before_backward(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.where:
            os.kill(os.getpid(), self.number)

    def on_validation_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        if self.where == "validation" and trainer.current_epoch == 0:
            os.kill(os.getpid(), self.number)


def run(
    folder: Path,
    *callbacks: Callback,
    resume: Path | None = None,
    accumulate: int = 1,
    validate: bool = True,
    saves: dict[str, Any] | None = None,
    **options: Any,
) -> Line:
    module, numbers = Line(), Numbers()
    saving = ModelCheckpoint(folder, enable_version_counter=False, **(saves or {"filename": "last"}))
    options = {"max_epochs": 2, "limit_val_batches": 1.0 if validate else 0} | options
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, accumulate_grad_batches=accumulate, callbacks=[*callbacks, saving],
        use_distributed_sampler=False, **options,
    )  # fmt: skip
    numbers.trainer = trainer
    handlers = [signal.getsignal(number) for number in SIGNALS]
    try:
        trainer.fit(module, numbers, {name: DataLoader(torch.arange(3.0)) for name in "ab"}, ckpt_path=resume)  # type: ignore[arg-type]
    except SystemExit as stopped:
        module.status = stopped.code
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    return module


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    ("where", "accumulate", "done"),
    [(2, 1, 3), (2, 2, 4), (7, 1, 8), (15, 1, 16), ("validation", 1, 9), ("validation", 4, 12)],
)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    tmp_path: Path, number: int, where: int | str, accumulate: int, done: int
) -> None:
    expected = run(tmp_path / "whole", accumulate=accumulate)
    stopped = run(tmp_path / "cut", SaveWhenStopped(), Kill(number, where), accumulate=accumulate)
    assert stopped.status == 128 + number
    assert len(stopped.given) == done  # the step at hand, not one more
    resumed = run(tmp_path / "cut", FinishEpoch(), resume=tmp_path / "cut" / NAME, accumulate=accumulate)
    assert stopped.given + resumed.given == expected.given
    assert torch.equal(resumed.weight, expected.weight)
    assert torch.equal(stopped.weight, expected.weight) == (done == 2 * STEPS_AN_EPOCH)
    assert stopped.validated + resumed.validated == expected.validated and len(expected.validated) == 12
    assert stopped.ended + resumed.ended == expected.ended == [0, 1]
    assert torch.load(tmp_path / "cut/last.ckpt", weights_only=True)["state_dict"]["weight"] == expected.weight


@pytest.mark.parametrize("last", [7, 15])
def test_an_epoch_without_validation_is_finished_too(tmp_path: Path, last: int) -> None:
    expected = run(tmp_path / "whole", validate=False)
    stopped = run(tmp_path / "cut", SaveWhenStopped(), Kill(signal.SIGTERM, last), validate=False)
    resumed = run(tmp_path / "cut", FinishEpoch(), resume=tmp_path / "cut" / NAME, validate=False)
    assert stopped.status == 143 and stopped.given + resumed.given == expected.given
    assert stopped.ended + resumed.ended == [0, 1] and torch.equal(resumed.weight, expected.weight)


@pytest.mark.parametrize("seconds", [stopping.ONE_STOP_SECONDS, -1.0])
def test_a_later_signal_ends_the_process_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """Ctrl-C in a terminal signals an ablation and its runs, which the ablation then ends too: that is one stop."""
    monkeypatch.setattr(stopping, "ONE_STOP_SECONDS", seconds)

    class Impatient(Callback):
        def on_before_backward(self, *_: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)

    if (child := os.fork()) == 0:
        sys.stderr = open(os.devnull, "w")
        os._exit(run(tmp_path, SaveWhenStopped(), Impatient()).status)
    saved = seconds > 0
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (128 + signal.SIGTERM if saved else -signal.SIGINT)
    assert (tmp_path / NAME).exists() == saved


@pytest.mark.parametrize(
    ("ends", "goes_on"),
    [
        ({"max_epochs": 3, "check_val_every_n_epoch": 2}, {"max_epochs": 5}),
        ({"max_epochs": 3, "val_check_interval": 0.4}, {"max_epochs": 5}),
        ({"max_epochs": 3, "val_check_interval": 100, "check_val_every_n_epoch": None}, {"max_epochs": 5}),
        ({"max_epochs": 3, "limit_val_batches": 0, "check_val_every_n_epoch": 2}, {"max_epochs": 5}),
        ({"max_epochs": 3, "saves": {"filename": "last", "every_n_epochs": 2}}, {"max_epochs": 5}),
        ({"max_epochs": -1, "max_steps": 13}, {"max_steps": 30}),
        ({"max_epochs": -1, "max_steps": 13, "check_val_every_n_epoch": 2}, {"max_steps": 30}),
        ({"max_epochs": -1, "max_steps": 13, "val_check_interval": 3}, {"max_steps": 30}),
    ],
    ids=str,
)
def test_the_last_step_of_a_run_is_in_its_last_checkpoint(
    tmp_path: Path, ends: dict[str, Any], goes_on: dict[str, Any]
) -> None:
    first = run(tmp_path / "cut", SaveLastEpoch(), **ends)
    saved = torch.load(tmp_path / "cut/last.ckpt", weights_only=True)
    assert saved["global_step"] == len(first.given) and saved["state_dict"]["weight"] == first.weight
    resumed = run(tmp_path / "cut", FinishEpoch(), SaveLastEpoch(), resume=tmp_path / "cut/last.ckpt", **ends | goes_on)
    expected = run(tmp_path / "whole", SaveLastEpoch(), **ends | goes_on)
    assert first.given + resumed.given == expected.given and torch.equal(resumed.weight, expected.weight)
    assert first.validated + resumed.validated == expected.validated


class StopAt(Callback):
    """Ends training after a step, as a `Timer` or `EarlyStopping` does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step == self.step


@pytest.mark.parametrize("every", [1, 2])
def test_what_is_stopped_from_inside_is_saved(tmp_path: Path, every: int) -> None:
    module = run(tmp_path, StopAt(11), SaveLastEpoch(), check_val_every_n_epoch=every, max_epochs=3)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == len(module.given) == 11 and saved["state_dict"]["weight"] == module.weight


def test_the_last_of_checkpoints_that_a_metric_chooses_is_that_of_the_last_step(tmp_path: Path) -> None:
    class Worse(Callback):
        def on_validation_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
            module.log("worse", float(trainer.current_epoch))

    saves = {"monitor": "worse", "save_last": True, "filename": "best"}
    module = run(tmp_path, Worse(), SaveLastEpoch(), saves=saves, max_epochs=3)
    steps = {path.stem: torch.load(path, weights_only=True)["global_step"] for path in tmp_path.glob("*.ckpt")}
    assert steps == {"best": 8, "last": 24} and len(module.given) == 24


class Rates(Callback):
    """Logs an error rate that falls by epoch."""

    def on_validation_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        module.log("rate", 1.0 / (1 + trainer.current_epoch))


def test_a_run_that_was_moved_removes_the_checkpoints_that_are_no_longer_the_best(tmp_path: Path) -> None:
    saves = {"monitor": "rate", "save_top_k": 2, "filename": "best-{epoch}", "save_last": True}
    run(tmp_path / "old", Rates(), saves=saves)
    (tmp_path / "old").rename(tmp_path / "new")
    run(tmp_path / "new", Rates(), MovedFolder(), saves=saves, resume=tmp_path / "new/last.ckpt", max_epochs=4)
    assert sorted(path.stem for path in tmp_path.glob("*/best-*")) == ["best-epoch=2", "best-epoch=3"]
    run(tmp_path / "other", Rates(), MovedFolder(), saves=saves, resume=tmp_path / "new/last.ckpt", max_epochs=5)
    assert sorted(path.stem for path in tmp_path.glob("new/best-*")) == ["best-epoch=2", "best-epoch=3"]
