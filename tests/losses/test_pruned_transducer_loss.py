"""The pruned loss beside the exact one, beside sums over all alignments, and at the ends of its domain."""

import math
from itertools import combinations_with_replacement
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.profiler_util import FunctionEvent

from asr_lightning.errors import InputError
from asr_lightning.losses.transducer import pruned
from asr_lightning.losses.transducer.joint import joint_transducer_loss
from asr_lightning.losses.transducer.lattice import occupancies
from asr_lightning.losses.transducer.pruned import PrunedLoss, best_ranges, pruned_transducer_loss, quantile_ranges

FRAMES, TOKENS = torch.tensor([7, 4, 6, 1, 7]), torch.tensor([3, 4, 0, 2, 1])
LENGTHS = FRAMES, TOKENS


def random_case(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Tensor]:
    """Inputs of the joint network (T 7, U 4, D 6, V 9), and targets; token 2 is the blank."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(size, generator=generator, dtype=dtype) for size in ((5, 7, 6), (5, 5, 6), (9, 6), (9,))]
    targets = torch.tensor([0, 1, 3, 4, 5, 6, 7, 8])[torch.randint(8, (5, 4), generator=generator)]
    return [tensor.requires_grad_() for tensor in tensors], targets


def loss(tensors: list[Tensor], targets: Tensor, *options: Any, lengths: tuple[Tensor, Tensor] = LENGTHS) -> Tensor:
    encoded, predicted, weight, bias = tensors
    return pruned_transducer_loss(encoded, predicted, weight, bias, targets, *lengths, 2, *options)


def exact(tensors: list[Tensor], targets: Tensor, *options: Any, lengths: tuple[Tensor, Tensor] = LENGTHS) -> Tensor:
    encoded, predicted, weight, bias = tensors
    return joint_transducer_loss(encoded, predicted, weight, bias, targets, *lengths, 2, *options)


def alignments(frames: int, tokens: int) -> list[list[tuple[int, int, bool]]]:
    """All alignments as lists of (frame, position, whether a token is emitted)."""
    paths = []
    for moments in combinations_with_replacement(range(frames), tokens):  # the frame of each token
        path, position = [], 0
        for frame in range(frames):
            for _ in range(moments.count(frame)):
                path.append((frame, position, True))
                position += 1
            path.append((frame, position, False))
        paths.append(path)
    return paths


def sum_over_alignments(
    tensors: list[Tensor], targets: Tensor, utterance: int, inside: Tensor | None = None, penalty: float = 0.0
) -> float:
    """The loss of one utterance as a sum over all alignments within some nodes, (T, U + 1)."""
    encoded, predicted, weight, bias = (tensor.detach() for tensor in tensors)
    frames, tokens = int(FRAMES[utterance]), int(TOKENS[utterance])
    hidden = torch.tanh(encoded[utterance].unsqueeze(1) + predicted[utterance].unsqueeze(0))
    log_probs = (hidden @ weight.T + bias).log_softmax(2)
    totals = []
    for path in alignments(frames, tokens):
        if inside is None or all(bool(inside[frame, position]) for frame, position, _ in path):
            totals.append(
                sum(
                    float(log_probs[frame, position, targets[utterance, position]])
                    + penalty * ((frames - 1) / 2 - frame)
                    if emits
                    else float(log_probs[frame, position, 2])
                    for frame, position, emits in path
                )
            )
    return -float(torch.tensor(totals, dtype=torch.float64).logsumexp(0)) if totals else math.inf


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("penalty", [0.0, 0.3])
def test_ranges_of_all_positions_give_the_exact_loss(seed: int, penalty: float) -> None:
    tensors, targets = random_case(seed)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.5])
    expected, losses = exact(tensors, targets, penalty), loss(tensors, targets, 5, None, penalty)
    torch.testing.assert_close(losses, expected, rtol=1e-10, atol=1e-10)
    wanted = torch.autograd.grad((expected * weights).sum(), tensors)
    for ours, other in zip(torch.autograd.grad((losses * weights).sum(), tensors), wanted, strict=True):
        assert other.abs().max() > 0.1
        torch.testing.assert_close(ours, other, rtol=1e-10, atol=1e-10)


def test_ranges_of_all_positions_give_the_exact_loss_in_single_precision() -> None:
    generator = torch.Generator().manual_seed(4)
    sizes = ((2, 90, 32), (2, 21, 32), (64, 32), (64,))
    tensors = [torch.randn(size, generator=generator).requires_grad_() for size in sizes]
    targets = torch.randint(3, 64, (2, 20), generator=generator)
    lengths = torch.tensor([90, 57]), torch.tensor([14, 20])
    losses, expected = loss(tensors, targets, 21, lengths=lengths), exact(tensors, targets, lengths=lengths)
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=0)
    wanted = torch.autograd.grad(expected.sum(), tensors)
    for ours, other in zip(torch.autograd.grad(losses.sum(), tensors), wanted, strict=True):
        assert (ours - other).abs().max() < 1e-5 * other.abs().max()


@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize("penalty", [0.0, 0.5])
def test_the_loss_is_the_sum_over_the_alignments_within_the_ranges(
    monkeypatch: pytest.MonkeyPatch, width: int, penalty: float
) -> None:
    tensors, targets = random_case(1)
    chosen = []

    def recorded(*arguments: Any) -> Tensor:
        chosen.append(best_ranges(*arguments))
        return chosen[-1]

    monkeypatch.setattr(pruned, "best_ranges", recorded)
    losses = loss(tensors, targets, width, None, penalty).detach()
    unpruned = exact(tensors, targets, penalty).detach()
    [inside] = chosen
    for utterance in range(5):
        expected = sum_over_alignments(tensors, targets, utterance, inside[utterance], penalty)
        assert float(losses[utterance]) == pytest.approx(expected, rel=1e-10)
        expected = sum_over_alignments(tensors, targets, utterance, penalty=penalty)
        assert float(unpruned[utterance]) == pytest.approx(expected, rel=1e-10)
    assert (losses >= unpruned - 1e-12).all() and (losses[0] > unpruned[0] + 1e-3)


@pytest.mark.parametrize("options", [(2,), (3, None, 0.2), (2, 0.2)])
def test_gradcheck(options: tuple[Any, ...]) -> None:
    """With the ranges that the unchanged inputs give: they are constants to the gradient."""
    generator = torch.Generator().manual_seed(3)
    sizes = ((2, 4, 3), (2, 4, 3), (5, 3), (5,))
    tensors = [torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_() for size in sizes]
    targets, lengths = torch.tensor([[0, 4, 3], [1, 1, 0]]), (torch.tensor([4, 3]), torch.tensor([3, 2]))
    assert torch.autograd.gradcheck(lambda *x: loss(list(x), targets, *options, lengths=lengths), tensors)


@pytest.mark.parametrize("left_out", [0.5, 0.1, 0.01, 1e-4])
@pytest.mark.parametrize(("scale", "factor"), [(1e-3, 1.0), (1.0, 20.0)])
def test_the_probability_left_out(left_out: float, scale: float, factor: float) -> None:
    """Where the tanh is linear the estimate is exact, and so is the bound; where it is saturated, they are near."""
    generator = torch.Generator().manual_seed(5)
    sizes = ((4, 40, 16), (4, 13, 16), (11, 16), (11,))
    encoded, predicted, weight, bias = (torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes)
    tensors = [scale * encoded, scale * predicted, weight / scale, bias]
    targets = torch.randint(3, 11, (4, 12), generator=generator)
    lengths = torch.tensor([40, 30, 25, 13]), torch.tensor([12, 12, 7, 12])
    unpruned = exact(tensors, targets, lengths=lengths)
    narrow, wide = loss(tensors, targets, 2, lengths=lengths), loss(tensors, targets, 2, left_out, lengths=lengths)
    shares = [1 - (unpruned - losses).exp() for losses in (narrow, wide)]
    assert (shares[0] > 0.8).all()
    assert (shares[1] < factor * left_out * (1 + 1e-4)).all() and (shares[1] >= -1e-9).all()
    assert (shares[1] > 0).any()


def test_a_bound_costs_little_where_one_alignment_is_likely(monkeypatch: pytest.MonkeyPatch) -> None:
    frames, tokens = 120, 30
    encoded, predicted = torch.zeros(1, frames, 64), torch.zeros(1, tokens + 1, 64)
    for frame in range(frames):  # each frame has evidence for one token, and a history excludes its own tokens
        encoded[0, frame, frame // 4] = 8.0
    for position in range(tokens + 1):
        predicted[0, position, :position] = -16.0
    weight, bias = torch.zeros(32, 64), torch.zeros(32)
    weight[1:31, :30] = 24.0 * torch.eye(30)
    bias[0] = 10.0
    tensors, targets = [encoded, predicted, weight, bias], torch.arange(1, tokens + 1).unsqueeze(0)
    lengths = torch.tensor([frames]), torch.tensor([tokens])
    computed, original = [], pruned._score

    def counting(*arguments: Any) -> Any:
        computed.append(int(arguments[6].sum()))
        return original(*arguments)

    monkeypatch.setattr(pruned, "_score", counting)
    expected = joint_transducer_loss(*tensors, targets, *lengths, 0)  # type: ignore[call-arg, arg-type]
    losses = pruned_transducer_loss(*tensors, targets, *lengths, 0, 2, 0.01)  # type: ignore[call-arg, arg-type]
    assert 0 <= float(losses - expected) < 0.01
    assert sum(computed) < 0.2 * frames * (tokens + 1)


def test_ranges_are_where_alignments_stay_and_connected() -> None:
    generator = torch.Generator().manual_seed(2)
    blank, label = (3 * torch.randn(6, 30, 11, generator=generator, dtype=torch.float64) for _ in range(2))
    lengths = torch.tensor([30, 25, 7, 2, 1, 0]), torch.tensor([10, 0, 10, 10, 10, 3])
    _, by_blank, _ = occupancies(blank, label, *lengths)
    for width in (2, 4, 11):
        inside = best_ranges(by_blank, *lengths, width)
        for row, (frames, tokens) in enumerate(zip(*(x.tolist() for x in lengths), strict=True)):
            if not frames:
                continue
            needed = max(width, math.ceil(tokens / frames) + 1)
            starts = inside[row, :frames].int().argmax(dim=1)
            ends = (starts + needed - 1).clamp(max=10)
            positions = torch.arange(11)
            assert inside[row, :frames].equal((positions >= starts[:, None]) & (positions <= ends[:, None]))
            assert starts[0] == 0 and ends[-1] >= tokens
            steps = starts.diff()
            assert (steps >= 0).all() and (steps <= needed - 1).all()
    # With one alignment of probability 1, it is inside.
    sure = torch.full((1, 30, 11), -1000.0, dtype=torch.float64)
    blank, label = sure.clone(), sure.clone()
    path = torch.arange(30) // 3
    blank[0, torch.arange(30), path] = 0.0
    label[0, 3 * torch.arange(1, 10), torch.arange(9)] = 0.0
    label[0, 29, 9], blank[0, 29, 10] = 0.0, 0.0
    lengths = torch.tensor([30]), torch.tensor([10])
    _, by_blank, by_label = occupancies(blank, label, *lengths)
    visited = by_blank + by_label > 0.5
    assert visited.sum() == 30 + 10
    assert best_ranges(by_blank, *lengths, 2)[visited].all()
    assert quantile_ranges(by_blank, 0.01).equal(visited)


def test_quantile_ranges_leave_out_at_most_their_shares() -> None:
    generator = torch.Generator().manual_seed(6)
    blank, label = (torch.randn(1, 12, 6, generator=generator, dtype=torch.float64).sigmoid().log() for _ in range(2))
    lengths = torch.tensor([12]), torch.tensor([5])
    full, by_blank, _ = occupancies(blank, label, *lengths)
    for share in (0.2, 0.02, 0.002):
        outside = ~quantile_ranges(by_blank, share)
        within, *_ = occupancies(*(scores.masked_fill(outside, -math.inf) for scores in (blank, label)), *lengths)
        assert 0 < 1 - float((full - within).exp()) <= 2 * 12 * share


def test_padding_of_any_content_and_size_changes_nothing() -> None:
    tensors, targets = random_case(5)
    expected = loss(tensors, targets, 2, 0.1, 0.1)
    wanted = torch.autograd.grad(expected.sum(), tensors)
    encoded, predicted = (torch.full((5, size, 6), math.nan, dtype=torch.float64) for size in (9, 7))
    padded = torch.full((5, 6), -100)
    for row, (frames, tokens) in enumerate(zip(FRAMES.tolist(), TOKENS.tolist(), strict=True)):
        encoded[row, :frames], predicted[row, : tokens + 1] = tensors[0][row, :frames], tensors[1][row, : tokens + 1]
        padded[row, :tokens] = targets[row, :tokens]
    leaves = [encoded.detach().requires_grad_(), predicted.detach().requires_grad_(), *tensors[2:]]
    losses = loss(leaves, padded, 2, 0.1, 0.1)
    torch.testing.assert_close(losses, expected)
    gradients = torch.autograd.grad(losses.sum(), leaves)
    torch.testing.assert_close(gradients[0][:, :7], wanted[0])
    torch.testing.assert_close(gradients[1][:, :5], wanted[1])
    assert all(x.isfinite().all() for x in gradients)
    alone = [tensors[0][1:2, :4], tensors[1][1:2], *tensors[2:]]
    torch.testing.assert_close(
        loss(alone, targets[1:2], 2, 0.1, 0.1, lengths=(FRAMES[1:2], TOKENS[1:2])), expected[1:2]
    )


def test_an_utterance_without_frames_is_infinite_and_changes_no_other() -> None:
    tensors, targets = random_case(6)
    expected = loss(tensors, targets, 3, 0.2)
    with torch.no_grad():
        tensors[0][1] = math.nan
    losses = loss(tensors, targets, 3, 0.2, lengths=(FRAMES.index_fill(0, torch.tensor([1]), 0), TOKENS))
    others = [0, 2, 3, 4]
    assert losses[1] == math.inf
    torch.testing.assert_close(losses[others], expected[others])
    gradients = torch.autograd.grad(losses[others].sum(), tensors)
    assert (gradients[0][1] == 0).all() and gradients[0][0].abs().max() > 0
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_only_utterances_without_frames_and_no_utterances_at_all() -> None:
    tensors, targets = random_case(7)
    zeros = torch.zeros(5, dtype=torch.int64)
    assert loss(tensors, targets, 2, 0.1, lengths=(zeros, TOKENS)).tolist() == 5 * [math.inf]
    encoded, predicted, *rest = tensors
    no_frames = loss([encoded[:, :0], predicted, *rest], targets, lengths=(zeros, TOKENS))
    assert no_frames.tolist() == 5 * [math.inf]
    assert (torch.autograd.grad(no_frames.sum(), predicted)[0] == 0).all()
    none = loss([encoded[:0], predicted[:0], *rest], targets[:0], lengths=(zeros[:0], zeros[:0]))
    assert none.shape == (0,)


@pytest.mark.parametrize("left_out", [None, 0.1])
@pytest.mark.parametrize("impossible", [3, 4])
def test_impossible_tokens(impossible: int, left_out: float | None) -> None:
    """An impossible token that is a target leaves no alignment; another one changes nothing but the softmax."""
    tensors, targets = random_case(8)
    targets[:] = torch.tensor([5, 6, 7, 8])
    targets[0, 1] = 3
    with torch.no_grad():
        tensors[3][impossible] = -math.inf
    losses, expected = loss(tensors, targets, 5, left_out), exact(tensors, targets)
    assert losses.isinf().tolist() == expected.isinf().tolist() == [impossible == 3, False, False, False, False]
    torch.testing.assert_close(losses, expected)
    finite = losses.isfinite()
    gradients = torch.autograd.grad(losses.sum(), tensors)
    for ours, other in zip(gradients, torch.autograd.grad(expected[finite].sum(), tensors), strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, other)


def test_logits_that_are_all_impossible() -> None:
    tensors, targets = random_case(9)
    with torch.no_grad():
        tensors[3][:] = -math.inf
    losses = loss(tensors, targets)
    assert losses.isinf().all()
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(losses.sum(), tensors))


def test_a_network_that_is_no_number_gives_no_number() -> None:
    tensors, targets = random_case(9)
    with torch.no_grad():
        tensors[2][1, 1] = math.nan
    assert loss(tensors, targets, 2, 0.1).isnan().all()


def test_under_autocast_only_the_joint_network_is_in_low_precision() -> None:
    tensors, targets = random_case(8, torch.float32)
    single = loss(tensors, targets, 3)
    with torch.autocast("cpu", torch.bfloat16):
        low = loss(tensors, targets, 3)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, single, rtol=0.02, atol=0.02)
    assert (low != single).any()
    rounded = [tensor.detach().bfloat16().requires_grad_() for tensor in tensors]
    torch.testing.assert_close(loss(rounded, targets, 3), low, rtol=0, atol=0)
    wanted = torch.autograd.grad(single.sum(), tensors)
    for gradient, other in zip(torch.autograd.grad(low.sum(), tensors), wanted, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - other).norm() < 0.03 * other.norm()


def test_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, targets = random_case(10)
    expected = loss(tensors, targets, 3)
    wanted = torch.autograd.grad(expected.sum(), tensors)
    monkeypatch.setattr(pruned, "LOGITS", {"cpu": 40})
    losses = loss(tensors, targets, 3)
    torch.testing.assert_close(losses, expected)
    for ours, other in zip(torch.autograd.grad(losses.sum(), tensors), wanted, strict=True):
        torch.testing.assert_close(ours, other)


def test_no_tensor_has_a_number_for_every_node_and_token() -> None:
    """The largest holds those of a chunk of the nodes in the ranges."""
    tensors = [torch.randn(2, 100, 16), torch.randn(2, 21, 16), torch.randn(400, 16), torch.randn(400)]
    leaves = [tensor.requires_grad_() for tensor in tensors]
    targets, lengths = torch.randint(1, 400, (2, 20)), (torch.tensor([100, 90]), torch.tensor([20, 15]))
    with torch.profiler.profile(profile_memory=True) as profile:
        pruned_transducer_loss(*leaves, targets, *lengths, 0, 3).sum().backward()  # type: ignore[call-arg, arg-type]
    events: list[FunctionEvent] = list(profile.events() or [])
    largest = max(event.self_cpu_memory_usage for event in events)
    assert pruned.NODES < 190 * 3
    assert 4 * pruned.NODES * 400 * 0.9 < largest < 4 * pruned.NODES * 400 * 1.1


def test_without_gradients_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, targets = random_case(11)
    results, original = [], pruned._score

    def recording(*arguments: Any) -> Any:
        results.append(original(*arguments))
        return results[-1]

    monkeypatch.setattr(pruned, "_score", recording)
    with torch.no_grad():
        silent = loss(tensors, targets)
    assert results == [[]]
    torch.testing.assert_close(silent, loss(tensors, targets))
    assert results[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 1}, "width of at least 2 positions, got 1"),
        ({"left_out": 0.0}, "between 0 and 1, got 0.0"),
        ({"left_out": 1.5}, "between 0 and 1, got 1.5"),
    ],
)
def test_options_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PrunedLoss(**arguments)


def test_lengths_beyond_the_tensors_are_refused() -> None:
    tensors, targets = random_case(12)
    with pytest.raises(ValueError, match="at most 7 frames and 4 tokens, got lengths up to 8 and 4"):
        loss(tensors, targets, lengths=(FRAMES + 1, TOKENS))
