import itertools
import math

import pytest
import torch
from torch import Tensor

from asr_lightning.decoding.ctc import CTCPrefixScorer

BLANK, END = 0, 2  # of 5 tokens; 1, 3 and 4 are letters
LETTERS = (1, 3, 4)


def logits_of(frames: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(2, frames, 5, generator=torch.Generator().manual_seed(seed))


def collapse(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(token for token, _ in itertools.groupby(path) if token != BLANK)


def by_text(log_probs: Tensor) -> dict[tuple[int, ...], float]:
    """The probability of every text, from all paths (T, V)."""
    probabilities: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        probability = math.exp(sum(float(log_probs[frame, token]) for frame, token in enumerate(path)))
        probabilities[collapse(path)] = probabilities.get(collapse(path), 0.0) + probability
    return probabilities


def scores_along(logits: Tensor, lengths: Tensor, tokens: tuple[int, ...]) -> list[Tensor]:
    """Scores (B, V) before each token and after the last one, with the same tokens for both utterances."""
    scorer = CTCPrefixScorer(BLANK, END)
    memory = scorer.remember(logits, lengths)
    state = scorer.initial_state(memory)
    scores = []
    for token in (END, *tokens):
        following, state = scorer.step(torch.tensor([token] * len(logits)), state, memory)
        scores.append(following)
    return scores


@pytest.mark.parametrize("tokens", [(), (1,), (3, 3), (1, 4, 1), (4, 4, 3)])
def test_scores_are_sums_over_all_paths(tokens: tuple[int, ...]) -> None:
    logits, lengths = logits_of(5), torch.tensor([5, 3])
    scores = scores_along(logits, lengths, tokens)
    for row in range(2):
        texts = by_text(logits[row, : lengths[row]].log_softmax(dim=1))

        def prefix(start: tuple[int, ...], texts: dict[tuple[int, ...], float] = texts) -> float:
            return sum(probability for text, probability in texts.items() if text[: len(start)] == start)

        total = 0.0
        for index, token in enumerate(tokens):
            total += float(scores[index][row, token])
        if prefix(tokens) == 0.0:  # more tokens than frames can carry
            assert total == -math.inf
            continue
        assert total == pytest.approx(math.log(prefix(tokens)), abs=1e-5)
        for letter in LETTERS:
            expected = prefix((*tokens, letter)) / prefix(tokens)
            assert math.exp(scores[-1][row, letter]) == pytest.approx(expected, abs=1e-6)
        assert math.exp(scores[-1][row, END]) == pytest.approx(texts.get(tokens, 0.0) / prefix(tokens), abs=1e-6)
        assert scores[-1][row, BLANK] == -math.inf


@pytest.mark.parametrize("tokens", [(), (1,), (3,), (1, 1), (3, 4), (1, 3, 4, 1)])
def test_what_is_impossible_in_a_frame_is_possible_in_others(tokens: tuple[int, ...]) -> None:
    logits, lengths = logits_of(4), torch.tensor([4, 3])
    for place in ((0, 1, 3), (0, 2, BLANK), (1, 0, 1), (1, 2, BLANK)):
        logits[place] = -math.inf
    scores = scores_along(logits, lengths, tokens)
    for row in range(2):
        total = sum(float(scores[index][row, token]) for index, token in enumerate((*tokens, END)))
        probability = by_text(logits[row, : lengths[row]].log_softmax(dim=1)).get(tokens, 0.0)
        assert total == (pytest.approx(math.log(probability), abs=1e-5) if probability else -math.inf)


def test_the_whole_is_torchs_ctc_loss_also_of_a_long_utterance() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = 6 * torch.randn(2, 400, 5, generator=generator)
    tokens = tuple(LETTERS[int(index)] for index in torch.randint(3, (60,), generator=generator))
    lengths = torch.tensor([400, 310])
    scores = scores_along(logits, lengths, tokens)
    total = sum(scores[index][:, token] for index, token in enumerate((*tokens, END)))
    expected = torch.nn.functional.ctc_loss(
        logits.double().log_softmax(dim=2).transpose(0, 1),
        torch.tensor([tokens] * 2),
        lengths,
        torch.tensor([60, 60]),
        reduction="none",
    )
    torch.testing.assert_close(-total.double(), expected, rtol=1e-4, atol=1e-3)


def test_hypotheses_of_an_utterance_stand_side_by_side() -> None:
    logits, lengths = logits_of(6, seed=1), torch.tensor([6, 4])
    scorer = CTCPrefixScorer(BLANK, END)
    memory = scorer.remember(logits, lengths)
    state = tuple(part.repeat_interleave(2, dim=0) for part in scorer.initial_state(memory))
    _, state = scorer.step(torch.full((4,), END), state, memory)
    scores, _ = scorer.step(torch.tensor([1, 3, 4, 1]), state, memory)
    for row, (utterance, token) in enumerate([(0, 1), (0, 3), (1, 4), (1, 1)]):
        alone = scores_along(logits, lengths, (token,))[-1][utterance]
        torch.testing.assert_close(scores[row], alone)


def test_padding_is_not_heard() -> None:
    logits, lengths = logits_of(6, seed=2), torch.tensor([6, 4])
    padded = torch.where(torch.arange(6)[None, :, None] < lengths[:, None, None], logits, torch.full_like(logits, 9.0))
    for first, second in zip(scores_along(logits, lengths, (1, 3)), scores_along(padded, lengths, (1, 3)), strict=True):
        assert torch.equal(first, second)
