"""Arguments of optimizer and schedule that an experiment has changed since the checkpoint that `fit` goes on from."""

import warnings
from collections.abc import Iterable
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch.optim.lr_scheduler import LRScheduler

from asr_lightning.errors import InputError
from asr_lightning.models.schedules import begin_schedule


class ChangedOptimizer(Callback):
    """Applies the experiment's arguments, since Lightning restores those of the checkpoint.

    Learning rates, and whatever else a schedule moves, become what they would be at this step if the experiment's
    arguments had held from the first step on. The optimizer's state of each weight stays.

    Args:
        changed: Keys of these arguments, as `optimizer.lr`, for the message.
    """

    def __init__(self, changed: Iterable[str]) -> None:
        self.changed = sorted(changed)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the arguments, after everything is restored and before the first step.

        Raises:
            InputError: The schedule ends before the step at which training goes on.
        """
        [optimizer] = trainer.optimizers
        schedules: list[Any] = [config.scheduler for config in trainer.lr_scheduler_configs]
        new_optimizer, new_schedule = _make_optimizer(pl_module, optimizer.param_groups[0]["params"])
        begin_schedule(new_schedule, trainer)
        for schedule in schedules:
            self._advance_schedule(new_schedule, schedule.last_epoch)
            schedule.load_state_dict(new_schedule.state_dict())
        for group, values in zip(optimizer.param_groups, new_optimizer.param_groups, strict=True):
            group.update({key: value for key, value in values.items() if key != "params"})
        rate = optimizer.param_groups[0]["lr"]
        rank_zero_info(f"Changed since the checkpoint: {', '.join(self.changed)}; the learning rate is {rate:.3g}.")

    def _advance_schedule(self, schedule: LRScheduler, steps: int) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler.step\(\)`")  # no step is wanted
            try:
                for _ in range(steps):
                    schedule.step()
            except ValueError as error:  # as of OneCycleLR
                raise InputError(
                    f"the schedule cannot be moved to step {steps}, which training has come to, with other "
                    f"{', '.join(self.changed)}: {error}. Make it longer, or keep the checkpoint's arguments."
                ) from error


def _make_optimizer(module: LightningModule, parameters: list[Any]) -> tuple[Any, Any]:
    """Return an optimizer over some parameters and its schedule, as the experiment makes them."""
    optimizer: Any = (module.make_optimizer)(parameters)  # type: ignore[operator]
    return optimizer, None if module.make_scheduler is None else module.make_scheduler(optimizer)  # type: ignore[operator]
