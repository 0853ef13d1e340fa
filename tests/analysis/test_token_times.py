from collections.abc import Iterator
from itertools import combinations_with_replacement, product

import numpy as np
import pytest
import torch

from asr_lightning.analysis.token_times import (
    attention_figures,
    emission_probabilities,
    segments_from_onsets,
    token_spans,
)
from asr_lightning.text.phones import Segment


@pytest.mark.parametrize("tokens", [(1,), (1, 2), (1, 1), (2, 1, 2), (1, 1, 2)])
def test_the_best_path_is_that_of_all(tokens: tuple[int, ...]) -> None:
    torch.manual_seed(len(tokens))
    log_probs = torch.randn(6, 3).log_softmax(dim=1)

    def collapse(path: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(token for previous, token in zip((0, *path), path, strict=False) if token not in (0, previous))

    paths = [path for path in product(range(3), repeat=6) if collapse(path) == tokens]
    best = max(paths, key=lambda path: sum(float(log_probs[frame, token]) for frame, token in enumerate(path)))
    spans = token_spans(log_probs, tokens, 0)
    assert spans is not None
    rebuilt = [0] * 6
    for token, (first, last) in zip(tokens, spans, strict=True):
        rebuilt[first : last + 1] = [token] * (last + 1 - first)
    assert tuple(rebuilt) == best


def test_what_does_not_fit_has_no_alignment() -> None:
    log_probs = torch.randn(2, 3).log_softmax(dim=1)
    assert token_spans(log_probs, (1, 1), 0) is None
    assert token_spans(log_probs, (1, 2, 1), 0) is None
    assert token_spans(log_probs, (), 0) == []


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


@pytest.mark.parametrize("tokens", [(1,), (1, 2), (2, 2, 1)])
def test_emissions_of_a_transducer_are_the_gradient_of_its_loss(tokens: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    logits = torch.randn(5, len(tokens) + 1, 3)
    probabilities = emission_probabilities(logits, tokens, 0)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(len(tokens)))  # each is emitted once
    # of log probabilities, the gradient of the log likelihood is how often each is used
    log_probs = logits.double().log_softmax(dim=2).requires_grad_()
    total = torch.logsumexp(torch.stack(list(walks(log_probs, tokens))), dim=0)
    (used,) = torch.autograd.grad(total, log_probs)
    expected = torch.stack([used[:, index, token] for index, token in enumerate(tokens)])
    torch.testing.assert_close(probabilities, expected.float(), rtol=1e-4, atol=1e-6)


def walks(log_probs: torch.Tensor, tokens: tuple[int, ...]) -> Iterator[torch.Tensor]:
    """The log probability of every alignment: at which frame each token is emitted."""
    frames = len(log_probs)
    for onsets in combinations_with_replacement(range(frames), len(tokens)):
        total, emitted = log_probs.new_zeros(()), 0
        for frame in range(frames):
            while emitted < len(tokens) and onsets[emitted] == frame:
                total = total + log_probs[frame, emitted, tokens[emitted]]
                emitted += 1
            total = total + log_probs[frame, emitted, 0]
        yield total
