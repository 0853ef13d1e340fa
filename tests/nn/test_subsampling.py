import math

import pytest
import torch

from asr_lightning.nn.extractors import ConvolutionalSubsampling

FACTORS = [2, 4, 8]


@pytest.mark.parametrize("factor", FACTORS)
def test_lengths_are_those_of_what_comes_out(factor: int) -> None:
    subsampling = ConvolutionalSubsampling(7, 5, 2, factor).eval()
    for frames in range(1, 41):
        y, lengths = subsampling(torch.randn(1, frames, 7), torch.tensor([frames]))
        assert y.shape == (1, math.ceil(frames / factor), 5)
        assert lengths.tolist() == [math.ceil(frames / factor)]


@pytest.mark.parametrize("factor", FACTORS)
def test_zeros_behind_an_utterance_change_nothing(factor: int) -> None:
    torch.manual_seed(0)
    subsampling = ConvolutionalSubsampling(9, 5, 3, factor).eval()
    size = 41
    for frames in range(1, size + 1):
        x = torch.zeros(2, size, 9)
        x[0, :frames] = torch.randn(frames, 9)
        x[1] = torch.randn(size, 9)
        y, lengths = subsampling(x, torch.tensor([frames, size]))
        alone, _ = subsampling(x[:1, :frames], torch.tensor([frames]))
        torch.testing.assert_close(y[:1, : lengths[0]], alone)


def test_every_input_frame_counts() -> None:
    torch.manual_seed(0)
    subsampling = ConvolutionalSubsampling(9, 5, 8, 8).double().eval()
    x = torch.randn(1, 33, 9, dtype=torch.float64, requires_grad=True)
    y, _ = subsampling(x, torch.tensor([33]))
    (y**2).sum().backward()
    assert x.grad is not None and (x.grad.abs().sum(dim=2) > 0).all()


@pytest.mark.parametrize("factor", [1, 3, 16])
def test_other_factors_are_refused(factor: int) -> None:
    with pytest.raises(ValueError, match=f"got {factor}"):
        ConvolutionalSubsampling(9, 5, 3, factor)
