"""Layers of a decoder that are used once per token, with one gradient product for all tokens.

Autograd adds to a weight's gradient at every use. With few rows per use most of this time is for reading and writing
the gradient, half of a training step. `gathered` keeps input and output gradient of each use, and computes the weight's
gradient of all uses in one product. The frames of an attention are such a weight too, one for each utterance.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Use = tuple[Tensor, Tensor]  # input (..., N, D) and gradient of the output (..., N, E)


class _Source(torch.autograd.Function):
    """Identity of the weight; its backward runs after those of all uses, and computes the weight's gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, uses: list[Use]) -> Tensor:  # noqa: ANN401
        ctx.uses = uses
        return weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        inputs, gradients = (torch.cat(parts, dim=-2) for parts in zip(*ctx.uses, strict=True))
        ctx.uses.clear()
        return gradients.mT @ inputs, None


class _Use(torch.autograd.Function):
    """Product with the weight, whose gradient `_Source` computes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, uses: list[Use]) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(x, weight)
        ctx.uses = uses
        return x @ weight.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        x, weight = ctx.saved_tensors
        ctx.uses.append((x.flatten(0, -2), gradient.flatten(0, -2)) if weight.dim() == 2 else (x, gradient))
        return gradient @ weight, None, None


def share(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the function `x -> x @ weight.mT`, for many uses.

    Args:
        weight: (E, D), for x (..., D) and a result of (..., E); or (..., E, D), for (..., N, D) and (..., N, E).
    """
    kind = weight.device.type
    if torch.is_autocast_enabled(kind):
        weight = weight.to(torch.get_autocast_dtype(kind))
    if not (torch.is_grad_enabled() and weight.requires_grad):
        return lambda x: x.to(weight.dtype) @ weight.mT
    uses: list[Use] = []
    source = _Source.apply(weight, uses)
    return lambda x: _Use.apply(x.to(weight.dtype), source, uses)


class StepLinear(nn.Linear):
    """Linear layer that is used once per token."""

    product: Callable[[Tensor], Tensor] | None = None

    def gather(self) -> None:
        """Start a sequence of uses."""
        self.product = share(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., D)."""
        if self.product is None:
            return super().forward(x)
        return self.product(x) if self.bias is None else self.product(x) + self.bias


class StepLSTMCell(nn.LSTMCell):
    """LSTM cell with one product for the input and the hidden state."""

    product: Callable[[Tensor], Tensor] | None = None

    def gather(self) -> None:
        """Start a sequence of uses."""
        self.product = share(torch.cat([self.weight_ih, self.weight_hh], dim=1))
        self.summed_bias = self.bias_ih + self.bias_hh

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Return hidden state and cell, (N, hidden) each, for x (N, D)."""
        if self.product is None or state is None:
            return super().forward(x, state)
        hidden, cell = state
        gates = self.product(torch.cat([x, hidden.to(x.dtype)], dim=1)) + self.summed_bias
        precise = torch.promote_types(gates.dtype, torch.float32)  # a cell is a sum over all tokens
        return _Gates.apply(gates.to(precise), cell.to(precise))


class _Gates(torch.autograd.Function):
    """New cell and hidden state from the gates (N, 4 · hidden), where autograd would keep a dozen operations."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, old_cell: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        entry, forget, content, output = gates.chunk(4, dim=1)
        entry, forget, content, output = entry.sigmoid(), forget.sigmoid(), content.tanh(), output.sigmoid()
        cell = (forget * old_cell).addcmul_(entry, content)
        activated = cell.tanh()
        ctx.save_for_backward(entry, forget, content, output, old_cell, activated)
        return output * activated, cell

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_hidden: Tensor, of_cell: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        entry, forget, content, output, old_cell, activated = ctx.saved_tensors
        of_cell = of_cell + torch.ops.aten.tanh_backward(of_hidden * output, activated)
        of_gates = [
            torch.ops.aten.sigmoid_backward(of_cell * content, entry),
            torch.ops.aten.sigmoid_backward(of_cell * old_cell, forget),
            torch.ops.aten.tanh_backward(of_cell * entry, content),
            torch.ops.aten.sigmoid_backward(of_hidden * activated, output),
        ]
        return torch.cat(of_gates, dim=1), of_cell * forget


class StepMean(nn.Module):
    """Weighted means of an utterance's frames, which must be the same at every use within `gathered`."""

    product: Callable[[Tensor, Tensor], Tensor] | None = None

    def gather(self) -> None:
        """Start a sequence of uses."""
        shared: Callable[[Tensor], Tensor] | None = None

        def product(weights: Tensor, frames: Tensor) -> Tensor:
            nonlocal shared
            shared = shared or share(frames.expand(-1, weights.shape[1], -1, -1).mT)
            return shared(weights)

        self.product = product

    def forward(self, weights: Tensor, frames: Tensor) -> Tensor:
        """Return (B, H, K, D) of weights (B, H, K, T) and frames (B, H or 1, T, D)."""
        return weights @ frames if self.product is None else self.product(weights, frames)


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Compute the gradients of the layers inside a module once for all their uses within the context."""
    layers = [layer for layer in module.modules() if isinstance(layer, StepLinear | StepLSTMCell | StepMean)]
    for layer in layers:
        layer.gather()
    try:
        yield
    finally:
        for layer in layers:
            layer.product = None
