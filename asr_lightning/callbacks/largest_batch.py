"""The parts of a step as large as the memory of the device holds, found before the run."""

import gc
import math
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

ADAMW_VALUES = 2  # numbers that it keeps for each weight


class Batches(Protocol):
    """A plan of batches, as of the data modules."""

    durations: np.ndarray
    load: Callable[[list[list[int]], int], Iterator[Batch]]

    def plan(self, epoch: int = 0) -> list[list[list[int]]]:
        """Return the batches of all ranks."""


class LargestBatch(Callback):
    """Sets `accumulate_grad_batches` to the least with which each part of a step fits into the memory of its device.

    Steps stay as they are: `batch_seconds` is that of a step, and their parts become smaller. Loss and gradients are
    computed of the parts that need most: the one with the longest utterance, the one with the most seconds, the one
    with the most utterances. They are parts of the first epoch's plan. The number of parts is doubled until they
    fit, and then the least such number is found. The optimizer's memory is set aside as for AdamW. With several
    processes it has to fit for all. Weights, statistics and random numbers are restored afterwards. A resumed run
    keeps what its checkpoint has.

    Args:
        margin: The number of parts is divided by it, to leave memory for other things; a step that fits as a whole
            is not cut.
        most: Seconds, padding included, that no part of several utterances exceeds. Where there is no accelerator it
            has to be given: without free memory, computers become slow instead of stopping.
    """

    def __init__(self, margin: float = 0.9, most: float | None = None) -> None:
        if not 0 < margin <= 1:
            raise InputError(f"margin must be more than 0 and at most 1, got {margin}")
        if most is not None and not most > 0:
            raise InputError(f"most must be more than 0 seconds, got {most}")
        self.margin = margin
        self.most = most
        self.accumulation: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the number of parts, so that a resumed run does not search again."""
        return {"accumulation": self.accumulation}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the accumulation; checkpoints of older versions have none."""
        self.accumulation = state_dict.get("accumulation")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the number of parts, after the optimizer is made and before batches are planned.

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
        if self.accumulation is None:
            device = trainer.strategy.root_device
            if device.type == "cpu" and self.most is None:
                raise InputError("LargestBatch: expected an accelerator, found none: take it out, or give it `most`")
            parts = self._search(trainer, pl_module, data)
            self.accumulation = parts if parts == 1 else math.ceil(parts / self.margin)
            rank_zero_info(
                f"accumulate_grad_batches is {self.accumulation}: parts of {parts} to a step of {data.batch_seconds:g} "
                f"s fit into the memory of {device}. To begin so without a search: --trainer.accumulate_grad_batches "
                f"{self.accumulation}, and without LargestBatch."
            )
        trainer.accumulate_grad_batches = self.accumulation

    def _search(self, trainer: Trainer, pl_module: LightningModule, data: Any) -> int:  # noqa: ANN401
        """Return the least accumulation whose parts fit."""
        previous, fails, accumulation = trainer.accumulate_grad_batches, 0, 1
        fits: int | None = None
        try:
            while fits is None or fits - fails > 1:
                trainer.accumulate_grad_batches = accumulation
                batches: Batches = data.train_dataloader()
                hardest = _largest_parts(batches)
                fit = self._fits_limit(hardest, batches.durations) and _fits(
                    pl_module, batches, hardest, trainer.strategy.root_device, trainer.precision_plugin
                )
                if trainer.strategy.reduce_boolean_decision(fit, all=True):
                    fits = accumulation
                else:
                    fails = accumulation
                    self._check_room(hardest, batches.durations, trainer.strategy.root_device)
                accumulation = 2 * accumulation if fits is None else (fits + fails) // 2
        finally:
            trainer.accumulate_grad_batches = previous
        return fits

    def _fits_limit(self, parts: list[list[int]], durations: np.ndarray) -> bool:
        limit = self.most or math.inf
        return all(len(part) == 1 or durations[part].max() * len(part) <= limit for part in parts)

    def _check_room(self, parts: list[list[int]], durations: np.ndarray, device: torch.device) -> None:
        if all(len(part) == 1 for part in parts):
            raise InputError(
                f"LargestBatch: expected room for one utterance of {durations.max():.1f} s in the memory of "
                f"{device}, found less: lower data.max_seconds, take --trainer.precision bf16-mixed, or a smaller "
                "network"
            )


def _fits(
    pl_module: LightningModule, batches: Batches, parts: list[list[int]], device: torch.device, precision: Precision
) -> bool:
    """Whether there is memory for some parts of steps; the recognizer is restored afterwards."""
    buffers = {name: buffer.clone() for name, buffer in pl_module.named_buffers()}
    mode, gpus = pl_module.training, [device] if device.type == "cuda" else []
    pl_module.train()
    try:
        with torch.random.fork_rng(devices=gpus), precision.train_step_context():
            _compute(pl_module, batches, parts, device)
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


def _compute(pl_module: LightningModule, batches: Batches, parts: list[list[int]], device: torch.device) -> None:
    """Compute losses and gradients, and drop them, beside as much memory as AdamW takes."""
    weight_bytes = sum(parameter.numel() * parameter.element_size() for parameter in pl_module.parameters())
    _set_aside = torch.empty(ADAMW_VALUES * weight_bytes, dtype=torch.uint8, device=device)
    for batch in batches.load(parts, 0):
        pl_module.loss(batch.to(device)).mean().backward()  # type: ignore[operator]
        pl_module.zero_grad(set_to_none=True)


def _largest_parts(batches: Batches) -> list[list[int]]:
    """Return the parts of all ranks with the longest utterance, with the most seconds, and with most utterances."""
    plan = [batch for rank in batches.plan() for batch in rank if batch]
    measures: Sequence[Callable[[list[int]], float]] = (
        lambda batch: batches.durations[batch].max(),
        lambda batch: batches.durations[batch].max() * len(batch),
        len,
    )
    return [max(plan, key=measure) for measure in measures]
