import pytest
import torch
from torch import Tensor, nn

from asr_lightning.nn.stepwise import StepLinear, StepLSTMCell, gathered


class Loop(nn.Module):
    """Reads tokens one by one, as a decoder does."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = StepLSTMCell(5, 4)
        self.query = StepLinear(4, 5)
        self.plain = StepLinear(5, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        state = (x.new_zeros(len(x), 4), x.new_zeros(len(x), 4))
        outputs = []
        for step in x.unbind(dim=1):
            state = self.cell(step + self.plain(self.query(state[0])), state)
            outputs.append(state[0])
        return torch.stack(outputs, dim=1)


def gradients(module: nn.Module, x: Tensor, together: bool) -> tuple[Tensor, list[Tensor]]:
    module.zero_grad()
    x = x.clone().requires_grad_()
    if together:
        with gathered(module):
            y = module(x)
    else:
        y = module(x)
    (y * torch.arange(y.numel()).view_as(y)).sum().backward()
    assert x.grad is not None
    found = [parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None]
    assert len(found) == len(list(module.parameters()))
    return y.detach(), [x.grad, *found]


def test_outputs_and_gradients_are_those_of_torchs_layers() -> None:
    module, x = Loop(), torch.randn(3, 6, 5)
    y, expected = gradients(module, x, together=False)
    ours, found = gradients(module, x, together=True)
    torch.testing.assert_close(ours, y)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_gradients_of_two_sequences_add_up() -> None:
    module, x = Loop(), torch.randn(2, 4, 5)
    _, [_, *once] = gradients(module, x, together=True)
    module.zero_grad()
    for _ in range(2):
        with gathered(module):
            y = module(x)
        (y * torch.arange(y.numel()).view_as(y)).sum().backward()
    for parameter, one in zip(module.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * one)


def test_frozen_weights_and_no_gradient_are_fine() -> None:
    module, x = Loop(), torch.randn(2, 4, 5)
    module.plain.weight.requires_grad_(False)
    with gathered(module):
        y = module(x)
    y.sum().backward()
    assert module.plain.weight.grad is None and module.cell.weight_ih.grad is not None
    with torch.no_grad(), gathered(module):
        torch.testing.assert_close(module(x), y)
    torch.testing.assert_close(module(x), y)  # and the layers are themselves again


def test_an_error_inside_leaves_the_layers_as_they_were() -> None:
    module = Loop()
    with pytest.raises(RuntimeError), gathered(module):
        module(torch.randn(2, 4, 3))
    assert module.cell.product is None and module.query.product is None


def test_half_precision_is_near_full_precision() -> None:
    torch.manual_seed(0)
    module, x = Loop(), torch.randn(3, 6, 5)
    _, expected = gradients(module, x, together=False)
    with torch.autocast("cpu", torch.bfloat16):
        y, found = gradients(module, x, together=True)
    for one, two in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert (one - two).norm() < 0.03 * two.norm()
