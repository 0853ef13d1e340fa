"""What stays, how often, and with what gradient; torch's own has the same expectations."""

import pytest
import torch
from torch import nn

from asr_lightning.nn.dropout import Dropout

SHAPES = [(), (1,), (3, 5), (2, 3, 7), (0, 4)]


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_as_many_go_as_asked_for_and_the_mean_stays(p: float) -> None:
    torch.manual_seed(1)
    count = 400_000
    y = Dropout(p)(torch.ones(count))
    lost = int((y == 0).sum())
    assert abs(lost - p * count) < 5 * (count * p * (1 - p)) ** 0.5
    rounded = round(p * 2**16) / 2**16
    torch.testing.assert_close(y[y != 0].unique(), torch.tensor([1 / (1 - rounded)]))
    error, torch_error = (abs(float(module(torch.ones(count)).mean()) - 1) for module in (Dropout(p), nn.Dropout(p)))
    bound = 5 * (p / (1 - p) / count) ** 0.5
    assert error < bound and torch_error < bound


def test_elements_go_independently_of_each_other() -> None:
    torch.manual_seed(1)
    lost = (Dropout(0.3)(torch.ones(100_000, 8)) == 0).double()
    correlation = torch.corrcoef(lost.T) - torch.eye(8)
    assert float(correlation.abs().max()) < 5 / 100_000**0.5
    assert float(lost.mean(dim=0).sub(0.3).abs().max()) < 0.01


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_any_shape_and_number(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.ones(shape, dtype=dtype)
    y = Dropout(0.5)(x)
    assert y.shape == x.shape and y.dtype == dtype
    assert bool(((y == 0) | (y == 2)).all())


def test_the_gradient_is_that_of_what_stays() -> None:
    x = torch.randn(6, 50, requires_grad=True)
    y = Dropout(0.25)(x.transpose(0, 1))
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.where(y.T == 0, 0.0, 1 / 0.75))
    torch.testing.assert_close(y.T, x.detach() * x.grad)


def test_seeds_repeat_it() -> None:
    torch.manual_seed(3)
    first = Dropout(0.5)(torch.ones(1000))
    torch.manual_seed(3)
    again, other = Dropout(0.5)(torch.ones(1000)), Dropout(0.5)(torch.ones(1000))
    assert first.equal(again) and not first.equal(other)


@pytest.mark.parametrize(
    ("p", "training", "expected"), [(0.0, True, 1), (1.0, True, 0), (0.5, False, 1), (1e-9, True, 1)]
)
def test_all_or_nothing(p: float, training: bool, expected: int) -> None:
    assert bool((Dropout(p).train(training)(torch.ones(50)) == expected).all())


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
def test_no_probability(p: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        Dropout(p)
