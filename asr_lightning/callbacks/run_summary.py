"""Summary before the first step of a run: optimizer steps, batches and learning rate."""

import math
from typing import Any, Protocol

import numpy as np
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from asr_lightning.models.schedules import RunSchedule, steps_of_run, steps_per_epoch


class StepPlan(Protocol):
    """Batches that are cut from optimizer steps, as of the data modules."""

    durations: np.ndarray
    batch_seconds: float
    units: tuple[str, str]


class RunSummary(Callback):
    """Prints steps per epoch and in total, the data of a step, its parts, and the peak learning rate.

    Two runs of one experiment on different numbers of devices print the same, except for the parts of a step.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print it once, when the corpus is read and the batches are planned."""
        lines = [_steps(trainer), _batches(trainer), _rates(trainer)]
        rank_zero_info("\n".join(line for line in lines if line))


def _steps(trainer: Trainer) -> str:
    total, per_epoch = trainer.estimated_stepping_batches, steps_per_epoch(trainer)
    if not 0 < total < math.inf:  # a run that ends by its time
        return f"Optimizer steps: {per_epoch:,} in an epoch, without a limit."
    return f"Optimizer steps: {total:,}, in {total / per_epoch:g} epochs of {per_epoch:,}."


def _batches(trainer: Trainer) -> str:
    plan: Any = trainer.train_dataloader
    if not all(hasattr(plan, name) for name in StepPlan.__annotations__):
        return ""
    unit, things = plan.units
    parts = trainer.world_size * trainer.accumulate_grad_batches
    steps = len(plan) // trainer.accumulate_grad_batches
    amount = plan.durations.sum() * _mean_stretch(trainer) / steps
    alone = ", longer ones alone" if plan.durations.max() > plan.batch_seconds / parts else ""
    return (
        f"A step: {amount:,.0f} {unit} of {len(plan.durations) / steps:,.1f} {things} in the mean, at most "
        f"{plan.batch_seconds:,.0f} with padding{alone}; in {parts} parts of at most about "
        f"{plan.batch_seconds / parts:,.0f}, "
        f"{trainer.world_size} processes × {trainer.accumulate_grad_batches} (accumulate_grad_batches)."
    )


def _mean_stretch(trainer: Trainer) -> float:
    """Return the mean length of an utterance over its speeds, as a share of that at the slowest, which is planned."""
    factors = getattr(trainer.datamodule, "speed_factors", None) or [1.0]  # type: ignore[attr-defined]
    return float(np.mean([1.0 / factor for factor in factors])) * min([1.0, *factors])


def _rates(trainer: Trainer) -> str:
    rates = [
        group.get("initial_lr", group["lr"]) for optimizer in trainer.optimizers for group in optimizer.param_groups
    ]
    if not rates:
        return ""
    schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
    peak = f"Learning rate: {max(rates):.3g}"
    if not schedules:
        return f"{peak}, constant."
    [schedule] = schedules
    name = type(schedule).__name__
    if not isinstance(schedule, RunSchedule):
        return f"{peak} before {name} changes it."
    warmup = round(schedule.warmup_share * steps_of_run(trainer))
    return f"{peak} at its peak, after {warmup:,} steps of warm-up ({name})."
