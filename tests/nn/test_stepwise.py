import pytest
import torch
from torch import Tensor, nn

from asr_lightning.nn.stepwise import StepLinear, StepLSTMCell, StepMean, _Gates, gathered


class Loop(nn.Module):
    """Reads tokens one by one, and looks along the embedded tokens after each, as a decoder looks along frames."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = StepLSTMCell(5, 4)
        self.query = StepLinear(4, 5)
        self.plain = StepLinear(5, 5, bias=False)
        self.mean = StepMean()

    def forward(self, x: Tensor) -> Tensor:
        state = (x.new_zeros(len(x), 4), x.new_zeros(len(x), 4))
        outputs = []
        for step in x.unbind(dim=1):
            query = self.query(state[0])
            weights = (query.unsqueeze(1) @ x.mT).softmax(dim=2).unsqueeze(2).expand(-1, -1, 2, -1)  # (B, H 1, K 2, U)
            state = self.cell(step + self.plain(query) + self.mean(weights, x.unsqueeze(1))[:, 0, 1], state)
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
    weight_gradients = [parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None]
    assert len(weight_gradients) == len(list(module.parameters()))
    return y.detach(), [x.grad, *weight_gradients]


def test_outputs_and_gradients_are_those_of_torchs_layers() -> None:
    module, x = Loop(), torch.randn(3, 6, 5)
    y, expected = gradients(module, x, together=False)
    y_together, computed = gradients(module, x, together=True)
    torch.testing.assert_close(y_together, y)
    for gradient, expected_gradient in zip(computed, expected, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-4)


def test_gradients_of_two_sequences_add_up() -> None:
    module, x = Loop(), torch.randn(2, 4, 5)
    _, [_, *single] = gradients(module, x, together=True)
    module.zero_grad()
    for _ in range(2):
        with gathered(module):
            y = module(x)
        (y * torch.arange(y.numel()).view_as(y)).sum().backward()
    for parameter, gradient in zip(module.parameters(), single, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient)


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
    assert module.cell.product is None and module.query.product is None and module.mean.product is None


def test_half_precision_is_near_full_precision() -> None:
    torch.manual_seed(0)
    module, x = Loop(), torch.randn(3, 6, 5)
    _, expected = gradients(module, x, together=False)
    with torch.autocast("cpu", torch.bfloat16):
        y, computed = gradients(module, x, together=True)
    for gradient, expected_gradient in zip(computed, expected, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - expected_gradient).norm() < 0.03 * expected_gradient.norm()


def test_the_gradient_of_gates() -> None:
    torch.manual_seed(0)
    gates, cell = (torch.randn(3, size, dtype=torch.float64, requires_grad=True) for size in (8, 2))
    assert torch.autograd.gradcheck(_Gates.apply, (gates, cell))


def test_a_cell_adds_up_in_single_precision_under_autocast() -> None:
    module = StepLSTMCell(5, 4)
    zeros = torch.zeros(3, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16), gathered(module):
        hidden, cell = module(torch.randn(3, 5), (zeros, zeros))
    assert hidden.dtype == cell.dtype == torch.float32


def test_frames_of_several_heads_and_frames_that_all_heads_share() -> None:
    torch.manual_seed(0)
    mean = StepMean()
    for heads in (1, 3):
        results = []
        for together in (False, True):
            generator = torch.Generator().manual_seed(heads)
            frames = torch.randn(2, heads, 6, 4, generator=generator, requires_grad=True)
            weights = [torch.rand(2, 3, k, 6, generator=generator, requires_grad=True) for k in (1, 2)]
            if together:
                with gathered(mean):
                    means = [mean(weight, frames) for weight in weights]
            else:
                means = [weight @ frames for weight in weights]
            total = sum((output * output).sum() for output in means)
            results.append([*means, *torch.autograd.grad(total, [frames, *weights])])  # type: ignore[arg-type]
        for separate, joined in zip(*results, strict=True):
            torch.testing.assert_close(separate, joined)
