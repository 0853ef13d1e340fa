"""Initial weights: the interface of such callbacks, and baselines of weight selection [Han et al. 2024 §II.1]."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from asr_lightning.errors import InputError
from asr_lightning.nn.axes import Fixed, module_axes
from asr_lightning.nn.batch_norm import MaskedBatchNorm

PACKED = ("gates", "value and gate")  # axes of several matrices, one above the other
Scheme = Literal["default", "xavier", "he", "uniform"]


class FirstWeights(Callback, ABC):
    """Base class: sets the weights once, when training begins; never when it is resumed or goes on.

    DistributedDataParallel has made all ranks equal by then and does not do so again: `set_weights` must arrive at the
    same weights on every rank.
    """

    def __init__(self) -> None:
        self.done = False

    @property
    def is_set_up(self) -> bool:
        """Whether there are weights to set; every run has the callbacks of this suite, most without arguments."""
        return True

    @abstractmethod
    def set_weights(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Change the weights in place."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the weights, if this is the beginning.

        Raises:
            InputError: Each process has only a part of them.
        """
        if not self.done and trainer.ckpt_path is None and self.is_set_up:
            if isinstance(pl_module, FSDPModule):
                raise InputError(
                    f"{type(self).__name__}: expected whole weights, got those that processes share by "
                    f"{type(trainer.strategy).__name__}. Train with --trainer.strategy ddp"
                )
            self.set_weights(trainer, pl_module)
        self.done = True


class Initialization(FirstWeights):
    """Draws the weights by a scheme.

    Args:
        scheme: `default` (torch's own), `xavier`, `he` or `uniform`.
        bound: Of `uniform`: all parameters are drawn from -bound to bound [0.1 in Chan et al. 2016, §4].
    """

    def __init__(self, scheme: Scheme = "default", bound: float = 0.1) -> None:
        super().__init__()
        self.scheme: Scheme = scheme
        self.bound = bound

    @property
    def is_set_up(self) -> bool:
        """Whether a scheme is given that is not torch's own."""
        return self.scheme != "default"

    def set_weights(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw with rank 0's random numbers on every rank."""
        seed = trainer.strategy.broadcast(int(torch.randint(2**62, ())))
        initialize(pl_module, self.scheme, torch.Generator().manual_seed(seed), self.bound)


@torch.no_grad()
def initialize(module: nn.Module, scheme: Scheme, generator: torch.Generator | None = None, bound: float = 0.1) -> None:
    """Draw weights anew.

    `xavier` and `he` draw matrices and convolution kernels; biases, norms and embeddings stay as torch made them. What
    is packed into one parameter is drawn part by part, since each is a matrix of its own: gates, the halves of a gated
    linear unit, the groups of a convolution. `uniform` draws everything but norms.

    Args:
        module: Changed in place.
        scheme: `xavier` [Glorot and Bengio 2010] or `he` [He et al. 2015], both with uniform draws; `uniform`,
            from -bound to bound; `default` leaves everything.
        generator: On the CPU; torch's own if None.
        bound: Of `uniform`.
    """
    if scheme == "default":
        return
    if scheme == "uniform":
        for owner in module.modules():
            if not isinstance(owner, nn.LayerNorm | MaskedBatchNorm):
                for parameter in owner.parameters(recurse=False):
                    parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
        return
    axes = module_axes(module)
    for prefix, owner in module.named_modules():
        for name, parameter in owner.named_parameters(prefix, recurse=False):
            kernel = name.rpartition(".")[2].startswith("weight") and parameter.dim() >= 2
            if not kernel or isinstance(owner, nn.Embedding) or name not in axes:  # as a projection of `Distillation`
                continue
            factor = axes[name][0][0][0]
            packed = factor.size if isinstance(factor, Fixed) and factor.name in PACKED else 1
            for part in parameter.chunk(getattr(owner, "groups", packed)):
                part.copy_(_draw(part.shape, scheme, generator))


def _draw(shape: torch.Size, scheme: Scheme, generator: torch.Generator | None) -> Tensor:
    if scheme == "xavier":
        return nn.init.xavier_uniform_(torch.empty(shape), generator=generator)
    return nn.init.kaiming_uniform_(torch.empty(shape), nonlinearity="relu", generator=generator)
