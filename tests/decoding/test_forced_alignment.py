"""Forced alignment compared with all paths of tables small enough to enumerate."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from asr_lightning.decoding.ctc import forced_alignments

BLANK = 0
Span = tuple[int, int]


def spans_of(path: Sequence[int]) -> tuple[list[int], list[Span]]:
    """The tokens of a path, and the first and last frame of each."""
    runs, frame = [], 0
    for token, run in itertools.groupby(path):
        size = len(list(run))
        runs.append((token, (frame, frame + size - 1)))
        frame += size
    return [token for token, _ in runs if token != BLANK], [span for token, span in runs if token != BLANK]


def by_force(log_probs: Tensor, tokens: Sequence[int]) -> list[list[Span]]:
    """The spans of all best paths that spell the tokens."""
    table = log_probs.tolist()
    paths = [
        (sum(row[token] for row, token in zip(table, path, strict=True)), spans_of(path))
        for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs))
    ]
    fitting = [(score, spans) for score, (spelled, spans) in paths if spelled == list(tokens)]
    best = max((score for score, _ in fitting), default=-float("inf"))
    return [spans for score, spans in fitting if score == best > -float("inf")]


SEQUENCES = [(), (1,), (2, 1), (1, 1), (1, 2, 1), (2, 2, 1), (1, 1, 1, 1)]


@pytest.mark.parametrize("seed", range(5))
def test_the_best_of_all_paths_alone_and_in_company(seed: int) -> None:
    log_probs = torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(seed)).double().log_softmax(dim=2)
    lengths = torch.tensor([5, 3, 0])
    rows, sequences = zip(*itertools.product(range(3), SEQUENCES), strict=True)
    alignments = forced_alignments(log_probs, lengths, rows, sequences, BLANK)
    for row, tokens, spans in zip(rows, sequences, alignments, strict=True):
        best = by_force(log_probs[row, : lengths[row]], tokens)
        assert spans == (best[0] if best else None)
        [alone] = forced_alignments(log_probs[row : row + 1, : lengths[row]], lengths[row : row + 1], [0], [tokens], 0)
        assert alone == spans


@pytest.mark.parametrize("seed", range(20))
def test_among_equals_one_of_the_best_and_always_the_same(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    log_probs = -torch.randint(1, 4, (1, 5, 3), generator=generator).double()  # whole numbers: sums are exact
    for tokens in SEQUENCES:
        best = by_force(log_probs[0], tokens)
        assert max(map(len, best), default=0) <= 4
        for padding in (0, 2):  # padding decides nothing
            padded = torch.cat([log_probs, torch.zeros(1, padding, 3)], dim=1)
            [spans] = forced_alignments(padded, torch.tensor([5]), [0], [tokens], BLANK)
            assert (spans in best) if best else spans is None
            starts = [[first for first, _ in path] for path in best]
            if tokens and best:  # the last token begins as early as it can
                assert spans and spans[-1][0] == min(row[-1] for row in starts)


def test_impossible_tokens_have_no_frame() -> None:
    log_probs = torch.randn(1, 4, 3).log_softmax(dim=2)
    log_probs[0, :, 1] = -float("inf")
    assert forced_alignments(log_probs, torch.tensor([4]), [0, 0], [(1,), (2,)], BLANK)[0] is None
    assert forced_alignments(log_probs * float("nan"), torch.tensor([4]), [0], [(2,)], BLANK) == [None]
    assert forced_alignments(log_probs, torch.tensor([4]), [], [], BLANK) == []
    assert forced_alignments(torch.zeros(1, 3, 1), torch.tensor([3]), [0], [()], BLANK) == [[]]
