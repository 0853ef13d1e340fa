"""How strongly each part of a recogniser is pulled."""

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from asr_lightning.errors import InputError


class GradientNorms(Callback):
    """Logs the 2-norm of the gradient of each top-level part and of the whole, before clipping.

    `grad_norm/<part>` for each child module with trainable parameters, and `grad_norm/total`. A step in which no
    parameter has a gradient is left out. Under DDP the gradient is that of all ranks.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        """Choose how often.

        Args:
            every_n_steps: Optimiser steps between two measurements; by default `trainer.log_every_n_steps`. A logger
                only writes every `trainer.log_every_n_steps`, what was measured last, so this must divide that.
        """
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that what a logger writes is of the step that it writes it for."""
        interval = _log_interval(trainer)
        if self.every_n_steps and interval % self.every_n_steps:
            raise InputError(
                f"GradientNorms.every_n_steps is {self.every_n_steps}, but must divide trainer.log_every_n_steps, "
                f"which is {interval}: loggers write at every {interval}th step only. Leave it out, or change either."
            )

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Measure: after the gradient is complete and unscaled, before it is clipped."""
        every = self.every_n_steps or _log_interval(trainer)
        if not every or (trainer.global_step + 1) % every:
            return
        if all(parameter.grad is None for parameter in pl_module.parameters()):
            return
        scale = _remaining_scale(trainer, optimizer)
        parts = {name: part for name, part in pl_module.named_children() if _is_trained(part)} | {"total": pl_module}
        norms = {f"grad_norm/{name}": gradient_norm(part) / scale for name, part in parts.items()}
        pl_module.log_dict(norms, batch_size=1)


def gradient_norm(module: torch.nn.Module) -> Tensor:
    """Return the 2-norm of all gradients of a module together: a scalar on its device, 0 where there are none."""
    return torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])


def _is_trained(module: torch.nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _log_interval(trainer: Trainer) -> int:
    return trainer.log_every_n_steps  # type: ignore[attr-defined] # Lightning sets it elsewhere


def _remaining_scale(trainer: Trainer, optimizer: Optimizer) -> Tensor | float:
    """The factor that mixed precision left on the gradients.

    Lightning unscales before this hook, except for optimisers that do so within their own step (fused Adam).
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return 1.0
    return scaler._scale  # the tensor; get_scale() would wait for the device
