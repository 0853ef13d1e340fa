"""Skip optimizer steps without a usable loss or with a non-finite gradient; gradient clipping.

A host that reads a value from a GPU waits until the GPU has finished all queued work. So fused Adam and AdamW get a
flag on the device that makes them skip a step, and the flags of many steps are read at once.
"""

import torch
from lightning import LightningModule
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType, rank_zero_warn
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Adam, Optimizer

from asr_lightning.errors import InputError, printable
from asr_lightning.models.fsdp import full_tensor

LOST_BATCHES_IN_A_ROW = 100  # skipped ones that end a run: it has diverged, or the corpus does not fit the model
NAMED = 20  # utterances of a step in a message
REVIEW_STEPS = 50  # steps between two reads from a GPU
Step = tuple[int, list[str], Tensor]  # number of the step, its utterances, whether its gradient was not finite


class GradientGuard:
    """Skips steps without a finite gradient, warns of them, and ends a run after too many in a row."""

    def __init__(self) -> None:
        self._steps: list[Step] = []  # since the last review
        self._skipped = 0  # in a row

    def guard(self, module: LightningModule, optimizer: Optimizer, usable: Tensor, ids: list[str], limit: int) -> None:
        """Skip the next step without a usable loss or with a non-finite gradient; for `on_before_optimizer_step`.

        Args:
            module: Whose gradients are complete.
            optimizer: Of the module.
            usable: Whether the step has a usable loss; a boolean scalar on the module's device.
            ids: Utterances or lines of this rank in the step, of all its batches.
            limit: Number of steps in a row without a finite gradient that ends the run.

        Raises:
            InputError: There were so many; on a GPU this is noticed at the next review.
        """
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        finite = full_tensor(torch.nn.utils.get_total_norm(gradients)).isfinite()
        scaled = getattr(module.trainer.precision_plugin, "scaler", None) is not None
        skip_next_step(optimizer, ~(finite & usable), scaled=scaled)
        self._steps.append((module.trainer.global_step, ids, ~finite))
        if finite.device.type == "cpu" or len(self._steps) >= REVIEW_STEPS:
            self.review(module, limit)

    def review(self, module: LightningModule, limit: int) -> None:
        """Warn of steps skipped for a non-finite gradient since the last review; all ranks have to call this.

        Raises:
            InputError: There were `limit` in a row, or the weights are not finite.
        """
        steps, self._steps = self._steps, []
        skipped = torch.stack([not_finite for *_, not_finite in steps]).tolist() if steps else []
        for (step, ids, _), is_skipped in zip(steps, skipped, strict=True):
            self._skipped = self._skipped + 1 if is_skipped else 0
            if not is_skipped:
                continue
            named = _gather_names(ids)
            rank_zero_warn(f"the gradient is not finite: step {step} is skipped; learned from {named}")
            if self._skipped >= limit:
                raise InputError(
                    f"no finite gradient in {self._skipped} steps in a row, last of {named}. Expected finite ones. "
                    "Lower the learning rate, or set trainer.gradient_clip_val. The weights were not changed since, "
                    "and the last checkpoint is complete."
                )
        if any(skipped):
            _check_weights(module)


@torch.no_grad()
def _check_weights(module: LightningModule) -> None:
    """Check that an optimizer step has left finite weights, without which no later gradient can be finite."""
    if full_tensor(torch.nn.utils.get_total_norm(list(module.parameters()))).isfinite():
        return
    advice = ""
    if any(parameter.dtype == torch.float16 for parameter in module.parameters()):
        advice = ", and train with --trainer.precision 16-mixed: in float16 the eps of Adam, 1e-8, is 0"
    raise InputError(
        f"the weights are not finite after {module.trainer.global_step} steps. Expected finite ones: no later step can "
        f"restore them. Lower the learning rate{advice}. Go on from an earlier checkpoint."
    )


def _gather_names(ids: list[str]) -> str:
    """Return the first ids of all ranks as text; all ranks have to call this."""
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        shares: list[list[str]] = [[]] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(shares, ids)
        ids = [id for share in shares for id in share]
    return printable(", ".join(ids[:NAMED])) + (f" … ({len(ids)} in all)" if len(ids) > NAMED else "")


def skip_next_step(optimizer: Optimizer, skipped: Tensor, scaled: bool = False) -> None:
    """Make the next step of an optimizer change neither weights nor state, if it is to be skipped.

    Args:
        optimizer: Fused Adam and AdamW of unshared parameters get a flag on the device. For others the host reads
            whether the step is skipped, and waits for the device.
        skipped: Whether to skip the step; a boolean scalar.
        scaled: Whether a `GradScaler` overwrites the flag of a fused optimizer.
    """
    groups = optimizer.param_groups
    fused = isinstance(optimizer, Adam) and all(group["fused"] for group in groups)
    shared = any(isinstance(parameter, DTensor) for group in groups for parameter in group["params"])
    if fused and not scaled and not shared:
        optimizer.found_inf = skipped.float()  # type: ignore[attr-defined] # as torch's GradScaler does
    elif bool(skipped):
        optimizer.zero_grad(set_to_none=True)  # optimizers pass over parameters without a gradient


def clip_gradients(
    module: LightningModule,
    optimizer: Optimizer,
    gradient_clip_val: float | None = None,
    gradient_clip_algorithm: str | None = None,
) -> None:
    """Clip gradients by the options of the trainer, also for fused optimizers in bfloat16, where Lightning refuses to.

    Lightning expects a fused optimizer to unscale gradients in its step; without a `GradScaler` there is no scale.
    This is a module's `configure_gradient_clipping`.
    """
    precision = module.trainer.precision_plugin
    if isinstance(precision, MixedPrecision) and precision.scaler is None:
        algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
        Precision.clip_gradients(precision, optimizer, gradient_clip_val or 0.0, algorithm)
    else:
        module.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
