"""Base class of callbacks that measure optimizer steps."""

from lightning import Callback, LightningModule, Trainer

from asr_lightning.errors import InputError


class Measurement(Callback):
    """Base class of measurements at a fixed interval of optimizer steps."""

    def __init__(self, every_n_steps: int | None = None) -> None:
        """Choose how often.

        Args:
            every_n_steps: Optimizer steps between two measurements; by default `trainer.log_every_n_steps`. A logger
                writes the last measurement every `trainer.log_every_n_steps`, which this number must divide. 0
                measures nothing.
        """
        if every_n_steps is not None and every_n_steps < 0:
            raise ValueError(f"every_n_steps must be at least 0, got {every_n_steps}")
        self.every_n_steps = every_n_steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the steps at which loggers write are measured."""
        interval = _log_interval(trainer)
        if self.every_n_steps and interval % self.every_n_steps:
            raise InputError(
                f"{type(self).__name__}.every_n_steps is {self.every_n_steps}, but must divide "
                f"trainer.log_every_n_steps, which is {interval}: loggers write at every {interval}th step only. Leave "
                "it out, or change either."
            )

    def is_due(self, trainer: Trainer) -> bool:
        """Whether the next optimizer step is to be measured; called before the step."""
        every = _log_interval(trainer) if self.every_n_steps is None else self.every_n_steps
        return every > 0 and (trainer.global_step + 1) % every == 0


def _log_interval(trainer: Trainer) -> int:
    return trainer.log_every_n_steps  # type: ignore[attr-defined] # Lightning sets it elsewhere
