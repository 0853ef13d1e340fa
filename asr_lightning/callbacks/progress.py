"""A progress bar that does not wait for the GPU."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

LOSS = "train/loss"


class ProgressBar(TQDMProgressBar):
    """Moves with every batch and shows the training loss: on a GPU that of the last step that is logged.

    A host that shows a number waits until the GPU has it, and queues nothing meanwhile. So models do not log the loss
    with `prog_bar`: Lightning would then ask for it in every step.
    """

    def __init__(self) -> None:
        super().__init__()
        self._loss: dict[str, float] = {}

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the numbers that are shown behind the bar."""
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined] # Lightning sets it elsewhere
        due = every > 0 and trainer.global_step % every == 0
        if trainer.training and (due or pl_module.device.type == "cpu") and LOSS in trainer.callback_metrics:
            self._loss = {LOSS: float(trainer.callback_metrics[LOSS])}
        return {**self._loss, **super().get_metrics(trainer, pl_module)}
