"""NovoGrad, the optimizer of Jasper, which torch does not have."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from asr_lightning.errors import InputError


class NovoGrad(Optimizer):
    """Momentum over gradients that are divided by their norm, one norm for each tensor [Ginsburg et al. 2019, alg. 1].

    The square of the norm is averaged over steps; weight decay is added to the gradient before the momentum.

    Args:
        parameters: Parameters of the model, or groups of them.
        lr: Learning rate.
        betas: Of the momentum, and of the mean of the squared norms.
        eps: Added to the norm.
        weight_decay: Share of the weights that is added to the normalized gradient.

    Raises:
        InputError: A number is out of its range.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 0.01,
        betas: tuple[float, float] = (0.95, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if min(lr, eps, weight_decay) < 0.0 or not all(0.0 <= beta < 1.0 for beta in betas):
            raise InputError(
                "NovoGrad: expected lr, eps and weight_decay of 0 or more and betas from 0 to below 1, got "
                f"lr {lr}, eps {eps}, weight_decay {weight_decay} and betas {tuple(betas)}"
            )
        super().__init__(parameters, {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401
        """Make a step, without waiting for the device; parameters without a gradient do not change."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        state, (first, second) = self.state[parameter], group["betas"]
        square = gradient.float().square().sum()
        if not state:
            state["norm_square"] = square
            state["momentum"] = torch.zeros_like(parameter)
        else:
            state["norm_square"].mul_(second).add_(square, alpha=1.0 - second)
        direction = gradient / (state["norm_square"].sqrt() + group["eps"]).to(gradient.dtype)
        direction = direction.add(parameter, alpha=group["weight_decay"])
        state["momentum"].mul_(first).add_(direction)
        parameter.add_(state["momentum"], alpha=-group["lr"])
