"""FastEmit against every path of a small lattice."""

import math

import pytest
import torch
from torch import Tensor, nn

from asr_lightning.errors import InputError
from asr_lightning.losses.transducer.joint import ExactLoss, TransducerLoss, joint_transducer_loss
from asr_lightning.losses.transducer.pruned import PrunedLoss, pruned_transducer_loss
from tests.oracles.transducer import all_paths, fast_emit_gradient

BLANK = 2
FRAMES, TOKENS = torch.tensor([4, 3, 2, 4]), torch.tensor([3, 1, 0, 2])


def random_case(seed: int) -> tuple[list[Tensor], Tensor]:
    """Inputs of the joint network (T 4, U 3, D 5, V 6), and targets."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (4, 4, 5), (4, 4, 5), (6, 5), (6,)
    tensors = [torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_() for size in sizes]
    return tensors, torch.tensor([0, 1, 3, 4, 5])[torch.randint(5, (4, 3), generator=generator)]


def logits_of(encoded: Tensor, predicted: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.tanh(encoded.unsqueeze(2) + predicted.unsqueeze(1)) @ weight.T + bias


def losses_of(kind: str, tensors: list[Tensor], targets: Tensor, weight: float) -> Tensor:
    encoded, predicted, matrix, bias = tensors
    arguments = (encoded, predicted, matrix, bias, targets, FRAMES, TOKENS, BLANK)
    if kind == "exact":
        return joint_transducer_loss(*arguments, fast_emit=weight)
    return pruned_transducer_loss(*arguments, width=4, fast_emit=weight)  # all positions


@pytest.mark.parametrize("kind", ["exact", "pruned"])
@pytest.mark.parametrize("weight", [0.0, 0.01, 1.5])
@pytest.mark.parametrize("seed", range(3))
def test_gradients_are_those_of_all_paths_and_the_loss_is_the_likelihood(kind: str, weight: float, seed: int) -> None:
    tensors, targets = random_case(seed)
    scales = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    losses = losses_of(kind, tensors, targets, weight)
    logits = logits_of(*tensors)
    logit_gradient = torch.zeros_like(logits)
    for row, (frames, count) in enumerate(zip(FRAMES.tolist(), TOKENS.tolist(), strict=True)):
        row_logits, target = logits[row, :frames, : count + 1], targets[row, :count].tolist()
        assert losses[row].item() == pytest.approx(-all_paths(row_logits.log_softmax(-1), target, BLANK), abs=1e-10)
        logit_gradient[row, :frames, : count + 1] = scales[row] * fast_emit_gradient(row_logits, target, BLANK, weight)
    expected = torch.autograd.grad(logits, tensors, logit_gradient)
    gradients = torch.autograd.grad((losses * scales).sum(), tensors)
    for gradient, of_paths in zip(gradients, expected, strict=True):
        assert of_paths.abs().max() > 0.1
        torch.testing.assert_close(gradient, of_paths, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["exact", "pruned"])
def test_0_is_the_loss_without_it_to_the_digit_and_more_moves_tokens_forward(kind: str) -> None:
    tensors, targets = random_case(5)
    plain = joint_transducer_loss if kind == "exact" else pruned_transducer_loss
    reference = plain(*tensors, targets, FRAMES, TOKENS, BLANK)  # type: ignore[operator]
    losses = losses_of(kind, tensors, targets, 0.0)
    assert torch.equal(reference, losses)
    for first, second in zip(torch.autograd.grad(reference.sum(), tensors), torch.autograd.grad(losses.sum(), tensors),
                         strict=True):  # fmt: skip
        assert torch.equal(first, second)
    bias = tensors[3]
    [with_it] = torch.autograd.grad(losses_of(kind, tensors, targets, 2.0).sum(), [bias])
    [without] = torch.autograd.grad(losses_of(kind, tensors, targets, 0.0).sum(), [bias])
    assert float(with_it[BLANK]) > float(without[BLANK])  # a step down this gradient makes blanks less probable


@pytest.mark.parametrize("loss", [ExactLoss, PrunedLoss])
def test_the_classes_hand_it_on_and_refuse_what_is_no_weight(loss: type[TransducerLoss]) -> None:
    [encoded, predicted, weight, bias], targets = random_case(1)
    output = nn.Linear(5, 6).double()
    output.load_state_dict({"weight": weight.detach(), "bias": bias.detach()})
    options = {"width": 4} if loss is PrunedLoss else {}
    gradients = []
    for share in (0.0, 1.0):
        losses = loss(**options, fast_emit=share)(encoded, predicted, output, targets, FRAMES, TOKENS, BLANK)
        gradients.append(torch.autograd.grad(losses.sum(), [encoded])[0])
    [expected] = torch.autograd.grad(
        losses_of("exact", [encoded, predicted, weight, bias], targets, 1.0).sum(), [encoded]
    )
    torch.testing.assert_close(gradients[1], expected)
    assert not torch.allclose(gradients[0], gradients[1])
    for wrong in (-0.1, math.nan, math.inf):
        with pytest.raises(InputError, match="fast_emit to be a finite number from 0"):
            loss(fast_emit=wrong)
