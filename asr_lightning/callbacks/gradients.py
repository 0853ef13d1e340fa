"""Gradient norm per module."""

import torch
from lightning import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from asr_lightning.callbacks.measurement import Measurement
from asr_lightning.models.fsdp import full_tensor


class GradientNorms(Measurement):
    """Logs the 2-norm of the gradient of each top-level part and of the whole, before clipping.

    `grad_norm/<part>` for each child module with trainable parameters, and `grad_norm/total`. A step in which no
    parameter has a gradient is left out. The gradient is that of all ranks.
    """

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Measure: after the gradient is complete and unscaled, before it is clipped."""
        if not self.is_due(trainer) or all(parameter.grad is None for parameter in pl_module.parameters()):
            return
        scale = _remaining_scale(trainer, optimizer)
        parts = {name: part for name, part in pl_module.named_children() if _is_trained(part)} | {"total": pl_module}
        norms = {f"grad_norm/{name}": gradient_norm(part) / scale for name, part in parts.items()}
        pl_module.log_dict(norms, batch_size=1)


def gradient_norm(module: torch.nn.Module) -> Tensor:
    """Return the 2-norm of all gradients of a module together: a scalar on its device, 0 where there are none."""
    return full_tensor(torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None]))


def _is_trained(module: torch.nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _remaining_scale(trainer: Trainer, optimizer: Optimizer) -> Tensor | float:
    """The factor that mixed precision left on the gradients.

    Lightning unscales before this hook, except for optimizers that do so within their own step (fused Adam).
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return 1.0
    return scaler._scale  # the tensor; get_scale() would wait for the device
