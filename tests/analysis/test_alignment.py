from itertools import product

import numpy as np
import pytest
import torch

from asr_lightning.analysis.alignment import attention_figures, forced_alignment, segments_from_onsets
from asr_lightning.text.phones import Segment


@pytest.mark.parametrize("tokens", [(1,), (1, 2), (1, 1), (2, 1, 2), (1, 1, 2)])
def test_the_best_path_is_that_of_all(tokens: tuple[int, ...]) -> None:
    torch.manual_seed(len(tokens))
    log_probs = torch.randn(6, 3).log_softmax(dim=1)

    def said(path: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(one for before, one in zip((0, *path), path, strict=False) if one not in (0, before))

    paths = [path for path in product(range(3), repeat=6) if said(path) == tokens]
    best = max(paths, key=lambda path: sum(float(log_probs[frame, one]) for frame, one in enumerate(path)))
    spans = forced_alignment(log_probs, tokens, 0)
    assert spans is not None
    rebuilt = [0] * 6
    for token, (first, last) in zip(tokens, spans, strict=True):
        rebuilt[first : last + 1] = [token] * (last + 1 - first)
    assert tuple(rebuilt) == best


def test_what_does_not_fit_has_no_alignment() -> None:
    log_probs = torch.randn(2, 3).log_softmax(dim=1)
    assert forced_alignment(log_probs, (1, 1), 0) is None
    assert forced_alignment(log_probs, (1, 2, 1), 0) is None
    assert forced_alignment(log_probs, (), 0) == []


def test_labels_last_until_the_next() -> None:
    assert segments_from_onsets([0.1, 0.4], ["A", "B"], 1.0) == [Segment(0.1, 0.4, "A"), Segment(0.4, 1.0, "B")]
    assert segments_from_onsets([], [], 1.0) == []


def test_attention_along_the_diagonal_and_everywhere() -> None:
    diagonal = attention_figures(np.eye(8))
    assert (diagonal.monotonicity, diagonal.coverage, diagonal.sharpness) == (1.0, 1.0, 1.0)
    assert diagonal.spread == 0.0
    even = attention_figures(np.full((4, 8), 1 / 8))
    assert even.spread == pytest.approx(np.log(8))
    backwards = attention_figures(np.eye(8)[::-1])
    assert backwards.monotonicity == 0.0
    stuck = attention_figures(np.eye(8)[[3] * 5])
    assert stuck.coverage == pytest.approx(1 / 8)
    with pytest.raises(ValueError, match="got the shape"):
        attention_figures(np.zeros((0, 5)))
