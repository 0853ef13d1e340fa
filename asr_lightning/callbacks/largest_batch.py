"""As many seconds of audio in a batch as the memory of the device holds, found before the run."""

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info

from asr_lightning.batch import Batch, is_memory_error
from asr_lightning.errors import InputError

FINE = 1.05  # the search ends where what fits and what does not are no farther apart
OF_ADAMW = 2  # numbers that it keeps for each weight


class Batches(Protocol):
    """A plan of batches, as of the data modules."""

    durations: np.ndarray
    load: Callable[[list[list[int]], int], Iterator[Batch]]

    def plan(self, epoch: int = 0) -> list[list[list[int]]]:
        """Return the batches of all ranks."""


class LargestBatch(Callback):
    """Sets the `batch_seconds` of the data to what the memory of the device holds, and says what they are.

    Loss and gradients are computed of the batches that need most: the one with the longest utterance, the one with the
    most seconds, the one with the most utterances. They are real ones, of the first epoch's plan. Seconds are doubled
    while these fit, or halved until they do, and then found to 5 %. The optimiser's memory is set aside as for AdamW.
    With several processes it has to fit for all. Weights, statistics and random numbers are as they were afterwards. A
    resumed run keeps what its checkpoint has. Schedules count steps, which are fewer when batches are larger.

    Args:
        margin: Share of the seconds that were found, for what else comes to lie in memory.
        most: Seconds that are never exceeded. Where there is no accelerator it has to be given: computers do not end
            when their memory does, but become slow.
    """

    def __init__(self, margin: float = 0.9, most: float | None = None) -> None:
        if not 0 < margin <= 1:
            raise InputError(f"margin must be more than 0 and at most 1, got {margin}")
        if most is not None and not most > 0:
            raise InputError(f"most must be more than 0 seconds, got {most}")
        self.margin = margin
        self.most = most
        self.batch_seconds: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run is not to search again."""
        return {"batch_seconds": self.batch_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it from a checkpoint."""
        self.batch_seconds = state_dict["batch_seconds"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the seconds, while the optimiser is there and the batches are not yet planned.

        Raises:
            InputError: The data have no batches of seconds, weights are shared among processes, there is neither an
                accelerator nor `most`, or not even the longest utterance fits.
        """
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(data, "batch_seconds"):
            raise InputError(f"LargestBatch: expected data with batch_seconds, got {type(data).__name__}: take it out")
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            name = type(trainer.strategy).__name__
            raise InputError(f"LargestBatch: expected one device or DDP, got {name}, whose processes need each other")
        if self.batch_seconds is None:
            device = trainer.strategy.root_device
            if device.type == "cpu" and self.most is None:
                raise InputError("LargestBatch: expected an accelerator, found none: take it out, or give it `most`")
            fits, fails = self._search(trainer, pl_module, data)
            self.batch_seconds = round(self.margin * fits if fails < np.inf else fits, 1)
            reason = f"{fails:.1f} s did not fit into the memory of {device}" if fails < np.inf else "all fit"
            rank_zero_info(
                f"Batches have up to {self.batch_seconds:g} s of audio: {fits:.1f} s fitted, {reason}. To begin so "
                f"without a search: --data.init_args.batch_seconds {self.batch_seconds:g}, and without LargestBatch."
            )
        data.batch_seconds = self.batch_seconds

    def _search(self, trainer: Trainer, pl_module: LightningModule, data: Any) -> tuple[float, float]:  # noqa: ANN401
        """Return the most seconds that were seen to fit, and the fewest that were seen not to: infinite if none."""
        before, fits, fails = data.batch_seconds, 0.0, np.inf
        most = self.most or np.inf
        seconds = min(before, most)
        try:
            while fails > FINE * fits:
                data.batch_seconds = seconds
                batches: Batches = data.train_dataloader()
                fit = _fits(pl_module, batches, trainer.strategy.root_device, trainer.precision_plugin)
                if trainer.strategy.reduce_boolean_decision(fit, all=True):
                    fits = seconds
                    if seconds >= min(most, float(batches.durations.sum())):
                        break
                else:
                    fails = seconds
                    longest = float(batches.durations.max())
                    if seconds < longest:
                        raise InputError(
                            f"LargestBatch: expected room for one utterance of {longest:.1f} s in the memory of "
                            f"{trainer.strategy.root_device}, found less: lower data.max_seconds, take "
                            "--trainer.precision bf16-mixed, or a smaller network"
                        )
                seconds = min(2 * fits, most) if fails == np.inf else (fits + fails) / 2
        finally:
            data.batch_seconds = before
        return fits, fails


def _fits(pl_module: LightningModule, batches: Batches, device: torch.device, precision: Precision) -> bool:
    """Whether there is memory for the batches that need most; the recogniser is afterwards as it was."""
    buffers = {name: buffer.clone() for name, buffer in pl_module.named_buffers()}
    mode, gpus = pl_module.training, [device] if device.type == "cuda" else []
    pl_module.train()
    try:
        with torch.random.fork_rng(devices=gpus), precision.train_step_context():
            _compute(pl_module, batches, device)
        return True
    except (RuntimeError, MemoryError) as error:
        if not is_memory_error(error):
            raise
        return False
    finally:
        pl_module.zero_grad(set_to_none=True)
        pl_module.train(mode)
        for name, buffer in pl_module.named_buffers():
            buffer.copy_(buffers[name])
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _compute(pl_module: LightningModule, batches: Batches, device: torch.device) -> None:
    """Compute losses and gradients, and drop them, beside as much memory as AdamW takes."""
    weights = sum(one.numel() * one.element_size() for one in pl_module.parameters())
    _set_aside = torch.empty(OF_ADAMW * weights, dtype=torch.uint8, device=device)
    for batch in batches.load(_hardest(batches), 0):
        pl_module.loss(batch.to(device)).mean().backward()  # type: ignore[operator]
        pl_module.zero_grad(set_to_none=True)


def _hardest(batches: Batches) -> list[list[int]]:
    """Return the batches of all ranks with the longest utterance, with the most seconds, and with most utterances."""
    plan = [batch for rank in batches.plan() for batch in rank if batch]
    measures: Sequence[Callable[[list[int]], float]] = (
        lambda batch: batches.durations[batch].max(),
        lambda batch: batches.durations[batch].max() * len(batch),
        len,
    )
    return [max(plan, key=measure) for measure in measures]
