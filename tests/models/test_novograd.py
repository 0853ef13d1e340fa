"""NovoGrad against the algorithm as it is written down, number by number."""

import math
from typing import Any

import pytest
import torch

from asr_lightning.errors import InputError
from asr_lightning.models.novograd import NovoGrad
from tests.support.tones import batch_of, loader, make, make_trainer


def by_hand(
    weights: list[float], gradients: list[list[float]], lr: float, betas: tuple[float, float], eps: float, decay: float
) -> list[float]:
    """[Ginsburg et al. 2019, algorithm 1] for one layer, in plain numbers."""
    momentum, square = [0.0] * len(weights), 0.0
    for step, gradient in enumerate(gradients):
        norm = sum(value * value for value in gradient)
        square = norm if step == 0 else betas[1] * square + (1 - betas[1]) * norm
        for index, value in enumerate(gradient):
            direction = value / (math.sqrt(square) + eps) + decay * weights[index]
            momentum[index] = betas[0] * momentum[index] + direction
            weights[index] -= lr * momentum[index]
    return weights


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_are_those_of_the_algorithm_for_each_tensor(decay: float) -> None:
    generator = torch.Generator().manual_seed(1)
    layers = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 2), (4,))]
    gradients = [[torch.randn(layer.shape, generator=generator) for _ in range(6)] for layer in layers]
    start = [layer.detach().flatten().tolist() for layer in layers]
    optimizer = NovoGrad(layers, lr=0.1, betas=(0.9, 0.7), eps=1e-3, weight_decay=decay)
    for step in range(6):
        for layer, row in zip(layers, gradients, strict=True):
            layer.grad = row[step]
        optimizer.step()
    for layer, row, begin in zip(layers, gradients, start, strict=True):
        expected = by_hand(begin, [gradient.flatten().tolist() for gradient in row], 0.1, (0.9, 0.7), 1e-3, decay)
        assert layer.detach().flatten().tolist() == pytest.approx(expected, rel=1e-5)


def test_what_has_no_gradient_stays_and_a_saved_state_goes_on() -> None:
    def run(steps: range, weight: torch.nn.Parameter, optimizer: NovoGrad) -> None:
        for step in steps:
            weight.grad = torch.full((2,), math.sin(step + 1))
            optimizer.step()

    whole, still = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    first = NovoGrad([whole, still], lr=0.1, weight_decay=0.1)
    run(range(5), whole, first)
    assert still.tolist() == [1.0, 1.0]
    halves = torch.nn.Parameter(torch.ones(2))
    run(range(3), halves, saved := NovoGrad([halves], lr=0.1, weight_decay=0.1))
    restored = NovoGrad([halves], lr=0.5)
    restored.load_state_dict(saved.state_dict())
    run(range(3, 5), halves, restored)
    assert torch.equal(halves, whole)


def test_a_recognizer_learns_with_it(tmp_path: Any) -> None:
    model = make(optimizer={"class_path": "asr_lightning.models.novograd.NovoGrad", "init_args": {"lr": 0.02}})
    batch = batch_of()
    first_loss = float(model.loss(batch).detach().mean())
    make_trainer(tmp_path, max_epochs=1).fit(model, loader([batch] * 12))
    assert float(model.loss(batch).detach().mean()) < 0.7 * first_loss


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"betas": (0.9, 1.0)}, {"weight_decay": -0.1}])
def test_numbers_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="NovoGrad: expected lr"):
        NovoGrad([torch.nn.Parameter(torch.zeros(1))], **wrong)
