"""Norms of weight changes per module: in one optimizer step, and since training began."""

import math
import zlib
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from asr_lightning.callbacks.measurement import Measurement
from asr_lightning.errors import InputError
from asr_lightning.models.checkpoints import read_checkpoint
from asr_lightning.models.fsdp import full_tensor, local_part

Weights = dict[str, Tensor]  # by the names of parameters


class UpdateSizes(Measurement):
    """Logs how far an optimizer step moves the parameters of each top-level part and of the whole.

    * `update_norm/<part>`: the 2-norm of the change of all its trained parameters together, and `update_norm/total`.
    * `relative_update/<part>`: the same, divided by the 2-norm of these parameters before the step. Left out for a part
      that is all zero.

    The step includes clipping, learning rate and weight decay; a skipped one, as without a usable utterance, has the
    size 0. All ranks measure the same, without communication where each has all parameters. During a measured step
    there is a copy of the parameters on their device.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        """Choose how often.

        Args:
            every_n_steps: Optimizer steps between two measurements; by default `trainer.log_every_n_steps`, which it
                must divide. 0 measures nothing.
        """
        super().__init__(every_n_steps)
        self._before: Weights | None = None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Keep the parameters if this step is measured."""
        if self.is_due(trainer):
            self._before = copy_weights(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure, if a step to measure was made in this batch."""
        old_weights, self._before = self._before, None
        if old_weights is not None:  # without a value, a logger would write that of an earlier step again
            sizes = part_distances(pl_module, old_weights)
            pl_module.log_dict(_log_values(sizes, "update_norm", "relative_update"), batch_size=1)


class DistanceFromStart(Measurement):
    """Logs how far each top-level part and the whole are from the weights that training began with.

    * `distance/<part>`: the 2-norm of the difference of all its trained parameters together, and `distance/total`.
    * `relative_distance/<part>`: the same, divided by the 2-norm of these parameters at the start. Left out for a part
      that began all zero, as a network that is only biases.

    The start is copied after all callbacks that set weights, as `WeightSelection`, wherever they stand in the list of
    callbacks. A copy of these weights stays on the device of the parameters.

    The start is written once, as `checkpoints/initial.ckpt` in the run folder, and read again when a run is resumed. In
    the state of the callback it would make every checkpoint larger, each time by the same numbers; as a checkpoint of
    its own it is also an end point for `asr path`. The state only holds a checksum, so that the start
    of another run is recognized: where the file is missing or of another run, there is a warning, and the distances
    are left out.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        """Choose how often.

        Args:
            every_n_steps: Optimizer steps between two measurements; by default `trainer.log_every_n_steps`, which it
                must divide. 0 measures nothing.
        """
        super().__init__(every_n_steps)
        self._start: Weights | None = None
        self._checksum = ""  # of the start; empty where it is not known
        self._due = False

    def state_dict(self) -> dict[str, str]:
        """Return the checksum of the start."""
        return {"checksum": self._checksum}

    def load_state_dict(self, state_dict: dict[str, str]) -> None:
        """Restore the checksum of the start."""
        self._checksum = state_dict["checksum"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights and write them, or read them where training goes on."""
        super().on_train_start(trainer, pl_module)
        if self.every_n_steps == 0:
            return
        path = Path(trainer.default_root_dir) / "checkpoints" / "initial.ckpt"
        if trainer.global_step == 0:
            self._start = copy_weights(pl_module)
            self._checksum = checksum(self._start)
            trainer.save_checkpoint(path, weights_only=True)
        elif self._start is None:
            self._start = self._read_start(path, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Free the copy; a training that goes on reads it again."""
        self._start = None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Decide before the step is counted."""
        self._due = self.is_due(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure, if a step to measure was made in this batch."""
        due, self._due = self._due, False
        if due and self._start is not None:
            distances = part_distances(pl_module, self._start)
            pl_module.log_dict(_log_values(distances, "distance", "relative_distance"), batch_size=1)

    def _read_start(self, path: Path, module: LightningModule) -> Weights | None:
        if not self._checksum:
            return _warn(f"the checkpoint that goes on was written without {type(self).__name__}")
        try:
            saved = read_checkpoint(path)["state_dict"]
        except InputError as error:
            return _warn(str(error))
        trained = [(name, parameter) for name, parameter in _trained_parameters(module) if name in saved]
        start = {name: local_part(saved[name].to(module.device), parameter) for name, parameter in trained}
        if checksum(start) != self._checksum:
            return _warn(f"{path.absolute()} holds the start of another run")
        return start


def _warn(reason: str) -> Weights | None:
    rank_zero_warn(f"distances from the start of training are left out, for its weights are not known: {reason}")
    return None


def _trained_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    saved = module.state_dict().keys()  # without what only training has, as a projection of `Distillation`
    return [
        (name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad and name in saved
    ]


def copy_weights(module: nn.Module) -> Weights:
    """Return copies of the trained parameters of a module; shared ones once."""
    return {name: parameter.detach().clone() for name, parameter in _trained_parameters(module)}


def checksum(weights: Weights) -> str:
    """Return eight hexadecimal digits that differ where any name or bit does (CRC-32), on any device."""
    total = 0
    for name, tensor in weights.items():
        values = full_tensor(tensor.detach()).cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
        total = zlib.crc32(values, zlib.crc32(name.encode(), total))
    return f"{total:08x}"


@torch.no_grad()
def part_distances(module: nn.Module, start: Weights) -> dict[str, tuple[float, float]]:
    """Measure the distance of a module's parameters from others.

    Args:
        module: Its parts are its children.
        start: What to measure from; parameters that it lacks are left out.

    Returns:
        By the name of each part, and for `total`, the 2-norm of the difference and the 2-norm of the start.
    """
    names = [name for name, _ in module.named_parameters() if name in start]
    parameters = dict(module.named_parameters())
    norms = [
        torch.stack([full_tensor(torch.linalg.vector_norm(tensor)) for tensor in (parameters[name].float() - old, old)])
        for name in names
        for old in [start[name].float()]
    ]
    squares = torch.stack(norms).double().square().tolist() if norms else []  # waits for the device once
    by_part = {part: [s for name, s in zip(names, squares, strict=True) if name.startswith(f"{part}.")]
               for part, _ in module.named_children()}  # fmt: skip
    sums = {**{part: values for part, values in by_part.items() if values}, "total": squares}
    return {part: (_norm_of_column(values, 0), _norm_of_column(values, 1)) for part, values in sums.items()}


def _norm_of_column(squares: list[list[float]], column: int) -> float:
    return math.sqrt(math.fsum(row[column] for row in squares))


def _log_values(distances: dict[str, tuple[float, float]], absolute: str, relative: str) -> dict[str, float]:
    """Return what is logged: the norms, and their ratio to those of the start where these are not 0."""
    shares = {f"{relative}/{part}": norm / start for part, (norm, start) in distances.items() if start > 0}
    return {f"{absolute}/{part}": norm for part, (norm, _) in distances.items()} | shares
