"""The tanh in place, compared with that of torch."""

import pytest
import torch

from asr_lightning.losses.transducer.lattice import tanh_

X = torch.cat([torch.linspace(-30, 30, 100_001), torch.tensor([0.0, 1e-8, 1e4, -1e4, float("inf"), -float("inf")])])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tanh_in_place(dtype: torch.dtype) -> None:
    x = X.to(dtype)
    y = x.clone()
    assert tanh_(y) is y and y.dtype == dtype
    if dtype == torch.float32:
        assert float((y - x.double().tanh()).abs().max()) < 2e-7
    else:
        assert y.equal(x.tanh())
    assert float(y.abs().max()) == 1


def test_tanh_of_no_number_is_none() -> None:
    assert bool(tanh_(torch.tensor([float("nan")])).isnan())
