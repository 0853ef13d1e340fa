import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.profiler_util import FunctionEvent
from torchaudio.functional import rnnt_loss

from asr_lightning.losses.transducer import joint
from asr_lightning.losses.transducer.joint import joint_transducer_loss, whole_blocks
from asr_lightning.losses.transducer.logits import torchaudio_loss, transducer_loss

FRAMES, TOKENS = torch.tensor([7, 4, 6, 1, 7]), torch.tensor([3, 4, 0, 2, 1])


@pytest.fixture(params=["real blocks", "whole blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks, as a CPU has them and as other devices have them."""
    monkeypatch.setattr(joint, "LOGITS", {"cpu": 40, "cuda": 400})
    if request.param == "whole blocks":

        def blocks_of(vocabulary: int, *_: Any, shape: tuple[int, ...] = (5, 7, 5)) -> Iterator[Any]:
            return whole_blocks(shape, vocabulary)

        monkeypatch.setattr(joint, "real_blocks", blocks_of)


def random_case(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Tensor]:
    """What the joint network reads (T 7, U 4, D 6, V 9), and targets; token 2 is the blank."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(size, generator=generator, dtype=dtype) for size in ((5, 7, 6), (5, 5, 6), (9, 6), (9,))]
    targets = torch.tensor([0, 1, 3, 4, 5, 6, 7, 8])[torch.randint(8, (5, 4), generator=generator)]
    return [tensor.requires_grad_() for tensor in tensors], targets


def logits_of(encoded: Tensor, predicted: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.tanh(encoded.unsqueeze(2) + predicted.unsqueeze(1)) @ weight.T + bias


def fused(tensors: list[Tensor], targets: Tensor, frames: Tensor = FRAMES, tokens: Tensor = TOKENS) -> Tensor:
    encoded, predicted, weight, bias = tensors
    return joint_transducer_loss(encoded, predicted, weight, bias, targets, frames, tokens, 2)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("reference", [transducer_loss, torchaudio_loss])
def test_loss_and_gradients_are_those_of_the_logits(blocks: None, seed: int, reference: Callable[..., Tensor]) -> None:
    tensors, targets = random_case(seed)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.5])
    expected = reference(logits_of(*tensors), targets, FRAMES, TOKENS, 2)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), tensors)
    losses = fused(tensors, targets)
    tolerance = 1e-10 if reference is transducer_loss else 1e-4  # torchaudio computes in float32
    torch.testing.assert_close(losses, expected.double(), rtol=tolerance, atol=tolerance)
    gradients = torch.autograd.grad((losses * weights).sum(), tensors)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert wanted.abs().max() > 0.1
        torch.testing.assert_close(gradient, wanted, rtol=tolerance, atol=tolerance)


def test_gradcheck(blocks: None) -> None:
    tensors, targets = random_case(3)
    assert torch.autograd.gradcheck(lambda *leaves: fused(list(leaves), targets), tensors)


def test_a_long_utterance_agrees_with_double_precision_and_torchaudio() -> None:
    generator = torch.Generator().manual_seed(4)
    sizes = ((2, 150, 32), (2, 41, 32), (64, 32), (64,))
    tensors = [torch.randn(size, generator=generator).requires_grad_() for size in sizes]
    targets = torch.randint(1, 64, (2, 40), generator=generator)
    frames, tokens = torch.tensor([150, 97]), torch.tensor([30, 40])
    losses = joint_transducer_loss(*tensors, targets, frames, tokens, 0)  # type: ignore[arg-type]
    gradients = torch.autograd.grad(losses.sum(), tensors)
    doubles = [tensor.detach().double().requires_grad_() for tensor in tensors]
    exact = transducer_loss(logits_of(*doubles), targets, frames, tokens, 0)
    torch.testing.assert_close(losses.double(), exact, rtol=1e-6, atol=0)
    reference = rnnt_loss(logits_of(*tensors), targets.int(), frames.int(), tokens.int(), blank=0, reduction="none")
    torch.testing.assert_close(losses, reference, rtol=1e-5, atol=0)
    for gradient, wanted in zip(gradients, torch.autograd.grad(exact.sum(), doubles), strict=True):
        assert (gradient - wanted).abs().max() < 2e-6 * wanted.abs().max()


def test_what_hardly_any_alignment_visits_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a lattice with one likely path, the backward pass computes the positions along it."""
    computed = []
    original = joint._logits

    def counting(*arguments: Any) -> tuple[Tensor, Tensor]:
        logits, hidden = original(*arguments)
        computed.append(logits.shape[:3].numel())
        return logits, hidden

    monkeypatch.setattr(joint, "_logits", counting)
    monkeypatch.setattr(joint, "NARROW", 4)
    frames, tokens = 120, 30
    encoded, predicted = torch.zeros(1, frames, 64), torch.zeros(1, tokens + 1, 64)
    for frame in range(frames):  # each frame favors one token until it is emitted
        encoded[0, frame, frame // 4] = 8.0
    for position in range(tokens + 1):
        predicted[0, position, :position] = -16.0
    weight, bias = torch.zeros(32, 64), torch.zeros(32)
    weight[1:31, :30] = 24.0 * torch.eye(30)
    bias[0] = 10.0
    tensors = [tensor.requires_grad_() for tensor in (encoded, predicted, weight, bias)]
    targets = torch.arange(1, tokens + 1).unsqueeze(0)
    lengths = torch.tensor([frames]), torch.tensor([tokens])
    loss = joint_transducer_loss(*tensors, targets, *lengths, 0)  # type: ignore[call-arg, arg-type]
    assert sum(computed) == frames * (tokens + 1)
    computed.clear()
    gradients = torch.autograd.grad(loss.sum(), tensors)
    assert 0 < sum(computed) < 0.35 * frames * (tokens + 1)
    doubles = [tensor.detach().double().requires_grad_() for tensor in tensors]
    exact = torch.autograd.grad(transducer_loss(logits_of(*doubles), targets, *lengths, 0).sum(), doubles)
    full = torch.autograd.grad(transducer_loss(logits_of(*tensors), targets, *lengths, 0).sum(), tensors)
    for ours, all_places, wanted in zip(gradients, full, exact, strict=True):  # no worse than single precision itself
        assert (ours - wanted).norm() < 1.5 * (all_places - wanted).norm() < 0.01 * wanted.norm()


def test_padding_of_any_content_and_size_changes_nothing(blocks: None) -> None:
    tensors, targets = random_case(5)
    expected = fused(tensors, targets)
    wanted = torch.autograd.grad(expected.sum(), tensors)
    encoded, predicted = tensors[0].detach().clone(), tensors[1].detach().clone()
    for row, (frames, tokens) in enumerate(zip(FRAMES.tolist(), TOKENS.tolist(), strict=True)):
        encoded[row, frames:], predicted[row, tokens + 1 :], targets[row, tokens:] = math.nan, math.nan, -100
    leaves = [encoded.requires_grad_(), predicted.requires_grad_(), *tensors[2:]]
    losses = fused(leaves, targets)
    torch.testing.assert_close(losses, expected, rtol=0, atol=0)
    for gradient, other in zip(torch.autograd.grad(losses.sum(), leaves), wanted, strict=True):
        torch.testing.assert_close(gradient, other)


def test_a_row_without_frames_is_infinite_and_alone_in_it(blocks: None) -> None:
    tensors, targets = random_case(6)
    expected = fused(tensors, targets)
    with torch.no_grad():
        tensors[0][1] = math.nan
    losses = fused(tensors, targets, frames=FRAMES.index_fill(0, torch.tensor([1]), 0))
    assert losses[1] == math.inf
    others = [0, 2, 3, 4]
    torch.testing.assert_close(losses[others], expected[others])
    gradients = torch.autograd.grad(losses[others].sum(), tensors)
    assert (gradients[0][1] == 0).all() and gradients[0][0].abs().max() > 0
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_only_rows_without_frames_and_no_rows_at_all() -> None:
    tensors, targets = random_case(7)
    nothing = torch.zeros(5, dtype=torch.int64)
    assert fused(tensors, targets, frames=nothing).tolist() == 5 * [math.inf]
    encoded, predicted, *rest = tensors
    assert fused([encoded[:, :0], predicted, *rest], targets, frames=nothing).tolist() == 5 * [math.inf]
    assert fused([encoded[:0], predicted[:0], *rest], targets[:0], nothing[:0], nothing[:0]).shape == (0,)


def test_under_autocast_only_the_joint_network_is_coarse() -> None:
    tensors, targets = random_case(8, torch.float32)
    exact = fused(tensors, targets)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = fused(tensors, targets)
    assert coarse.dtype == torch.float32
    torch.testing.assert_close(coarse, exact, rtol=0.02, atol=0.02)
    assert (coarse != exact).any()
    rounded = [tensor.detach().bfloat16().requires_grad_() for tensor in tensors]
    torch.testing.assert_close(fused(rounded, targets), coarse, rtol=0, atol=0)
    for gradient, wanted in zip(
        torch.autograd.grad(coarse.sum(), tensors), torch.autograd.grad(exact.sum(), tensors), strict=True
    ):
        assert gradient.dtype == torch.float32
        assert (gradient - wanted).norm() < 0.03 * wanted.norm()


def test_it_compiles_into_one_graph() -> None:
    tensors, targets = random_case(9, torch.float32)
    expected = fused(tensors, targets)
    compiled = torch.compile(lambda leaves: fused(leaves, targets), fullgraph=True, backend="aot_eager")
    losses = compiled(tensors)
    torch.testing.assert_close(losses, expected)
    for gradient, wanted in zip(
        torch.autograd.grad(losses.sum(), tensors), torch.autograd.grad(expected.sum(), tensors), strict=True
    ):
        torch.testing.assert_close(gradient, wanted)


def test_the_operators_keep_the_rules_of_operators() -> None:
    tensors, targets = random_case(10, torch.float32)
    torch.library.opcheck(joint._forward, (*tensors, targets.new_zeros(5, 5), FRAMES, TOKENS, 2, 0.0, 0.0))


def test_memory_does_not_hold_the_logits_of_all_places() -> None:
    """The largest tensor made is a block's."""
    tensors = [torch.randn(2, 100, 16), torch.randn(2, 21, 16), torch.randn(4000, 16), torch.randn(4000)]
    leaves = [tensor.requires_grad_() for tensor in tensors]
    targets, lengths = torch.randint(1, 4000, (2, 20)), (torch.tensor([100, 90]), torch.tensor([20, 15]))
    with torch.profiler.profile(profile_memory=True) as profile:
        joint_transducer_loss(*leaves, targets, *lengths, 0).sum().backward()  # type: ignore[call-arg, arg-type]
    events: list[FunctionEvent] = list(profile.events() or [])
    largest = max(event.self_cpu_memory_usage for event in events)
    assert 4 * joint.LOGITS["cpu"] * 0.9 < largest < 4 * joint.LOGITS["cpu"] * 1.1
    assert 4 * 2 * 100 * 21 * 4000 > 10 * largest  # all logits would be this


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((5, 7, 6), (5, 4, 6)), r"got \(5, 7, 6\), \(5, 4, 6\) and \(5, 4\)"),
        (((5, 7, 5), (5, 5, 6)), r"got \(5, 7, 5\), \(5, 5, 6\) and \(5, 4\)"),
        (((5, 6, 6), (5, 5, 6)), "at most 6 frames and 4 tokens, got lengths up to 7 and 4"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]], message: str) -> None:
    tensors, targets = random_case(11)
    with pytest.raises(ValueError, match=message):
        fused([torch.zeros(shapes[0]), torch.zeros(shapes[1]), *tensors[2:]], targets)
