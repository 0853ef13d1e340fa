"""Averages of weights: of checkpoints, and of Lightning's averaging callbacks.

`WeightAveraging`, `EMAWeightAveraging` and `StochasticWeightAveraging` copy the network before training. Lightning
validates and saves this copy, also before it averages anything, when the network has other weights already.
"""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_swa_avg_fn

from asr_lightning.errors import InputError

Averaging = WeightAveraging | StochasticWeightAveraging


class AveragedCopies(Callback):
    """Keeps the copies of averaging callbacks up to date, at any position in the list of callbacks.

    * Until a callback averages for the first time, its copy is the current network. So a run with a late start
      validates and saves its current weights, and an average never holds weights from before `WeightSelection` or
      `Initialization`.
    * Buffers that cannot be averaged are those of the current network: counters, which are integers, and the sums
      beside them, as in `GlobalNormalization`; constants, which no checkpoint holds; all buffers if the callback has
      `use_buffers: false`.

    `averaged_copies` adds it to a run.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse averages of weights that are shared between processes.

        Raises:
            InputError: Each process has only a part of the weights.
        """
        if isinstance(pl_module, FSDPModule):
            raise InputError(
                f"{type(averagings(trainer)[0]).__name__}: expected all weights in every process, got weights shared "
                f"by {type(trainer.strategy).__name__}. Train with --trainer.strategy ddp, or remove the averaging"
            )
        for averaging in averagings(trainer):
            averaged = averaging._average_model
            if isinstance(averaged, AveragedModel) and averaged.avg_fn is None and averaged.multi_avg_fn is None:
                averaged.avg_fn = get_swa_avg_fn()  # the same mean; torch's faster one fails on integers of a GPU

    # Lightning uses a copy in validations, when it saves a checkpoint, and at the end of training.

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the copies up to date before they are validated."""
        refresh_copies(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the copies up to date before they become the trained network."""
        refresh_copies(trainer, pl_module)


def averagings(trainer: Trainer) -> list[Averaging]:
    """Return the averaging callbacks of a run."""
    return [callback for callback in trainer.callbacks if isinstance(callback, Averaging)]  # type: ignore[attr-defined]


def averaged_copies(module: LightningModule) -> list[Callback]:
    """Return the callback that a run with averaging callbacks needs; this is a module's `configure_callbacks`."""
    return [AveragedCopies()] if averagings(module.trainer) else []


def save_averages(module: LightningModule, checkpoint: dict[str, Any]) -> None:
    """Save the averaged weights that were validated in a checkpoint; this is a module's `on_save_checkpoint`.

    Lightning calls no callback for a checkpoint of weights alone (`save_weights_only`), so it would hold the current
    ones.
    """
    if module._trainer is None:  # a module without a trainer, connected to a strategy
        return
    refresh_copies(module.trainer, module)
    for averaging in averagings(module.trainer):
        copy = _copy(averaging)
        if isinstance(averaging, WeightAveraging) and copy is not None and "averaging_state" not in checkpoint:
            checkpoint["state_dict"] = copy.state_dict()


@torch.no_grad()
def refresh_copies(trainer: Trainer, module: nn.Module) -> None:
    """Copy tensors that are not averaged, or not yet, from the network in training."""
    for averaging in averagings(trainer):
        copy = _copy(averaging)
        if copy is None:
            continue
        pairs = zip(_copied_tensors(copy, averaging), _copied_tensors(module, averaging), strict=True)
        for old, new in pairs:
            old.copy_(new)


@torch.no_grad()
def mean_weights(module: nn.Module, states: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of a network's weights at several steps [Vaswani et al. 2017, 6.1].

    Parameters and running statistics are averaged, in float64. Counters, and sums beside them as in
    `GlobalNormalization`, are those of the last state.

    Args:
        module: The network; its own weights are not used.
        states: One or more state_dicts of it, from the first step to the last.
    """
    counted, number = _counter_buffers(module), 0
    sums: dict[str, Tensor] = {}
    last: Mapping[str, Tensor] = {}
    for number, last in enumerate(states, 1):  # noqa: B007 - used after the loop
        for name, value in last.items():
            if value.is_floating_point() and name not in counted:
                sums[name] = sums[name] + value.double() if name in sums else value.double()
    return {name: (sums[name] / number).to(value.dtype) if name in sums else value for name, value in last.items()}


def _copy(averaging: Averaging) -> nn.Module | None:
    if isinstance(averaging, StochasticWeightAveraging):
        return averaging._average_model  # Lightning has no public name for it
    averaged = averaging._average_model
    return None if averaged is None else averaged.module


def _copied_tensors(module: nn.Module, averaging: Averaging) -> list[Tensor]:
    """Return the tensors of a network that are copied from the network in training."""
    if not _has_begun(averaging):
        return list(chain(module.parameters(), module.buffers()))
    if isinstance(averaging, StochasticWeightAveraging) or not averaging._use_buffers:
        return list(module.buffers())
    saved, counted = module.state_dict().keys(), _counter_buffers(module)
    return [buffer for name, buffer in module.named_buffers() if name in counted or name not in saved]


def _counter_buffers(module: nn.Module) -> set[str]:
    """Return the names of buffers that are counters, and of the sums beside them."""
    names: set[str] = set()
    for prefix, part in module.named_modules():
        buffers = dict(part.named_buffers(prefix, recurse=False))
        counters = {name for name, buffer in buffers.items() if _is_counter(buffer)}
        # The counter of torch's BatchNorm stands beside means and variances, which are no sums.
        names |= counters if isinstance(part, _BatchNorm) or not counters else buffers.keys()
    return names


def _has_begun(averaging: Averaging) -> bool:
    """Whether anything was averaged."""
    if isinstance(averaging, StochasticWeightAveraging):
        counted = averaging.n_averaged  # None until the first epoch of averaging, also in a run that is resumed
        return (averaging._init_n_averaged if counted is None else int(counted)) > 0
    return averaging._average_model is not None and int(averaging._average_model.n_averaged) > 0


def _is_counter(buffer: Tensor) -> bool:
    return not buffer.is_floating_point() and not buffer.is_complex()
