"""Learning rate schedules; the optimizer's own rate is the peak.

Stages are given as shares of the run: of its optimizer steps, from the first to the last. So a schedule means the same
with any corpus, batch, number of devices and number of epochs.
"""

import math
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.cli import LRSchedulerCallable
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from asr_lightning.errors import InputError


class RunSchedule(LambdaLR):
    """A learning rate that depends on the completed share of the run.

    The trainer knows the number of steps only when training begins, since it follows from the corpus, the batches, and
    the limits of the run; `begin` gets it.

    Args:
        optimizer: Its learning rate is the peak.
        warmup_share: Share of the run to the peak, 0 to 1.
    """

    def __init__(self, optimizer: Optimizer, warmup_share: float) -> None:
        self.warmup_share = warmup_share
        self.total_steps = 0  # unknown
        super().__init__(optimizer, lambda step: self._known_factor(step))

    def factor(self, step: int) -> float:
        """Return the share of the peak at a step, from 0 to `total_steps` and beyond."""
        raise NotImplementedError

    def begin(self, total_steps: int) -> None:
        """Get the number of steps of the run, and set the learning rate of the current step."""
        self.total_steps = total_steps
        rates = [base * self.factor(self.last_epoch) for base in self.base_lrs]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._last_lr = rates

    def steps(self, share: float) -> int:
        """Return a share of the run in whole steps."""
        return round(share * self.total_steps)

    def _known_factor(self, step: int) -> float:
        if self.total_steps:
            return self.factor(step)
        if step:
            raise InputError(
                f"{type(self).__name__}: expected the number of steps of the run before its first step, found none: "
                "let the model call asr_lightning.models.schedules.begin_schedules in on_train_start"
            )
        return 0.0


class WarmupCosine(RunSchedule):
    """Rises linearly from 0 to the peak, then falls along half a cosine to a floor at the end of the run.

    Args:
        optimizer: Its learning rate is the peak.
        warmup_share: Share of the run to the peak, 0 to 1.
        floor: Share of the peak at the end.
        warmup_steps: Of older versions; refused in training.
        total_steps: Of older versions; refused in training.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_share: float = 0.1,
        floor: float = 0.0,
        warmup_steps: int | None = None,
        total_steps: int | None = None,
    ) -> None:
        _refuse_steps(self, warmup_steps=warmup_steps, total_steps=total_steps)
        _check_shares(self, warmup_share=warmup_share)
        self.floor = floor
        super().__init__(optimizer, warmup_share)

    def factor(self, step: int) -> float:
        """Return the share of the peak at a step."""
        warmup = self.steps(self.warmup_share)
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, self.total_steps - warmup))
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


class WarmupInverseRoot(RunSchedule):
    """Rises linearly from 0 to the peak, then falls with the inverse root of the step [Vaswani et al. 2017, 5.3].

    Args:
        optimizer: Its learning rate is the peak.
        warmup_share: Share of the run to the peak, 0 to 1; the rate ends at the peak times the root of it.
        warmup_steps: Of older versions; refused in training.
    """

    def __init__(self, optimizer: Optimizer, warmup_share: float = 0.1, warmup_steps: int | None = None) -> None:
        _refuse_steps(self, warmup_steps=warmup_steps)
        _check_shares(self, warmup_share=warmup_share)
        super().__init__(optimizer, warmup_share)

    def factor(self, step: int) -> float:
        """Return the share of the peak at a step."""
        warmup = max(1, self.steps(self.warmup_share))
        return min((step + 1) / warmup, math.sqrt(warmup / (step + 1)))


class TriStage(RunSchedule):
    """Rises linearly to the peak, stays there, then falls exponentially to a floor at the end of the run.

    As KoSpeech has it [Kim, Bae, Won 2021], which holds for half of the run, warm-up included, and ends at 5 % of the
    peak (its `tri_stage_lr_scheduler.py`).

    Args:
        optimizer: Its learning rate is the peak.
        warmup_share: Share of the run to the peak, 0 to 1.
        hold_share: Share of the run at the peak; the rate falls in the rest of the run.
        start: Share of the peak at the first step.
        floor: Share of the peak at the end, more than 0.
        warmup_steps: Of older versions; refused in training.
        hold_steps: Of older versions; refused in training.
        decay_steps: Of older versions; refused in training.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_share: float = 0.1,
        hold_share: float = 0.4,
        start: float = 0.01,
        floor: float = 0.05,
        warmup_steps: int | None = None,
        hold_steps: int | None = None,
        decay_steps: int | None = None,
    ) -> None:
        _refuse_steps(self, warmup_steps=warmup_steps, hold_steps=hold_steps, decay_steps=decay_steps)
        _check_shares(self, warmup_share=warmup_share, hold_share=hold_share)
        if not 0.0 < floor <= 1.0:
            raise InputError(f"TriStage: expected a floor of more than 0 and at most 1, got {floor}")
        self.hold_share = hold_share
        self.start = start
        self.floor = floor
        super().__init__(optimizer, warmup_share)

    def factor(self, step: int) -> float:
        """Return the share of the peak at a step."""
        warmup, decay_start = self.steps(self.warmup_share), self.steps(self.warmup_share + self.hold_share)
        if step < warmup:
            return self.start + (1.0 - self.start) * step / warmup
        progress = min(1.0, max(0, step - decay_start) / max(1, self.total_steps - decay_start))
        return float(self.floor**progress)


def steps_per_epoch(trainer: Trainer) -> int:
    """Return the number of optimizer steps of an epoch; known from `on_train_start` on."""
    return math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)


def steps_of_run(trainer: Trainer) -> int:
    """Return the number of optimizer steps of the run, those before a resume included.

    Raises:
        InputError: The run has no end.
    """
    steps = trainer.estimated_stepping_batches
    if not 0 < steps < math.inf:
        raise InputError(
            "expected a run with an end, since the learning rate depends on shares of the run; found neither "
            "max_epochs nor max_steps: set --trainer.max_epochs or --trainer.max_steps"
        )
    return int(steps)


def begin_schedules(module: LightningModule) -> None:
    """Give the schedules of a model the number of steps of the run; this is a module's `on_train_start`."""
    for config in module.trainer.lr_scheduler_configs:
        begin_schedule(config.scheduler, module.trainer)


def begin_schedule(schedule: Any, trainer: Trainer) -> None:  # noqa: ANN401 - of any class that Lightning takes
    """Give a `RunSchedule` the number of steps of the run."""
    if isinstance(schedule, RunSchedule):
        schedule.begin(steps_of_run(trainer))


def optimizer_and_schedule(optimizer: Optimizer, scheduler: LRSchedulerCallable | None) -> Any:  # noqa: ANN401
    """Return the value of Lightning's `configure_optimizers`: a schedule, if there is one, steps with the optimizer."""
    if scheduler is None:
        return optimizer
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler(optimizer), "interval": "step"}}


def _check_shares(schedule: RunSchedule, **shares: float) -> None:
    if not (all(share >= 0.0 for share in shares.values()) and sum(shares.values()) <= 1.0 + 1e-9):
        raise InputError(
            f"{type(schedule).__name__}: expected shares of the run from 0 to 1, together at most 1, got "
            + ", ".join(f"{name} {share}" for name, share in shares.items())
        )


def _refuse_steps(schedule: RunSchedule, **steps: int | None) -> None:
    counts = {name: count for name, count in steps.items() if count is not None}
    if counts:
        raise InputError(
            f"{type(schedule).__name__}: expected shares of the run, got "
            f"{', '.join(f'{name} {count}' for name, count in counts.items())}. Write warmup_share (and hold_share) "
            "instead: these steps divided by the steps of the run, which are printed when it begins"
        )
