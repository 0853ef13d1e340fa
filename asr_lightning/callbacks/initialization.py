"""The baselines that weight selection is compared with [seed 002 §II.1]."""

from typing import Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from asr_lightning.nn.axes import Fixed, module_axes

Scheme = Literal["default", "xavier", "he"]


def initialize(module: nn.Module, scheme: Scheme) -> None:
    """Draw all matrices and convolution kernels anew; biases, norms and embeddings stay as torch made them.

    Packed parts (gates, GLU halves) are drawn each by itself, since each is a matrix of its own.

    Args:
        module: Changed in place.
        scheme: `xavier` [Glorot and Bengio 2010] or `he` [He et al. 2015], both with uniform draws; `default` leaves
            everything.
    """
    if scheme == "default":
        return
    embeddings = {f"{name}.weight" for name, part in module.named_modules() if isinstance(part, nn.Embedding)}
    axes = module_axes(module)
    for name, parameter in module.named_parameters():
        if parameter.dim() < 2 or name in embeddings or not name.rpartition(".")[2].startswith("weight"):
            continue
        first = axes[name][0][0][0]
        for part in parameter.data.chunk(first.size if isinstance(first, Fixed) else 1):
            _draw(part, scheme)


def _draw(weight: Tensor, scheme: Scheme) -> None:
    if scheme == "xavier":
        nn.init.xavier_uniform_(weight)
    else:
        nn.init.kaiming_uniform_(weight, nonlinearity="relu")


class Initialization(Callback):
    """Initialises the recogniser when training begins; never when it is resumed.

    Args:
        scheme: `default` (torch's own), `xavier` or `he`.
    """

    def __init__(self, scheme: Scheme = "default") -> None:
        self.scheme: Scheme = scheme

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the weights; ranks share the seed, and DistributedDataParallel hands out rank 0's."""
        if trainer.ckpt_path is None:
            initialize(pl_module, self.scheme)
