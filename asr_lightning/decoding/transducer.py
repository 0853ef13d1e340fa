"""Search for what a transducer heard [Graves 2012, "Sequence transduction with recurrent neural networks"].

A transducer's alignment is a walk over the frames: in each it emits some tokens, then a blank that goes on to the next
frame. The score of an alignment is the log probability of all that it emits, blanks included; a frame that holds its
`max_symbols` tokens takes the blank at its own probability, so scores are those of the transducer loss.
"""

import heapq
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from asr_lightning.decoding.hypothesis import Hypothesis
from asr_lightning.errors import InputError

WINDOW = 8  # frames that greedy search looks ahead at once; 4 to 8 was fastest at 16 utterances on a CPU

State = tuple[Tensor, ...]  # each with the batch first
Tokens = tuple[int, ...]


class Walks(NamedTuple):
    """The alignments found of a token sequence.

    Attributes:
        score: Natural log of their summed probability.
        best: That of the most probable one; of equal ones, that whose last tokens come earlier.
        frames: In which it emits each token.
    """

    score: float
    best: float
    frames: Tokens

    def longer(self, log_prob: float, frame: int | None = None) -> "Walks":
        """Return all of them one symbol longer: by a token in a frame, or by a blank."""
        frames = self.frames if frame is None else (*self.frames, frame)
        return Walks(self.score + log_prob, self.best + log_prob, frames)

    def joined(self, other: "Walks") -> "Walks":
        """Return them together with others of the same tokens."""
        leader = self if self.best >= other.best else other
        return Walks(_log_add(self.score, other.score), leader.best, leader.frames)


Beam = dict[Tokens, Walks]


class PredictionNetwork(Protocol):
    """Reads the tokens emitted so far; a blank stands before the first."""

    def initial_state(self, batch_size: int, device: torch.device) -> State:
        """Return the state before any token."""

    def __call__(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Read token ids (B, U), return (B, U, D) and the state behind them."""


class JointNetwork(Protocol):
    """Scores every token for a frame and a history."""

    def __call__(self, encoded: Tensor, predicted: Tensor) -> Tensor:
        """Return logits (..., V) of frames (..., D) and histories (..., D) that broadcast."""


class TransducerSearch:
    """How to decode a transducer.

    Args:
        beam: Hypotheses kept; 1 is greedy.
        max_symbols: Most tokens emitted in one frame.

    Raises:
        InputError: A number is below 1.
    """

    def __init__(self, beam: int = 1, max_symbols: int = 10) -> None:
        if beam < 1 or max_symbols < 1:
            raise InputError(
                f"TransducerSearch needs beam >= 1 and max_symbols >= 1, got beam={beam} and max_symbols={max_symbols}"
            )
        self.beam = beam
        self.max_symbols = max_symbols

    def __call__(
        self,
        encoder_outputs: Tensor,
        encoder_lengths: Tensor,
        predictor: PredictionNetwork,
        joint: JointNetwork,
        blank_id: int,
    ) -> list[list[Hypothesis]]:
        """Return for each of the B utterances at most `beam` hypotheses, the best first."""
        arguments = (encoder_outputs, encoder_lengths, predictor, joint, blank_id)
        if self.beam == 1:
            return [[best] for best in greedy_search(*arguments, max_symbols=self.max_symbols)]
        return beam_search(*arguments, beam=self.beam, max_symbols=self.max_symbols)


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

    Every row has its own place. A blank leaves the history as it was, so a few frames ahead are scored at once and the
    row moves to the first that emits; then the prediction network reads the new tokens of the rows that have one
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
    batch_size, device = len(encoder_outputs), encoder_outputs.device
    if not batch_size or not encoder_outputs.shape[1]:
        return [Hypothesis((), 0.0) for _ in range(batch_size)]
    lengths = encoder_lengths.to(device=device, dtype=torch.int64)
    ahead = torch.arange(WINDOW, device=device)
    place, symbols = lengths.new_zeros(2, batch_size)  # the frame of each row, and the tokens emitted in it
    scores = torch.zeros(batch_size, device=device)
    start = torch.full((batch_size, 1), blank_id, device=device)
    predicted, state = predictor(start, predictor.initial_state(batch_size, device))  # (B, 1, D)
    emitted: list[Tensor] = []

    while len(rows := (place < lengths).nonzero().squeeze(1)):
        frames = place[rows].unsqueeze(1) + ahead  # (B, WINDOW)
        real = frames < lengths[rows].unsqueeze(1)
        encoded = encoder_outputs[rows.unsqueeze(1), frames.clamp(max=encoder_outputs.shape[1] - 1)]
        log_probs = joint(encoded, predicted[rows]).float().log_softmax(dim=2)  # (B, WINDOW, V)
        best, tokens = log_probs.max(dim=2)
        full = symbols[rows] >= max_symbols
        tokens[:, 0] = tokens[:, 0].masked_fill(full, blank_id)
        best[:, 0] = torch.where(full, log_probs[:, 0, blank_id], best[:, 0])

        speaks = (tokens != blank_id) & real
        taken = real & (speaks.cumsum(dim=1) - speaks.int() == 0)  # up to the first that emits
        moved = (taken & ~speaks).sum(dim=1)
        scores[rows] += torch.where(taken, best, 0.0).sum(dim=1)
        place[rows] += moved
        symbols[rows] = torch.where(moved > 0, 0, symbols[rows])
        chosen = speaks.any(dim=1).nonzero().squeeze(1)
        if len(chosen):
            speakers, token = rows[chosen], tokens[chosen, moved[chosen]]
            symbols[speakers] += 1
            emitted.append(torch.stack([speakers, token, place[speakers]]))
            output, after = predictor(token.unsqueeze(1), tuple(part[speakers] for part in state))
            predicted = predicted.index_copy(0, speakers, output)
            state = tuple(part.index_copy(0, speakers, new) for part, new in zip(state, after, strict=True))

    return _collect(emitted, scores)


def _collect(emitted: list[Tensor], scores: Tensor) -> list[Hypothesis]:
    """Sort what was emitted, each (3, N) of rows, tokens and frames, into the rows with the given scores (B,)."""
    tokens: list[list[int]] = [[] for _ in scores]
    frames: list[list[int]] = [[] for _ in scores]
    for row, token, frame in torch.cat(emitted, dim=1).T.tolist() if emitted else []:
        tokens[row].append(token)
        frames[row].append(frame)
    return [Hypothesis(tuple(t), s, tuple(f)) for t, s, f in zip(tokens, scores.tolist(), frames, strict=True)]


@torch.no_grad()
def beam_search(
    encoder_outputs: Tensor,
    encoder_lengths: Tensor,
    predictor: PredictionNetwork,
    joint: JointNetwork,
    blank_id: int,
    beam: int = 8,
    max_symbols: int = 5,
) -> list[list[Hypothesis]]:
    """Keep the most probable token sequences after every frame.

    Alignments that spell the same tokens are one hypothesis with the sum of their probabilities. Within a frame,
    hypotheses that fall behind the `beam` best that have already left it are not followed further.

    Args:
        encoder_outputs: (B, T, D).
        encoder_lengths: (B,) real frames.
        predictor: The prediction network.
        joint: The joint network.
        blank_id: The blank's token id.
        beam: Most hypotheses kept of an utterance.
        max_symbols: Most tokens emitted in one frame.

    Returns:
        For each of B utterances at most `beam` hypotheses with different tokens, best first. A score sums all
        alignments found, so it is at most the negative transducer loss; the frames are those of the most probable of
        these alignments.

    Raises:
        ValueError: `beam` or `max_symbols` is less than 1.
    """
    if beam < 1 or max_symbols < 1:
        raise ValueError(f"beam and max_symbols must be at least 1, got beam {beam} and max_symbols {max_symbols}")
    lengths = encoder_lengths.tolist()
    histories = _Histories(predictor, blank_id, encoder_outputs.device)
    beams: list[Beam] = [{(): Walks(0.0, 0.0, ())} for _ in lengths]
    for frame in range(max(lengths, default=0)):
        rows = [row for row, length in enumerate(lengths) if frame < length]
        encoded = encoder_outputs[rows, frame]  # (B, D) of the rows that have this frame
        passed = _pass_frame(
            frame, encoded, [beams[row] for row in rows], histories, joint, blank_id, beam, max_symbols
        )
        for row, survivors in zip(rows, passed, strict=True):
            beams[row] = survivors
        histories.forget_all_but(tokens for row in rows for tokens in beams[row])
    return [
        [Hypothesis(tokens, walks.score, walks.frames) for tokens, walks in _best(hypotheses.items(), beam)]
        for hypotheses in beams
    ]


class _Histories:
    """What the prediction network makes of token sequences; each is read once, whichever utterance it belongs to."""

    def __init__(self, predictor: PredictionNetwork, blank_id: int, device: torch.device) -> None:
        self.predictor = predictor
        self.device = device
        start = torch.full((1, 1), blank_id, device=device)
        outputs, state = predictor(start, predictor.initial_state(1, device))
        self.read: dict[Tokens, tuple[Tensor, State]] = {(): (outputs[0, 0], tuple(part[0] for part in state))}

    def __call__(self, sequences: Sequence[Tokens]) -> Tensor:
        """Return the network's outputs (N, D) behind N sequences, which are known or one token longer than known."""
        if new := list(dict.fromkeys(tokens for tokens in sequences if tokens not in self.read)):
            parents = [self.read[tokens[:-1]][1] for tokens in new]
            last = torch.tensor([tokens[-1:] for tokens in new], device=self.device)  # (N, 1)
            outputs, state = self.predictor(last, tuple(torch.stack(parts) for parts in zip(*parents, strict=True)))
            for index, tokens in enumerate(new):
                self.read[tokens] = (outputs[index, 0], tuple(part[index] for part in state))
        return torch.stack([self.read[tokens][0] for tokens in sequences])

    def forget_all_but(self, sequences: Iterable[Tokens]) -> None:
        """Forget what is neither one of the sequences nor one token longer than one."""
        alive = set(sequences)
        self.read = {tokens: seen for tokens, seen in self.read.items() if tokens in alive or tokens[:-1] in alive}


def _pass_frame(
    frame: int,
    encoded: Tensor,
    beams: list[Beam],
    histories: _Histories,
    joint: JointNetwork,
    blank_id: int,
    beam: int,
    max_symbols: int,
) -> list[Beam]:
    """Return the beams of B utterances behind a frame, encoded as (B, D), given those before it."""
    passed: list[Beam] = [{} for _ in beams]
    for symbols in range(max_symbols + 1):
        owners = [owner for owner, hypotheses in enumerate(beams) for _ in hypotheses]
        if not owners:
            break
        predicted = histories([tokens for hypotheses in beams for tokens in hypotheses])
        log_probs = joint(encoded[owners], predicted).float().log_softmax(dim=1)  # (N, V)
        blanks = log_probs[:, blank_id].tolist()
        log_probs[:, blank_id] = -math.inf
        best = log_probs.topk(min(beam, log_probs.shape[1]) if symbols < max_symbols else 0, dim=1)
        choices = iter(zip(blanks, best.values.tolist(), best.indices.tolist(), strict=True))
        beams = [
            _step(frame, hypotheses, passed[owner], [next(choices) for _ in hypotheses], beam)
            for owner, hypotheses in enumerate(beams)
        ]
    return [dict(_best(hypotheses.items(), beam)) for hypotheses in passed]


def _step(
    frame: int, hypotheses: Beam, passed: Beam, choices: list[tuple[float, list[float], list[int]]], beam: int
) -> Beam:
    """Emit a blank into `passed`, and return what hypotheses are after emitting one token each.

    The choices of each hypothesis are the blank's log probability, then the best tokens' and their ids.
    """
    for (tokens, walks), (blank, _, _) in zip(hypotheses.items(), choices, strict=True):
        gone = walks.longer(blank)
        passed[tokens] = passed[tokens].joined(gone) if tokens in passed else gone
    leaders = heapq.nlargest(beam, (walks.score for walks in passed.values()))
    bar = leaders[-1] if len(leaders) == beam else -math.inf
    longer = [
        ((*tokens, token), walks.longer(log_prob, frame))
        for (tokens, walks), (_, log_probs, ids) in zip(hypotheses.items(), choices, strict=True)
        for log_prob, token in zip(log_probs, ids, strict=True)
        if walks.score + log_prob > bar
    ]
    return dict(_best(longer, beam))


def _best(hypotheses: Iterable[tuple[Tokens, Walks]], beam: int) -> list[tuple[Tokens, Walks]]:
    return heapq.nlargest(beam, hypotheses, key=lambda item: item[1].score)


def _log_add(a: float, b: float) -> float:
    """Return log(exp(a) + exp(b))."""
    low, high = sorted((a, b))
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
