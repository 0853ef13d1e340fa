import time
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from asr_lightning.batch import Batch
from asr_lightning.callbacks import throughput
from asr_lightning.callbacks.throughput import Span, Throughput
from tests.support.transcribing_run import PlannedHypotheses, batch_of, loader, make_trainer

SPEED = "train/audio_seconds_per_second"


class Clock:
    """A clock that moves only when it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    return clock


class Slow(PlannedHypotheses):
    """Needs 2 s for each training batch of the first epoch, 4 s in the second, and 100 s for each of validation."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.clock.now += 2.0 * (self.current_epoch + 1)
        return self.encoder.weight.sum()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.clock.now += 100.0

    def on_validation_epoch_start(self) -> None:
        pass

    def on_validation_epoch_end(self) -> None:
        pass


class Reader(lightning.Callback):
    """Keeps what was logged last, after each batch and each epoch."""

    def __init__(self) -> None:
        self.speeds: list[float] = []
        self.epochs: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.speeds.append(float(trainer.callback_metrics.get(SPEED, torch.nan)))

    def on_train_epoch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        metrics = trainer.callback_metrics
        self.epochs.append({name: float(metrics[name]) for name in (f"{SPEED}_epoch", "train/padding")})


def fit(folder: Path, clock: Clock, samples: list[list[int]], **options: Any) -> Reader:
    reader = Reader()
    trainer = make_trainer(folder, callbacks=[Throughput(), reader], **options)
    batches = [batch_of([str(row) for row in range(len(lengths))], lengths) for lengths in samples]
    trainer.fit(Slow(clock), loader(batches), {"test-clean": loader([batch_of("a")])})
    return reader


def test_speed_is_that_of_real_audio_since_the_last_log(tmp_path: Path, clock: Clock) -> None:
    # 100 samples a second: 3 s and 5 s of audio, then 8 s and 8 s
    reader = fit(tmp_path, clock, [[200, 100], [500], [800], [800]], log_every_n_steps=2)
    assert reader.speeds[1] == pytest.approx((3 + 5) / 4)
    assert reader.speeds[2] == reader.speeds[1]
    assert reader.speeds[3] == pytest.approx((8 + 8) / 4)


def test_an_epochs_speed_leaves_out_validation_and_its_padding_is_a_share_of_samples(
    tmp_path: Path, clock: Clock
) -> None:
    reader = fit(tmp_path, clock, [[200, 100], [500], [], [300]], val_check_interval=2, max_epochs=2)
    padding = 100 / (400 + 500 + 300)
    for epoch, seconds in zip(reader.epochs, (4 * 2, 4 * 4), strict=True):
        assert epoch == pytest.approx({f"{SPEED}_epoch": (3 + 5 + 3) / seconds, "train/padding": padding})
    assert clock.now == 4 * 2 + 4 * 4 + 2 * 2 * 100 + 100  # with the sanity check: validation did take time


def test_seconds_of_training_go_on_where_a_run_is_resumed(tmp_path: Path, clock: Clock) -> None:
    class Saves(lightning.Callback):
        def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
            seconds.append(float(trainer.callback_metrics["train/seconds"]))
            trainer.save_checkpoint(tmp_path / "last.ckpt")

    seconds: list[float] = []
    for epochs in (1, 2):
        trainer = make_trainer(tmp_path, callbacks=[Throughput(), Saves()], max_epochs=epochs, limit_val_batches=0)
        batches = loader([batch_of("a"), batch_of("b"), batch_of("c")])
        trainer.fit(Slow(clock), batches, ckpt_path=tmp_path / "last.ckpt" if epochs == 2 else None)
    assert seconds == [3 * 2.0, 3 * 2.0 + 3 * 4.0]


def test_waiting_for_data_counts(tmp_path: Path, clock: Clock) -> None:
    class Late(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Batch:
            clock.now += 6.0
            return batch_of("a", [800])

    reader = Reader()
    trainer = make_trainer(tmp_path, callbacks=[Throughput(), reader], limit_val_batches=0, log_every_n_steps=2)
    trainer.fit(Slow(clock), torch.utils.data.DataLoader(Late(), batch_size=None))
    assert reader.speeds[1] == pytest.approx((8 + 8) / (6 + 2 + 6 + 2))


def test_accumulated_batches_are_logged_once_per_step(tmp_path: Path, clock: Clock) -> None:
    reader = fit(tmp_path, clock, [[400]] * 4, log_every_n_steps=1, accumulate_grad_batches=2)
    assert reader.speeds[1:] == pytest.approx([2.0, 2.0, 2.0])
    assert reader.speeds[0] != reader.speeds[0], "nothing to log before the first optimizer step"


def test_lengths_stay_on_the_device() -> None:
    span = Span()
    span.add(batch_of("ab", [3, 5]), 1.0)
    assert isinstance(span.real_samples, torch.Tensor)
    assert int(span.real_samples) == 8
    assert span.padded_samples == 10


def test_the_real_clock_moves(tmp_path: Path) -> None:
    reader = Reader()
    trainer = make_trainer(tmp_path, callbacks=[Throughput(), reader], limit_val_batches=0, log_every_n_steps=1)
    start = time.perf_counter()
    trainer.fit(PlannedHypotheses(), loader([batch_of("a"), batch_of("b")]))
    assert reader.epochs[0][f"{SPEED}_epoch"] > 2 / (time.perf_counter() - start)
