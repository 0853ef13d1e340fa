"""Tests of the kernels by Triton's interpreter, on a CPU: test_transducer_kernels.py runs them in a process of its own.

TRITON_INTERPRET=1 has to be set before Triton is imported. Kernels that were interpreted cannot be compiled any more.
"""

import itertools
import math
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from asr_lightning.losses.transducer import joint, kernels, lattice
from asr_lightning.losses.transducer.joint import joint_transducer_loss, whole_blocks
from asr_lightning.losses.transducer.lattice import Block
from asr_lightning.losses.transducer.logits import transducer_loss
from asr_lightning.nn.sequences import real_frames

assert os.environ.get("TRITON_INTERPRET") == "1"

FRAMES, TOKENS = torch.tensor([5, 4, 0, 1, 5]), torch.tensor([2, 4, 3, 1, 0])
LENGTHS, LATTICE = (FRAMES, TOKENS), (5, 5, 5)  # places are not a power of two
BLOCKS: list[Block] = [(slice(0, 5), frames, slice(0, 5)) for frames in (slice(0, 2), slice(2, 5))]
REAL = real_frames(FRAMES, 5).unsqueeze(2) & real_frames(TOKENS + 1, 5).unsqueeze(1)
TYPES = [torch.float32, torch.bfloat16]


def close(ours: Tensor, exact: Tensor) -> None:
    """Compare with a result in float32 or better: what is rounded, is rounded once."""
    assert ours.shape == exact.shape
    torch.testing.assert_close(ours.double(), exact.double(), rtol=max(1e-5, torch.finfo(ours.dtype).eps), atol=2e-6)


@pytest.fixture(params=[(4096, 1024), (256, 16)], ids=str)
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles as they are, and small ones: several for the places of a block, and several for the tokens of a place."""
    monkeypatch.setattr(kernels, "TILE", request.param[0])
    monkeypatch.setattr(kernels, "COLUMNS", request.param[1])


def random(*size: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("dimension", [5, 40])
def test_hidden_units(tiles: None, dimension: int, dtype: torch.dtype) -> None:
    encoded, predicted = random(5, 5, dimension, dtype=dtype), 4 * random(5, 5, dimension, dtype=dtype, seed=2)
    for block in BLOCKS:
        ours = kernels.hidden_units(encoded, predicted, block)
        assert ours.dtype == dtype
        close(ours, lattice.hidden_units(encoded.float(), predicted.float(), block))


def test_the_hyperbolic_tangent_is_exact_to_the_rounding_of_single_precision() -> None:
    x = torch.cat(
        [torch.linspace(-12, 12, 4001), torch.logspace(-30, 0, 200), torch.tensor([0.0, 0.25, 90.0, math.inf])]
    )
    encoded, predicted = x.view(1, 1, -1), torch.zeros(1, 1, len(x))
    ours = kernels.hidden_units(encoded, predicted, (slice(0, 1), slice(0, 1), slice(0, 1))).flatten()
    torch.testing.assert_close(ours.double(), x.double().tanh(), rtol=4e-7, atol=0)
    assert kernels.hidden_units(encoded * math.nan, predicted, (slice(0, 1),) * 3).isnan().all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("vocabulary", [3, 37])
def test_scores(tiles: None, vocabulary: int, dtype: torch.dtype) -> None:
    logits, targets = 3 * random(5, 5, 5, vocabulary, dtype=dtype), torch.arange(25).view(5, 5) % vocabulary
    logits[0, 0, 0, :2], logits[1, 0, 0, -2:] = -math.inf, -math.inf
    logits[1, 1, 1, :] = 60.0
    outputs = tuple(torch.full(LATTICE, math.nan) for _ in range(3))
    for block in BLOCKS:
        kernels.score(logits[block].contiguous(), targets, LENGTHS, 1, block, outputs)  # type: ignore[arg-type]
    logs = logits.double().log_softmax(dim=3)
    close(outputs[0][REAL], logits.double().logsumexp(dim=3)[REAL])
    close(outputs[1][REAL], logs[..., 1][REAL])
    close(outputs[2][REAL], logs.gather(3, targets[:, None, :, None].expand(-1, 5, -1, -1)).squeeze(3)[REAL])
    assert all(x[~REAL].isnan().all() for x in outputs)  # nothing is written there


def test_scores_of_what_is_no_number_and_of_tokens_that_do_not_exist_are_none() -> None:
    logits, targets = random(5, 5, 5, 9), torch.zeros(5, 5, dtype=torch.int64)
    logits[0, 0, 0, 4], targets[1, 2], targets[1, 3] = math.nan, 9, -1
    outputs = tuple(torch.zeros(LATTICE) for _ in range(3))
    kernels.score(logits, targets, LENGTHS, 1, (slice(0, 5),) * 3, outputs)  # type: ignore[arg-type]
    assert outputs[0].isnan().nonzero().tolist() == [[0, 0, 0]]
    unknown = [[1, frame, position] for frame in range(4) for position in (2, 3)]
    assert outputs[2].isnan().nonzero().tolist() == [[0, 0, 0], *unknown]


def walks(blank: Tensor, label: Tensor, frames: int, tokens: int) -> tuple[float, Tensor, Tensor]:
    """Return loss and occupancies by going through all alignments."""
    by_blank, by_label, total = torch.zeros_like(blank), torch.zeros_like(blank), 0.0
    for moments in itertools.combinations_with_replacement(range(frames), tokens):  # the frame of each token
        emissions = [(frame, index) for index, frame in enumerate(moments)]
        blanks = [(frame, sum(moment <= frame for moment in moments)) for frame in range(frames)]
        cost = sum(float(label[node]) for node in emissions) + sum(float(blank[node]) for node in blanks)
        total += math.exp(cost)
        for node in emissions:
            by_label[node] += math.exp(cost)
        for node in blanks:
            by_blank[node] += math.exp(cost)
    return -math.log(total), by_blank / total, by_label / total


def test_occupancies_are_those_of_all_alignments() -> None:
    blank, label = random(*LATTICE).sigmoid().log(), random(*LATTICE, seed=2).sigmoid().log()
    losses, by_blank, by_label = kernels.occupancies(blank, label, *LENGTHS)
    assert losses.dtype == torch.float64 and by_blank.dtype == torch.float32
    for row, (frames, tokens) in enumerate(zip(FRAMES.tolist(), TOKENS.tolist(), strict=True)):
        if frames:
            loss, *both = walks(blank[row].double(), label[row].double(), frames, tokens)
            assert float(losses[row]) == pytest.approx(loss, rel=1e-12)
            close(by_blank[row], both[0])
            close(by_label[row], both[1])
    assert losses[2] == math.inf and (by_blank[2] == 0).all() and (by_label[2] == 0).all()


@pytest.mark.parametrize("positions", [1, 8, 21])
def test_occupancies_are_those_of_plain_operations(positions: int) -> None:
    blank, label = -40 * random(3, 12, positions).square(), -40 * random(3, 12, positions, seed=2).square()
    lengths = torch.tensor([12, 5, 11]), torch.tensor([positions - 1, positions // 2, 0])
    expected = lattice.occupancies(blank, label, *lengths)
    ours = kernels.occupancies(blank, label, *lengths)
    torch.testing.assert_close(ours[0], expected[0], rtol=1e-12, atol=0)
    close(ours[1], expected[1])
    close(ours[2], expected[2])


def test_impossible_blanks_and_tokens_have_no_part() -> None:
    blank, label = random(*LATTICE).sigmoid().log(), random(*LATTICE, seed=2).sigmoid().log()
    blank[0, 1, 0] = label[0, 0, 0] = label[1, 2, 1] = label[3, :, 0] = blank[4, 2, 0] = -math.inf  # 3 and 4: no way
    expected = lattice.occupancies(blank, label, *LENGTHS)
    ours = kernels.occupancies(blank, label, *LENGTHS)
    assert ours[0].isinf().tolist() == expected[0].isinf().tolist() == [False, False, True, True, True]
    torch.testing.assert_close(ours[0], expected[0], rtol=1e-12, atol=0)
    for result, reference in zip(ours[1:], expected[1:], strict=True):
        close(result, reference)
        assert (result[2:] == 0).all()


def test_scores_where_nothing_is_possible(tiles: None) -> None:
    logits, targets = random(5, 5, 5, 37), torch.zeros(5, 5, dtype=torch.int64)
    logits[0, 0, 0] = -math.inf
    outputs, plain = ([torch.zeros(LATTICE) for _ in range(3)] for _ in range(2))
    block = (slice(0, 5),) * 3
    kernels.score(logits, targets, LENGTHS, 1, block, outputs)  # type: ignore[arg-type]
    lattice.score(logits, targets, LENGTHS, 1, block, plain)  # type: ignore[arg-type]
    assert [float(x[0, 0, 0]) for x in outputs] == [float(x[0, 0, 0]) for x in plain] == [0.0, -math.inf, -math.inf]


def test_lengths_beyond_the_lattice_give_no_number() -> None:
    blank, label = random(2, 4, 3), random(2, 4, 3, seed=2)
    losses, *both = kernels.occupancies(blank, label, torch.tensor([5, 4]), torch.tensor([2, 3]))
    assert losses.isnan().all() and all(x.isnan().any(dim=2).all() for x in both)


def test_of_a_long_transcript_plain_operations_take_care(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asr_lightning.losses.transducer.kernels.LONGEST", 4)
    blank, label = random(*LATTICE).sigmoid().log(), random(*LATTICE, seed=2).sigmoid().log()
    ours = kernels.occupancies(blank, label, *LENGTHS)
    for result, reference in zip(ours, lattice.occupancies(blank, label, *LENGTHS), strict=True):
        torch.testing.assert_close(result, reference.to(result.dtype), rtol=0, atol=0)
    assert ours[1].dtype == torch.float32


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("vocabulary", [3, 37])
def test_errors(tiles: None, vocabulary: int, dtype: torch.dtype) -> None:
    targets, gradient = torch.arange(25).view(5, 5) % vocabulary, torch.tensor(2.0).expand(5)
    visits = [random(*LATTICE, seed=seed).sigmoid().masked_fill(~REAL, 0.0) for seed in (2, 3)]
    visits[0][0, 1, 1] = visits[1][0, 1, 1] = 0.4 * lattice.negligible(visits[0])
    normalizer = random(*LATTICE, seed=4) + math.log(vocabulary)
    arguments = targets, 1, normalizer, visits[0], visits[1], gradient
    for block in BLOCKS:
        logits = random(*normalizer[block].shape, vocabulary, dtype=dtype)
        expected, of_bias = lattice.errors(logits.float().clone(), *arguments, block)
        ours, of_our_bias = kernels.errors(logits, *arguments, block)
        assert ours.data_ptr() == logits.data_ptr() and ours.dtype == dtype
        close(ours, expected)
        close(of_our_bias, of_bias)
        assert (ours[~REAL[block]] == 0).all()
    visits[0][1, 2, 2] = math.nan  # a NaN is not overlooked
    ours, _ = kernels.errors(random(5, 3, 5, vocabulary, dtype=dtype), *arguments, BLOCKS[1])
    assert ours[1, 0, 2].isnan().all() and ours.isnan().any(dim=3).sum() == 1


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [(2, 3, 4, 70), (2, 17, 33, 5)], ids=str)
def test_sums(size: tuple[int, ...], dtype: torch.dtype) -> None:
    of_hidden, hidden = random(*size, dtype=dtype), random(*size, dtype=dtype, seed=2).tanh()
    ours = kernels.sums(of_hidden, hidden)
    assert all(x.dtype == torch.float32 for x in ours)
    for result, exact in zip(ours, lattice.sums(of_hidden.double(), hidden.double()), strict=True):
        close(result, exact)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 0.02)])
def test_loss_and_gradients(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, tolerance: float) -> None:
    """The whole operator as on a GPU, against double precision on the logits of all positions."""

    def blocks_of(vocabulary: int, *_: Any) -> Iterator[Block]:
        return whole_blocks(LATTICE, vocabulary)

    tensors = [random(*size, seed=seed) for seed, size in enumerate(((5, 5, 6), (5, 5, 6), (11, 6), (11,)))]
    tensors = [tensor.to(dtype).requires_grad_() for tensor in tensors]
    targets, weights = torch.arange(20).view(5, 4) % 10 + 1, torch.tensor([1.0, -2.0, 0.0, 3.0, 1.5])
    monkeypatch.setattr(joint, "operations_for", lambda _: kernels)
    monkeypatch.setattr(joint, "real_blocks", blocks_of)
    monkeypatch.setattr(joint, "LOGITS", {"cuda": 2 * 5 * 5 * 11})  # two frames
    losses = joint_transducer_loss(*tensors, targets, *LENGTHS, 0)  # type: ignore[call-arg, arg-type]
    gradients = torch.autograd.grad(losses, tensors, weights)
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    logits = torch.tanh(exact[0].unsqueeze(2) + exact[1].unsqueeze(1)) @ exact[2].T + exact[3]
    expected = transducer_loss(logits, targets, *LENGTHS, 0)
    assert losses.dtype == torch.float32 and losses[2] == math.inf
    torch.testing.assert_close(losses.double(), expected, rtol=tolerance, atol=0)
    for ours, wanted in zip(gradients, torch.autograd.grad(expected, exact, weights.double()), strict=True):
        assert ours.dtype == dtype
        assert (ours - wanted).abs().max() < tolerance * wanted.abs().max()
