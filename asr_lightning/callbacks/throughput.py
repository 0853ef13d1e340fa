"""Training speed: seconds of audio per second of wall time."""

import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from asr_lightning.batch import Batch


class Span:
    """Audio and seconds of some training batches of this rank."""

    def __init__(self) -> None:
        self.real_samples: Tensor | int = 0  # on the device of the batches
        self.padded_samples = 0  # real samples and padding
        self.seconds = 0.0  # of wall time

    def add(self, batch: Batch, seconds: float) -> None:
        """Count a batch without waiting for the device."""
        self.real_samples = self.real_samples + batch.audio_lengths.sum()
        self.padded_samples += batch.audio.numel()
        self.seconds += seconds


class Throughput(Callback):
    """Logs the audio that is trained on per second, and the share of padding.

    * `train/audio_seconds_per_second`: real audio, without padding, of all ranks, since the last time it was logged
      (every `trainer.log_every_n_steps`).
    * `train/audio_seconds_per_second_epoch`: the same over a whole epoch.
    * `train/padding`: the share of padded samples in an epoch, 0 to 1.
    * `train/processes`, `train/gpus`: how many processes train, and how many of them on a GPU.
    * `train/seconds`: wall time of all training so far, that of earlier starts of a resumed run included.

    Time is that of training and of waiting for data; validation and what happens between epochs is left out. Lengths
    are added up on the device and read only when logged.
    """

    def __init__(self) -> None:
        self._since_logged = Span()
        self._epoch = Span()
        self._seconds = 0.0  # of all training
        self._sample_rate = 1
        self._counted_until: float | None = None  # seconds of time.perf_counter
        self._logged_step = 0

    def state_dict(self) -> dict[str, float]:
        """Return the seconds of training so far."""
        return {"seconds": self._seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Go on."""
        self._seconds = state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from nothing, also where an epoch is resumed."""
        self._since_logged, self._epoch, self._counted_until = Span(), Span(), None
        self._logged_step = trainer.global_step

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._epoch = Span()
        self._counted_until = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Start the clock where an epoch is resumed in its middle."""
        if self._counted_until is None:
            self._counted_until = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave out the validation; what came before it was counted at the end of the last batch."""
        if not trainer.sanity_checking:
            self._counted_until = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count a batch, and log where the trainer does."""
        interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined] # Lightning sets it elsewhere
        step = trainer.global_step
        due = interval > 0 and step % interval == 0 and step != self._logged_step
        self._sample_rate = batch.sample_rate
        if due:
            _wait_for(batch.audio.device)  # or work that is only queued would count as done
        now = time.perf_counter()
        assert self._counted_until is not None
        for span in (self._since_logged, self._epoch):
            span.add(batch, now - self._counted_until)
        self._seconds += now - self._counted_until
        self._counted_until = now
        if due:
            self._log_speed(pl_module, "train/audio_seconds_per_second", self._since_logged)
            self._since_logged = Span()
            self._logged_step = step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the epoch."""
        epoch = self._epoch
        if not epoch.seconds:
            return  # resumed after its last batch: so were all ranks
        self._log_speed(pl_module, "train/audio_seconds_per_second_epoch", epoch)
        # the mean over ranks is weighted by their samples
        samples = max(epoch.padded_samples, 1)  # a rank may have had empty batches only
        padding = (epoch.padded_samples - int(epoch.real_samples)) / samples
        pl_module.log("train/padding", padding, batch_size=samples, sync_dist=True)
        gpus = trainer.world_size * (pl_module.device.type == "cuda")
        for name, count in (("processes", trainer.world_size), ("gpus", gpus)):
            pl_module.log(f"train/{name}", float(count), batch_size=1)
        pl_module.log("train/seconds", self._seconds, batch_size=1, sync_dist=True, reduce_fx="max")

    def _log_speed(self, pl_module: LightningModule, name: str, span: Span) -> None:
        speed = float(span.real_samples) / self._sample_rate / span.seconds
        pl_module.log(name, speed, batch_size=1, sync_dist=True, reduce_fx="sum")


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
