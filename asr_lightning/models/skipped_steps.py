"""Optimiser steps that are left out, because their gradient says nothing, and clipping beside optimisers that allow it.

A host that asks a GPU for a value waits until all that is queued there is done. So fused Adam and AdamW are told on the
device which step to leave out, and what was left out is looked at in bulk.
"""

import torch
from lightning import LightningModule
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType, rank_zero_warn
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Adam, Optimizer

from asr_lightning.errors import InputError, printable
from asr_lightning.models.fsdp import whole

NAMED = 20  # utterances of a step in a message
REVIEW_STEPS = 50  # how often a GPU is asked what was left out
Step = tuple[int, list[str], Tensor]  # its number, what it learned from, and whether its gradient was not finite


class GradientGuard:
    """Leaves weights and optimiser alone in steps without a finite gradient, names them, and ends a run of many."""

    def __init__(self) -> None:
        self._steps: list[Step] = []  # since the last review
        self._lost = 0  # in a row

    def guard(self, module: LightningModule, optimizer: Optimizer, usable: Tensor, ids: list[str], most: int) -> None:
        """Leave out the optimiser's next step if nothing is to be learned from it; for `on_before_optimizer_step`.

        Args:
            module: Whose gradients are complete.
            optimizer: Of the module.
            usable: A boolean scalar on the module's device: whether there was any loss to learn from.
            ids: Utterances or lines of this rank in the step, of all its batches.
            most: Steps in a row without a finite gradient that end the run.

        Raises:
            InputError: There were so many; on a GPU this is found out at the next review.
        """
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        finite = whole(torch.nn.utils.get_total_norm(gradients)).isfinite()
        scaled = getattr(module.trainer.precision_plugin, "scaler", None) is not None
        leave_out(optimizer, ~(finite & usable), told_by_scaler=scaled)
        self._steps.append((module.trainer.global_step, ids, ~finite))
        if finite.device.type == "cpu" or len(self._steps) >= REVIEW_STEPS:
            self.review(most)

    def review(self, most: int) -> None:
        """Name the steps that were left out since the last time, for want of a finite gradient; all ranks take part.

        Raises:
            InputError: There were `most` in a row.
        """
        steps, self._steps = self._steps, []
        lost = torch.stack([lost for *_, lost in steps]).tolist() if steps else []
        for (step, ids, _), this in zip(steps, lost, strict=True):
            self._lost = self._lost + 1 if this else 0
            if not this:
                continue
            named = _named(ids)
            rank_zero_warn(f"the gradient is not finite: step {step} is skipped; learned from {named}")
            if self._lost >= most:
                raise InputError(
                    f"no finite gradient in {self._lost} steps in a row, last of {named}. Expected finite gradients. "
                    "Lower the learning rate, or set trainer.gradient_clip_val; the weights were left untouched since, "
                    "and the last checkpoint is whole."
                )


def _named(ids: list[str]) -> str:
    """Return the first names of those of all ranks, which all ask for them."""
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        shares: list[list[str]] = [[]] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(shares, ids)
        ids = [name for share in shares for name in share]
    return printable(", ".join(ids[:NAMED])) + (f" … ({len(ids)} in all)" if len(ids) > NAMED else "")


def leave_out(optimizer: Optimizer, useless: Tensor, told_by_scaler: bool = False) -> None:
    """Make the next step of an optimiser one that leaves weights and state as they are, if it is useless.

    Args:
        optimizer: Fused Adam and AdamW of whole parameters are told on the device. Of others the host has to know,
            and waits for it.
        useless: A boolean scalar.
        told_by_scaler: Whether a `GradScaler` overwrites what a fused optimiser is told.
    """
    groups = optimizer.param_groups
    fused = isinstance(optimizer, Adam) and all(group["fused"] for group in groups)
    sharded = any(isinstance(parameter, DTensor) for group in groups for parameter in group["params"])
    if fused and not told_by_scaler and not sharded:
        optimizer.found_inf = useless.float()  # type: ignore[attr-defined] # as torch's GradScaler does
    elif bool(useless):
        optimizer.zero_grad(set_to_none=True)  # optimisers pass over parameters without a gradient


def clip_gradients(
    module: LightningModule,
    optimizer: Optimizer,
    gradient_clip_val: float | None = None,
    gradient_clip_algorithm: str | None = None,
) -> None:
    """Clip as the trainer says, also beside fused optimisers in bfloat16, where Lightning refuses to.

    It takes them for optimisers that divide gradients by a scale in their steps; without a `GradScaler` there is none.
    This is a module's `configure_gradient_clipping`.
    """
    precision = module.trainer.precision_plugin
    if isinstance(precision, MixedPrecision) and precision.scaler is None:
        algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
        Precision.clip_gradients(precision, optimizer, gradient_clip_val or 0.0, algorithm)
    else:
        module.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
