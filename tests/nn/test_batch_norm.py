import pytest
import torch
from torch import Tensor, nn

from asr_lightning.nn.batch_norm import MaskedBatchNorm
from asr_lightning.nn.conformer import DepthwiseConvolution

LENGTHS = torch.tensor([5, 2, 0, 7])


def frames(x: Tensor) -> Tensor:
    """The real frames, one behind the other."""
    return torch.cat([row[:length] for row, length in zip(x, LENGTHS.tolist(), strict=True)])


def garbage_behind(x: Tensor) -> Tensor:
    x = x.clone()
    for row, length in zip(x, LENGTHS.tolist(), strict=True):
        row[length:] = 1000.0
    return x


@pytest.fixture
def norms() -> tuple[MaskedBatchNorm, nn.BatchNorm1d]:
    torch.manual_seed(0)
    norm, torch_norm = MaskedBatchNorm(3, momentum=0.2), nn.BatchNorm1d(3, momentum=0.2)
    with torch.no_grad():
        for parameter, reference in ((norm.weight, torch_norm.weight), (norm.bias, torch_norm.bias)):
            reference.copy_(parameter.normal_())
    return norm, torch_norm


def test_training_is_batch_norm_of_the_real_frames(norms: tuple[MaskedBatchNorm, nn.BatchNorm1d]) -> None:
    norm, torch_norm = norms
    for step in range(3):
        x = garbage_behind(step + 2 * torch.randn(4, 7, 3)).requires_grad_()
        expected_x = frames(x.detach()).requires_grad_()
        y, expected = norm(x, LENGTHS), torch_norm(expected_x)
        torch.testing.assert_close(frames(y), expected)
        cotangent = torch.randn_like(expected)
        frames(y).backward(cotangent)
        expected.backward(cotangent)
        assert x.grad is not None and expected_x.grad is not None
        torch.testing.assert_close(frames(x.grad), expected_x.grad, rtol=1e-4, atol=1e-5)
        assert x.grad.abs().sum() == pytest.approx(float(frames(x.grad).abs().sum()))  # none to the padding
    torch.testing.assert_close(norm.running_mean, torch_norm.running_mean)
    torch.testing.assert_close(norm.running_variance, torch_norm.running_var)
    torch.testing.assert_close(norm.weight.grad, torch_norm.weight.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.bias.grad, torch_norm.bias.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_a_channel_that_overflows_leaves_the_running_statistics_finite(value: float) -> None:
    torch.manual_seed(0)
    spoiled, clean = MaskedBatchNorm(3), MaskedBatchNorm(3)
    x = torch.randn(4, 7, 3)
    clean(x, LENGTHS)
    x[0, 2, 1] = value
    spoiled(x, LENGTHS)
    for name in ("running_mean", "running_variance"):
        learned, initial = getattr(spoiled, name), getattr(MaskedBatchNorm(3), name)
        assert learned.isfinite().all()
        torch.testing.assert_close(learned[[0, 2]], getattr(clean, name)[[0, 2]])
        assert learned[1] == initial[1]


def test_evaluation_is_batch_norm_of_the_running_statistics(norms: tuple[MaskedBatchNorm, nn.BatchNorm1d]) -> None:
    norm, torch_norm = norms
    for _ in range(2):
        x = torch.randn(4, 7, 3)
        norm(x, LENGTHS), torch_norm(frames(x))
    norm.eval(), torch_norm.eval()
    running_mean = norm.running_mean.clone()
    x = 3 + garbage_behind(torch.randn(4, 7, 3))
    torch.testing.assert_close(frames(norm(x, LENGTHS)), torch_norm(frames(x)))
    assert torch.equal(norm.running_mean, running_mean)


def test_a_batch_without_frames_teaches_nothing_and_gives_no_nan(
    norms: tuple[MaskedBatchNorm, nn.BatchNorm1d],
) -> None:
    norm, _ = norms
    norm(torch.randn(4, 7, 3), LENGTHS)
    state = {name: value.clone() for name, value in norm.state_dict().items()}
    y = norm(torch.randn(2, 4, 3), torch.tensor([0, 0]))
    assert y.isfinite().all()
    assert all(torch.equal(value, state[name]) for name, value in norm.state_dict().items())


def test_a_filter_sees_zeros_beyond_the_end() -> None:
    torch.manual_seed(0)
    convolution = DepthwiseConvolution(3, 5)
    x = torch.randn(4, 7, 3)
    y = convolution(garbage_behind(x), LENGTHS)
    assert y.shape == x.shape
    for row, length in enumerate(LENGTHS.tolist()):
        for frame in range(length):
            expected = convolution.filter.bias.clone()
            for tap in range(5):
                if 0 <= (index := frame + tap - 2) < length:
                    expected = expected + convolution.filter.weight[:, 0, tap] * x[row, index]
            torch.testing.assert_close(y[row, frame], expected)


def test_an_even_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="got 4"):
        DepthwiseConvolution(3, 4)
