"""Parts of a model that are not trained in the first epochs."""

from collections.abc import Iterator
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer

from asr_lightning.errors import InputError


class Freezing(Callback):
    """Leaves the weights of named modules as they are until a given epoch, as an encoder under a new output.

    A frozen module is in evaluation mode, so that its statistics stay too, and it has no dropout. Its gradients are
    computed and removed before they are measured and clipped, so that several processes reduce the same gradients in
    every epoch; the optimizer does nothing to a weight without a gradient, also no weight decay.

    Args:
        until: By the path of each module, the first epoch that trains it, counted from 1: `{encoder: 4}` leaves the
            encoder as it is for three epochs.

    Raises:
        ValueError: An epoch is less than 1.
    """

    def __init__(self, until: dict[str, int] | None = None) -> None:
        self.until = dict(until or {})
        if wrong := {path: epoch for path, epoch in self.until.items() if epoch < 1}:
            raise ValueError(f"freeze.until: expected epochs from 1, got {wrong}")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the paths.

        Raises:
            InputError: A module does not exist, or has no parameters.
        """
        modules = dict(pl_module.named_modules())
        for path in self.until:
            if path not in modules or not any(True for _ in modules[path].parameters()):
                parts = [name for name, part in pl_module.named_children() if any(True for _ in part.parameters())]
                raise InputError(
                    f"freeze.until: expected the path of a module with parameters, found {path}; at the top there are "
                    f"{', '.join(parts)}"
                )

    def _frozen(self, trainer: Trainer, module: LightningModule) -> Iterator[nn.Module]:
        epoch = trainer.current_epoch + 1
        return (module.get_submodule(path) for path, first in self.until.items() if epoch < first)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put modules into training mode from their first epoch on; a validation leaves all modes as they are."""
        for path, first in self.until.items():
            if trainer.current_epoch + 1 >= first:
                pl_module.get_submodule(path).train()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the statistics of frozen modules."""
        for part in self._frozen(trainer, pl_module):
            part.eval()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Remove the gradients of frozen modules."""
        for part in self._frozen(trainer, pl_module):
            for parameter in part.parameters():
                parameter.grad = None
