"""The mean loss of an optimizer step over all ranks and all accumulated batches, its gradient and its seed."""

import os
from collections.abc import Callable
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer


class GlobalBatch:
    """The losses of one optimizer step and their mean: of utterances for recognizers, of tokens for language models.

    The gradient is that of the sum of all losses divided by their number, as if all ranks and all batches of
    `accumulate_grad_batches` were one batch. This number is known only after the last of these batches. So each batch
    is divided by the number of losses in the first batch that has any, and `rescale` corrects the complete gradient.
    It also undoes Lightning's division by `accumulate_grad_batches`, which holds even where an epoch ends with fewer.

    Args:
        device: Of the losses.
    """

    def __init__(self, device: torch.device) -> None:
        self.ids: list[str] = []  # of the utterances or lines of this rank
        self.count = torch.zeros((), dtype=torch.int64, device=device)  # losses of all ranks
        self._sum = torch.zeros((), device=device)  # of the losses of this rank
        self._divisor = torch.ones((), dtype=torch.int64, device=device)

    def add(self, module: LightningModule, total: Tensor, count: Tensor, ids: list[str]) -> tuple[Tensor, Tensor]:
        """Add a batch; all ranks have to call this.

        Args:
            module: The module in training.
            total: Sum of the usable losses of this rank, with its graph.
            count: Number of usable losses of this rank.
            ids: Utterances or lines of this rank.

        Returns:
            The value for `training_step` to return, and the number of losses of the batch on all ranks.
        """
        ranks = module.trainer.world_size
        if ranks > 1:
            torch.distributed.all_reduce(count)
        self._divisor = torch.where(self.count == 0, count.clamp(min=1), self._divisor)
        self.count = self.count + count
        self._sum = self._sum + total.detach()
        self.ids = self.ids + ids
        # DistributedDataParallel averages gradients over ranks, where the gradient of the mean loss is needed.
        return total * ranks / self._divisor, count

    def mean(self, module: LightningModule) -> Tensor:
        """Return the mean loss of all ranks, which all have to call this; NaN without any loss."""
        total = self._sum.clone()
        if module.trainer.world_size > 1:
            torch.distributed.all_reduce(total)
        return torch.where(self.count == 0, torch.nan, total / self.count.clamp(min=1))

    def rescale(self, module: LightningModule) -> None:
        """Scale the gradient of all batches of a step to that of their mean loss; nothing changes for one batch."""
        parts = module.trainer.accumulate_grad_batches
        if parts == 1:
            return
        factor = self._divisor * parts / self.count.clamp(min=1)
        for parameter in module.parameters():
            gradient = parameter.grad
            if gradient is not None:
                (gradient.to_local() if isinstance(gradient, DTensor) else gradient).mul_(factor)


def step_with_global_batch(
    module: LightningModule,
    epoch: int,
    batch_idx: int,
    optimizer: Optimizer | LightningOptimizer,
    optimizer_closure: Callable[[], Any] | None = None,
) -> None:
    """Make an optimizer step with the gradient of its `global_batch`, complete before it is logged and clipped.

    This is a module's `optimizer_step`.
    """

    def closure() -> Any:  # noqa: ANN401 - as Lightning's closure
        assert optimizer_closure is not None
        result = optimizer_closure()  # the last batch of the step: its loss and its gradient
        module.global_batch.rescale(module)  # type: ignore[operator,union-attr] # of recognizers and language models
        return result

    optimizer.step(closure=closure)


def seed_step(trainer: Trainer) -> None:
    """Seed a training step from the seed of the run, the number of the step and the rank alone."""
    step = trainer.fit_loop.epoch_loop.total_batch_idx
    seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
    torch.manual_seed(((seed * 1_000_003 + step) * 1_009 + trainer.global_rank) % 2**63)
