import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from asr_lightning.losses.distillation import frame_divergence
from asr_lightning.losses.transducer import joint
from asr_lightning.losses.transducer.distillation import (
    JointInputs,
    best_path,
    lattice_divergence,
    path_divergence,
)
from asr_lightning.losses.transducer.joint import whole_blocks
from tests.oracles import distillation as by_definition

FRAMES, TOKENS, BLANK = torch.tensor([6, 4, 5, 1, 0]), torch.tensor([3, 4, 0, 2, 1]), 2
TERMS = [(lattice_divergence, by_definition.of_lattice), (path_divergence, by_definition.of_path)]
Term = Callable[..., Tensor]


@pytest.fixture(params=["real blocks", "whole blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks, as a CPU has them and as other devices have them."""
    monkeypatch.setattr(joint, "LOGITS", {"cpu": 60, "cuda": 400})
    if request.param == "whole blocks":

        def blocks_of(vocabulary: int, *_: Any) -> Iterator[Any]:
            return whole_blocks((5, 6, 5), vocabulary)

        monkeypatch.setattr(joint, "real_blocks", blocks_of)


def leaves(seed: int, dimension: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Inputs of a joint network (T 6, U 4, V 7), and its weights."""
    generator = torch.Generator().manual_seed(seed)
    sizes = ((5, 6, dimension), (5, 5, dimension), (7, dimension), (7,))
    return [torch.randn(size, generator=generator, dtype=dtype).requires_grad_() for size in sizes]


def inputs(tensors: list[Tensor], activation: Callable[[Tensor], Tensor] = torch.tanh) -> JointInputs:
    frames, histories, weight, bias = tensors
    return JointInputs(lambda x, y: linear(activation(x + y), weight, bias), frames, histories)


def all_logits(joint_inputs: JointInputs) -> Tensor:
    return joint_inputs.joint(joint_inputs.frames.unsqueeze(2), joint_inputs.histories.unsqueeze(1))


def targets(seed: int = 0) -> Tensor:
    return torch.tensor([0, 1, 3, 4, 5, 6])[torch.randint(6, (5, 4), generator=torch.Generator().manual_seed(seed))]


def expected(oracle: Term, student: Tensor, teacher: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    rows = zip(student, teacher, tokens.tolist(), FRAMES.tolist(), TOKENS.tolist(), strict=True)
    return torch.stack(
        [oracle(s[:t, : u + 1], q[:t, : u + 1], row[:u], BLANK, temperature) for s, q, row, t, u in rows]
    )


@pytest.mark.parametrize(("term", "oracle"), TERMS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("activation", [torch.tanh, torch.relu])
def test_values_and_gradients_are_those_of_all_logits(
    blocks: None, term: Term, oracle: Term, temperature: float, activation: Callable[[Tensor], Tensor]
) -> None:
    parameters, tokens = leaves(0, 3), targets()
    student, teacher = inputs(parameters, activation), inputs(leaves(1, 5), activation)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.5])
    wanted = expected(oracle, all_logits(student), all_logits(teacher).detach(), tokens, temperature)
    assert (wanted[:4] > 0.1).all() and wanted[4] == 0
    values = term(student, teacher, tokens, FRAMES, TOKENS, BLANK, temperature)
    torch.testing.assert_close(values, wanted, rtol=1e-10, atol=1e-12)
    gradients = torch.autograd.grad((values * weights).sum(), parameters)
    for gradient, other in zip(gradients, torch.autograd.grad((wanted * weights).sum(), parameters), strict=True):
        assert other.abs().max() > 0.01
        torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("term", "oracle"), TERMS)
def test_gradcheck(blocks: None, term: Term, oracle: Term) -> None:
    teacher, tokens = inputs(leaves(3, 4)), targets(1)
    assert torch.autograd.gradcheck(
        lambda *parameters: term(inputs(list(parameters)), teacher, tokens, FRAMES, TOKENS, BLANK, 1.5),
        leaves(2, 3),
        fast_mode=True,  # along random directions
    )


@pytest.mark.parametrize(("term", "oracle"), TERMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_teacher_itself_is_at_no_distance(term: Term, oracle: Term, dtype: torch.dtype) -> None:
    parameters, tokens = leaves(4, 4, dtype), targets(2)
    values = term(inputs(parameters), inputs(parameters), tokens, FRAMES, TOKENS, BLANK, 2.0)
    assert values.tolist() == 5 * [0.0]
    for gradient in torch.autograd.grad(values.sum(), parameters):
        assert gradient.abs().max() < 100 * torch.finfo(dtype).eps


@pytest.mark.parametrize(("term", "oracle"), TERMS)
def test_padding_of_any_content_changes_nothing(blocks: None, term: Term, oracle: Term) -> None:
    parameters, teacher, tokens = leaves(5, 3), leaves(6, 4), targets(3)
    wanted = term(inputs(parameters), inputs(teacher), tokens, FRAMES, TOKENS, BLANK)
    gradients = torch.autograd.grad(wanted.sum(), parameters)
    padded = [[tensor.detach().clone().requires_grad_() for tensor in tensors] for tensors in (parameters, teacher)]
    with torch.no_grad():
        for row, (frames, count) in enumerate(zip(FRAMES.tolist(), TOKENS.tolist(), strict=True)):
            tokens[row, count:] = -100
            for tensors in padded:
                tensors[0][row, frames:], tensors[1][row, count + 1 :] = math.nan, math.nan
    values = term(inputs(padded[0]), inputs(padded[1]), tokens, FRAMES, TOKENS, BLANK)
    torch.testing.assert_close(values, wanted, rtol=0, atol=0)
    for gradient, reference in zip(torch.autograd.grad(values.sum(), padded[0]), gradients, strict=True):
        torch.testing.assert_close(gradient, reference)


def test_padding_of_ctc_posteriors_changes_nothing() -> None:
    student, teacher = torch.randn(2, 2, 4, 3, generator=torch.Generator().manual_seed(0)).double()
    lengths = torch.tensor([4, 2])
    wanted = frame_divergence(student, teacher, lengths, 2.0)
    q, p = (x.div(2).softmax(dim=2) for x in (student, teacher))
    by_frame = 4 * (p * (p / q).log()).sum(dim=2)
    torch.testing.assert_close(wanted, torch.stack([by_frame[0].sum(), by_frame[1, :2].sum()]))
    student[1, 2:] = teacher[1, 2:] = math.nan
    values = frame_divergence(student.requires_grad_(), teacher, lengths, 2.0)
    torch.testing.assert_close(values, wanted, rtol=0, atol=0)
    [gradient] = torch.autograd.grad(values.sum(), student)
    assert gradient.isfinite().all() and (gradient[1, 2:] == 0).all()


@pytest.mark.parametrize(("term", "oracle"), TERMS)
def test_the_teacher_gets_no_gradient(term: Term, oracle: Term) -> None:
    parameters, teacher = leaves(7, 3), leaves(8, 3)
    term(inputs(parameters), inputs(teacher), targets(), FRAMES, TOKENS, BLANK).sum().backward()
    assert all(tensor.grad is None for tensor in teacher) and all(tensor.grad is not None for tensor in parameters)


@pytest.mark.parametrize(("term", "oracle"), TERMS)
def test_a_token_that_is_impossible_to_the_teacher_adds_nothing(term: Term, oracle: Term) -> None:
    parameters, teacher, tokens = leaves(9, 3), leaves(10, 3), targets(4)
    with torch.no_grad():
        teacher[3][5] = -math.inf
    tokens = tokens.masked_fill(tokens == 5, 6)
    values = term(inputs(parameters), inputs(teacher), tokens, FRAMES, TOKENS, BLANK)
    wanted = expected(oracle, all_logits(inputs(parameters)), all_logits(inputs(teacher)).detach(), tokens, 1.0)
    torch.testing.assert_close(values, wanted, rtol=1e-9, atol=1e-12)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(values.sum(), parameters))


@pytest.mark.parametrize("seed", range(20))
def test_the_best_path_is_the_best_of_all(seed: int) -> None:
    logits, tokens = all_logits(inputs(leaves(seed, 6))).detach(), targets(seed)
    log_probs = logits.log_softmax(-1)
    blank = log_probs[..., BLANK]
    label = torch.cat([log_probs[:, :, :-1].gather(3, tokens[:, None, :, None].expand(-1, 6, -1, -1)).squeeze(3),
                       torch.full((5, 6, 1), math.nan, dtype=torch.float64)], 2)  # fmt: skip
    frames, positions, mask = best_path(blank, label, FRAMES, TOKENS)
    assert mask.sum(1).tolist() == [9, 8, 5, 3, 0]
    for row, (t, u) in enumerate(zip(FRAMES.tolist(), TOKENS.tolist(), strict=True)):
        path = list(zip(frames[row][mask[row]].tolist(), positions[row][mask[row]].tolist(), strict=True))
        wanted = by_definition.best_alignment(logits[row, :t, : u + 1], tokens[row, :u].tolist(), BLANK) if t else []
        assert path == wanted


@pytest.mark.parametrize(("term", "oracle"), TERMS)
def test_no_utterance_and_no_frame(term: Term, oracle: Term) -> None:
    parameters, nothing = leaves(11, 3), torch.zeros(5, dtype=torch.int64)
    assert term(inputs(parameters), inputs(parameters), targets(), nothing, TOKENS, BLANK).tolist() == 5 * [0.0]
    none = [parameters[0][:0], parameters[1][:0], *parameters[2:]]
    assert term(inputs(none), inputs(none), targets()[:0], nothing[:0], nothing[:0], BLANK).shape == (0,)
    short = [parameters[0][:, :0], *parameters[1:]]
    assert term(inputs(short), inputs(short), targets(), nothing, TOKENS, BLANK).tolist() == 5 * [0.0]


@pytest.mark.parametrize(("term", "oracle"), TERMS)
def test_under_autocast_divergences_are_float32(term: Term, oracle: Term) -> None:
    parameters, teacher, tokens = leaves(12, 3, torch.float32), leaves(13, 3, torch.float32), targets(5)
    exact = term(inputs(parameters), inputs(teacher), tokens, FRAMES, TOKENS, BLANK)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = term(inputs(parameters), inputs(teacher), tokens, FRAMES, TOKENS, BLANK)
    assert coarse.dtype == torch.float32 and (coarse != exact).any()
    torch.testing.assert_close(coarse, exact, rtol=0.1, atol=0.1)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(coarse.sum(), parameters))


@pytest.mark.parametrize(("term", "oracle"), TERMS)
def test_memory_does_not_hold_the_logits_of_all_nodes(term: Term, oracle: Term) -> None:
    sizes = (2, 60, 16), (2, 21, 16), (4000, 16), (4000,)
    parameters, teacher = ([torch.randn(size).requires_grad_() for size in sizes] for _ in range(2))
    tokens, lengths = torch.randint(1, 4000, (2, 20)), (torch.tensor([60, 50]), torch.tensor([20, 15]))
    with torch.profiler.profile(profile_memory=True) as profile:
        term(inputs(parameters), inputs(teacher), tokens, *lengths, 0).sum().backward()
    largest = max(event.self_cpu_memory_usage for event in profile.events() or [])
    assert largest < 4 * joint.LOGITS["cpu"] * 1.1
    assert 4 * 2 * 60 * 21 * 4000 > 7 * largest  # all logits would be this


@pytest.mark.parametrize(("term", "oracle"), TERMS)
def test_a_teacher_of_other_frames_is_refused(term: Term, oracle: Term) -> None:
    parameters, teacher = leaves(14, 3), leaves(15, 3)
    with pytest.raises(ValueError, match=r"teacher .* got \(5, 5\) and \(5, 6\)"):
        term(inputs(parameters), inputs([teacher[0][:, :5], *teacher[1:]]), targets(), FRAMES, TOKENS, BLANK)
