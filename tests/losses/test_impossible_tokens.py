"""Logits of minus infinity: what is impossible has no part in a loss, and nothing becomes NaN."""

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from asr_lightning.losses.cross_entropy import cross_entropy_loss
from asr_lightning.losses.ctc import ctc_loss
from asr_lightning.losses.graphs import Graph, GraphBatch
from asr_lightning.losses.lattice_free_mmi import lattice_free_mmi_loss
from asr_lightning.losses.transducer.joint import joint_transducer_loss
from asr_lightning.losses.transducer.logits import torchaudio_loss, transducer_loss
from tests.oracles.ctc import all_paths as all_ctc_paths
from tests.oracles.transducer import all_paths, forward_recursion

BOTH = pytest.mark.parametrize("loss", [transducer_loss, torchaudio_loss])
SIZES = torch.tensor([3]), torch.tensor([2])
TARGET = torch.tensor([[2, 1]])


@BOTH
def test_the_value_of_torchaudio_and_its_gradient(loss: Callable[..., Tensor]) -> None:
    logits = torch.zeros(1, 2, 2, 3)
    logits[0, 0, 0, 2] = -math.inf
    logits.requires_grad_()
    [value] = loss(logits, torch.tensor([[2]]), torch.tensor([2]), torch.tensor([1]), 0)
    assert value.item() == pytest.approx(2.8904, abs=5e-5)  # -log(1/2 · 1/3 · 1/3)
    value.backward()
    third = torch.tensor([1.0, 1.0, 1.0]) / 3
    expected = torch.zeros(1, 2, 2, 3)
    expected[0, 0, 0] = torch.tensor([-0.5, 0.5, 0.0])
    expected[0, 1, 0], expected[0, 1, 1] = third - torch.eye(3)[2], third - torch.eye(3)[0]
    torch.testing.assert_close(logits.grad, expected, rtol=1e-5, atol=1e-6)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_two_places_without_a_token_or_blank(loss: Callable[..., Tensor], dtype: torch.dtype) -> None:
    base = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(1))
    entries = list(product(range(3), range(3), [0, 1, 2]))
    chosen = [(entries[n], entries[(5 * n + 3) % len(entries)]) for n in range(len(entries))]
    logits = base.repeat(len(chosen), 1, 1, 1)
    for row, pair in enumerate(chosen):
        for entry in pair:
            logits[(row, *entry)] = -math.inf
    logits = logits.to(dtype).requires_grad_()
    frames, tokens = SIZES[0].expand(len(chosen)), SIZES[1].expand(len(chosen))
    losses = loss(logits, TARGET.expand(len(chosen), -1), frames, tokens, 0)
    (gradient,) = torch.autograd.grad(losses[losses.isfinite()].sum(), logits)
    exact = logits.detach().double()
    expected = [-all_paths(row.log_softmax(-1), [2, 1], 0) for row in exact]
    assert math.inf in expected and not all(map(math.isinf, expected))
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(losses.double(), torch.tensor(expected).double(), rtol=tolerance, atol=tolerance)
    floored = exact.clamp(min=-100.0).requires_grad_()  # finite, and as good as impossible
    total = sum(-forward_recursion(row, [2, 1], 0) for row, cost in zip(floored, expected, strict=True) if cost < 50)
    (wanted,) = torch.autograd.grad(-total, floored)  # type: ignore[arg-type]
    torch.testing.assert_close(gradient.double(), wanted, rtol=tolerance, atol=tolerance)


@BOTH
def test_no_alignment_is_infinite_beside_others(loss: Callable[..., Tensor]) -> None:
    logits = torch.randn(3, 3, 3, 4, generator=torch.Generator().manual_seed(2))
    logits[1, :, 1, 1] = -math.inf  # the second token, in every frame
    logits.requires_grad_()
    losses = loss(logits, TARGET.expand(3, -1), torch.tensor([3, 3, 0]), SIZES[1].expand(3), 0)
    assert losses.isinf().tolist() == [False, True, True]
    losses.sum().backward()
    assert logits.grad is not None
    assert logits.grad[0].abs().max() > 0.1 and (logits.grad[1:] == 0).all()
    alone = logits.detach()[1:2].requires_grad_()
    loss(alone, TARGET, *SIZES, 0).sum().backward()
    assert alone.grad is not None and (alone.grad == 0).all()


def test_a_place_where_nothing_is_possible_is_gone_around() -> None:
    logits = torch.zeros(2, 2, 2, 3)
    logits[0, 0, 1], logits[1, 1, 1] = -math.inf, -math.inf
    logits.requires_grad_()
    losses = transducer_loss(logits, torch.tensor([[2], [2]]), torch.tensor([2, 2]), torch.tensor([1, 1]), 0)
    assert losses.tolist() == pytest.approx([3 * math.log(3), math.inf])
    losses.sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all() and (logits.grad[1] == 0).all()


@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_large_logits_are_exact(scale: float) -> None:
    logits = torch.zeros(1, 2, 2, 3)
    logits[0, 0, 0, 2] = -scale
    [value] = transducer_loss(logits, torch.tensor([[2]]), torch.tensor([2]), torch.tensor([1]), 0)
    assert float(value) == pytest.approx(math.log(18))
    logits[0, 1, 0, 2] = -scale
    [value] = transducer_loss(logits, torch.tensor([[2]]), torch.tensor([2]), torch.tensor([1]), 0)
    assert float(value) == pytest.approx(scale, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("impossible", [3, 2])
def test_a_joint_network_that_excludes_a_token(dtype: torch.dtype, impossible: int) -> None:
    generator = torch.Generator().manual_seed(3)
    tensors = [torch.randn(size, generator=generator) for size in ((2, 3, 5), (2, 3, 5), (4, 5), (4,))]
    tensors[3][impossible] = -math.inf
    tensors = [tensor.to(dtype).requires_grad_() for tensor in tensors]
    targets = torch.tensor([[2, 1], [1, 1]])  # token 2 is in the first only
    losses = joint_transducer_loss(*tensors, targets, SIZES[0].expand(2), SIZES[1].expand(2), 0)  # type: ignore[arg-type]
    gradients = torch.autograd.grad(losses[losses.isfinite()].sum(), tensors)
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    logits = torch.tanh(exact[0].unsqueeze(2) + exact[1].unsqueeze(1)) @ exact[2].T + exact[3]
    expected = transducer_loss(logits, targets, SIZES[0].expand(2), SIZES[1].expand(2), 0)
    assert expected.isinf().tolist() == [impossible == 2, False]
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(losses.double(), expected, rtol=tolerance, atol=tolerance)
    for ours, wanted in zip(
        gradients, torch.autograd.grad(expected[1:].sum() if impossible == 2 else expected.sum(), exact), strict=True
    ):
        torch.testing.assert_close(ours.double(), wanted, rtol=tolerance, atol=tolerance)


def test_ctc_without_a_token_is_the_sum_of_the_paths_that_are_left() -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(4, 3, 4, generator=generator)
    logits[0, :, 1] = logits[1, 0, 2] = logits[2, 1, 0] = -math.inf
    logits[3] = torch.tensor([0.0, -1e4, 0.0, 0.0])  # finite, and hardly possible
    targets = torch.tensor([[1, 0], [2, 1], [3, 0], [1, 0]])
    exact = [[1], [2, 1], [3], [1]]
    logits.requires_grad_()
    losses = ctc_loss(logits, targets, torch.full((4,), 3), torch.tensor([1, 2, 1, 1]), 0)
    log_probs = logits.detach().double().log_softmax(2)
    expected = [-all_ctc_paths(row, tokens, 0) for row, tokens in zip(log_probs, exact, strict=True)]
    assert math.isinf(expected[0]) and losses[0] == math.inf
    torch.testing.assert_close(losses, torch.tensor(expected), rtol=1e-5, atol=1e-5)
    losses.sum().backward()
    floored = log_probs.clamp(min=-100.0)[1:3].requires_grad_()
    for row, tokens in zip(floored, exact[1:3], strict=True):
        paths = [
            row[torch.arange(3), torch.tensor(path)].sum()
            for path in product(range(4), repeat=3)
            if [token for previous, token in zip((0, *path), path, strict=False) if token not in (0, previous)]
            == tokens
        ]
        (-torch.stack(paths).logsumexp(0)).backward()
    assert logits.grad is not None and floored.grad is not None and (logits.grad[0] == 0).all()
    posteriors = -floored.grad  # of log probabilities; of logits, the softmax is added
    wanted = log_probs[1:3].exp() - posteriors
    torch.testing.assert_close(logits.grad[1:3].double(), wanted, rtol=1e-4, atol=1e-5)


def test_cross_entropy_of_an_impossible_token_is_infinite_with_a_finite_gradient() -> None:
    logits = torch.zeros(2, 2, 4)
    logits[0, 0, 1] = logits[1, 1, 2] = -math.inf  # a target, and a target in padding
    logits.requires_grad_()
    losses = cross_entropy_loss(logits, torch.tensor([[1, 3], [0, 2]]), torch.tensor([2, 1]))
    assert losses.tolist() == [math.inf, pytest.approx(math.log(4))]
    losses.sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all() and (logits.grad[1, 1] == 0).all()


def test_lattice_free_mmi_without_a_pdf_in_a_frame() -> None:
    ends = torch.tensor([[0.0, -math.inf], [-math.inf, 0.0]], dtype=torch.float64)
    arcs = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), torch.tensor([0, 1, 1])
    numerator = Graph(*arcs, torch.zeros(3, dtype=torch.float64), *ends)  # pdf 0 for some frames, then 1
    flat = torch.zeros(1, dtype=torch.int64)
    everything = Graph(
        flat.repeat(2), flat.repeat(2), torch.tensor([0, 1]), torch.zeros(2).double(), *torch.zeros(2, 1).double()
    )
    scores = torch.zeros(3, 3, 2)
    scores[1, 0, 0], scores[2, :, 1] = -math.inf, -math.inf  # one way is left; none is
    scores.requires_grad_()
    losses = lattice_free_mmi_loss(
        scores, torch.full((3,), 3), GraphBatch.collate([numerator] * 3), GraphBatch.collate([everything])
    )
    assert losses.tolist() == pytest.approx([math.log(8 / 3), math.log(4), math.inf])
    losses.sum().backward()
    assert scores.grad is not None and scores.grad.isfinite().all() and (scores.grad[2] == 0).all()
    torch.testing.assert_close(scores.grad[1], torch.tensor([[0.0, 0.0], [0.5, -0.5], [0.5, -0.5]]))
