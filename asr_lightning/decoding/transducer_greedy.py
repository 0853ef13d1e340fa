"""Greedy search of a transducer, also of audio that comes in pieces, and the networks that a search asks."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from asr_lightning.decoding.hypothesis import Hypothesis

WINDOW = 8  # frames that greedy search looks ahead at once; 4 to 8 was fastest at 16 utterances on a CPU

State = tuple[Tensor, ...]  # each with the batch first


class PredictionNetwork(Protocol):
    """Prediction network: reads the tokens emitted so far, and a blank before the first."""

    def initial_state(self, batch_size: int, device: torch.device) -> State:
        """Return the state before any token."""

    def __call__(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Read token ids (B, U), return (B, U, D) and the new state."""


class JointNetwork(Protocol):
    """Joint network: scores every token for a frame and a history."""

    def __call__(self, encoded: Tensor, predicted: Tensor) -> Tensor:
        """Return logits (..., V) of frames (..., D) and histories (..., D) that broadcast."""


@torch.no_grad()
def greedy_search(
    encoder_outputs: Tensor,
    encoder_lengths: Tensor,
    predictor: PredictionNetwork,
    joint: JointNetwork,
    blank_id: int,
    max_symbols: int = 10,
) -> list[Hypothesis]:
    """Take the most probable symbol at every step.

    Every row has its own position. A blank leaves the history as it was, so a few frames ahead are scored at once and
    the row moves to the first that emits; then the prediction network reads the new tokens of the rows that have one
    [Xu et al. 2024, "Label-looping"].

    Args:
        encoder_outputs: (B, T, D).
        encoder_lengths: (B,) real frames.
        predictor: The prediction network.
        joint: The joint network.
        blank_id: The blank's token id.
        max_symbols: Most tokens emitted in one frame.

    Returns:
        B hypotheses; their scores are those of the one alignment taken.

    Raises:
        ValueError: `max_symbols` is less than 1.
    """
    if max_symbols < 1:
        raise ValueError(f"max_symbols must be at least 1, got {max_symbols}")
    if not encoder_outputs.shape[0] or not encoder_outputs.shape[1]:
        return [Hypothesis((), 0.0) for _ in encoder_outputs]
    state = greedy_state(len(encoder_outputs), predictor, blank_id, encoder_outputs.device)
    return continue_greedy_search(
        encoder_outputs, encoder_lengths, predictor, joint, blank_id, state, max_symbols=max_symbols
    )[0]


class GreedyState(NamedTuple):
    """State of greedy search over B utterances, after a piece of their frames.

    Attributes:
        predicted: Output of the prediction network after the last token, (B, 1, D).
        state: State of the prediction network.
    """

    predicted: Tensor
    state: State


@torch.no_grad()
def greedy_state(batch_size: int, predictor: PredictionNetwork, blank_id: int, device: torch.device) -> GreedyState:
    """Return the state of greedy search before any frame."""
    start = torch.full((batch_size, 1), blank_id, device=device)
    return GreedyState(*predictor(start, predictor.initial_state(batch_size, device)))


@torch.no_grad()
def continue_greedy_search(
    encoder_outputs: Tensor,
    encoder_lengths: Tensor,
    predictor: PredictionNetwork,
    joint: JointNetwork,
    blank_id: int,
    state: GreedyState,
    max_symbols: int = 10,
) -> tuple[list[Hypothesis], GreedyState]:
    """Search the next frames of utterances: piece by piece, what `greedy_search` finds in all frames at once.

    Args:
        encoder_outputs: (B, T, D).
        encoder_lengths: (B,) real frames.
        predictor: The prediction network.
        joint: The joint network.
        blank_id: The blank's token id.
        state: As `greedy_state` or the piece before gave it.
        max_symbols: Most tokens emitted in one frame.

    Returns:
        B hypotheses of the new frames alone, which are counted from 0, and the state after them.

    Raises:
        ValueError: `max_symbols` is less than 1.
    """
    if max_symbols < 1:
        raise ValueError(f"max_symbols must be at least 1, got {max_symbols}")
    batch_size, device = len(encoder_outputs), encoder_outputs.device
    if not batch_size or not encoder_outputs.shape[1]:
        return [Hypothesis((), 0.0) for _ in encoder_outputs], state
    lengths = encoder_lengths.to(device=device, dtype=torch.int64)
    offsets = torch.arange(WINDOW, device=device)
    position, symbols = lengths.new_zeros(2, batch_size)  # the frame of each row, and the tokens emitted in it
    scores = torch.zeros(batch_size, device=device)
    predicted, memory = state  # (B, 1, D)
    emitted: list[Tensor] = []
    certainties: list[Tensor] = []

    while len(rows := (position < lengths).nonzero().squeeze(1)):
        frames = position[rows].unsqueeze(1) + offsets  # (B, WINDOW)
        valid = frames < lengths[rows].unsqueeze(1)
        encoded = encoder_outputs[rows.unsqueeze(1), frames.clamp(max=encoder_outputs.shape[1] - 1)]
        log_probs = joint(encoded, predicted[rows]).float().log_softmax(dim=2)  # (B, WINDOW, V)
        best, tokens = log_probs.max(dim=2)
        full = symbols[rows] >= max_symbols
        tokens[:, 0] = tokens[:, 0].masked_fill(full, blank_id)
        best[:, 0] = torch.where(full, log_probs[:, 0, blank_id], best[:, 0])

        emits = (tokens != blank_id) & valid
        visited = valid & (emits.cumsum(dim=1) - emits.int() == 0)  # up to the first that emits
        advance = (visited & ~emits).sum(dim=1)
        scores[rows] += torch.where(visited, best, 0.0).sum(dim=1)
        position[rows] += advance
        symbols[rows] = torch.where(advance > 0, 0, symbols[rows])
        emitting = emits.any(dim=1).nonzero().squeeze(1)
        if len(emitting):
            emitting_rows, token = rows[emitting], tokens[emitting, advance[emitting]]
            symbols[emitting_rows] += 1
            emitted.append(torch.stack([emitting_rows, token, position[emitting_rows]]))
            certainties.append(best[emitting, advance[emitting]])
            output, new_memory = predictor(token.unsqueeze(1), tuple(part[emitting_rows] for part in memory))
            predicted = predicted.index_copy(0, emitting_rows, output)
            memory = tuple(part.index_copy(0, emitting_rows, new) for part, new in zip(memory, new_memory, strict=True))

    return _collect(emitted, certainties, scores), GreedyState(predicted, memory)


def _collect(emitted: list[Tensor], certainties: list[Tensor], scores: Tensor) -> list[Hypothesis]:
    """Sort emissions into the rows with the given scores (B,).

    Args:
        emitted: Each (3, N) of rows, tokens and frames.
        certainties: Each (N,), their log probabilities.
        scores: Of the hypotheses.
    """
    tokens: list[list[int]] = [[] for _ in scores]
    frames: list[list[int]] = [[] for _ in scores]
    log_probs: list[list[float]] = [[] for _ in scores]
    if emitted:
        emissions = zip(torch.cat(emitted, dim=1).T.tolist(), torch.cat(certainties).tolist(), strict=True)
        for (row, token, frame), log_prob in emissions:
            tokens[row].append(token)
            frames[row].append(frame)
            log_probs[row].append(log_prob)
    return [
        Hypothesis(tuple(t), s, tuple(f), log_probs=tuple(p))
        for t, s, f, p in zip(tokens, scores.tolist(), frames, log_probs, strict=True)
    ]
