"""Beam search of a transducer: the best token sequences by the sum of their alignments, with language models."""

import heapq
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from asr_lightning.decoding.fusion import Fusion
from asr_lightning.decoding.hypothesis import Hypothesis, without_impossible
from asr_lightning.decoding.transducer_greedy import JointNetwork, PredictionNetwork, State

Tokens = tuple[int, ...]


class AlignmentSum(NamedTuple):
    """The alignments found of a token sequence.

    Attributes:
        score: Natural log of their summed probability.
        best: That of the most probable one; of equal ones, that whose last tokens come earlier.
        frames: In which it emits each token.
        log_probs: Natural log probability of each of these emissions.
        text: What language models add for the sequence.
    """

    score: float
    best: float
    frames: Tokens
    log_probs: tuple[float, ...] = ()
    text: float = 0.0

    @property
    def total(self) -> float:
        """Return the score that ranks the hypotheses."""
        return self.score + self.text

    def emitting(self, log_prob: float, frame: int, text: float) -> "AlignmentSum":
        """Return the alignments with a token more; the language models add `text` for it."""
        return AlignmentSum(
            self.score + log_prob,
            self.best + log_prob,
            (*self.frames, frame),
            (*self.log_probs, log_prob),
            self.text + text,
        )

    def passing(self, log_prob: float) -> "AlignmentSum":
        """Return the alignments with a blank more."""
        return self._replace(score=self.score + log_prob, best=self.best + log_prob)

    def joined(self, other: "AlignmentSum") -> "AlignmentSum":
        """Return the union with other alignments of the same tokens."""
        leader = self if self.best >= other.best else other
        return leader._replace(score=_log_add(self.score, other.score))


Beam = dict[Tokens, AlignmentSum]


@torch.no_grad()
def beam_search(
    encoder_outputs: Tensor,
    encoder_lengths: Tensor,
    predictor: PredictionNetwork,
    joint: JointNetwork,
    blank_id: int,
    beam: int = 8,
    max_symbols: int = 5,
    fusion: Fusion | None = None,
) -> list[list[Hypothesis]]:
    """Keep the best token sequences after every frame.

    Alignments that spell the same tokens are one hypothesis with the sum of their probabilities; what language models
    add depends on the tokens alone, and is added once. Within a frame, hypotheses that fall behind the `beam` best that
    have already left it are not followed further.

    Args:
        encoder_outputs: (B, T, D).
        encoder_lengths: (B,) real frames.
        predictor: The prediction network.
        joint: The joint network.
        blank_id: The blank's token id.
        beam: Most hypotheses kept of an utterance.
        max_symbols: Most tokens emitted in one frame.
        fusion: What language models add, prepared.

    Returns:
        For each of B utterances at most `beam` hypotheses with different tokens, best first. Without fusion a score
        sums all alignments found, so it is at most the negative transducer loss; with fusion this is the part
        `transducer`, and `fusion` what was added. The frames are those of the most probable of these alignments.

    Raises:
        ValueError: `beam` or `max_symbols` is less than 1.
    """
    if beam < 1 or max_symbols < 1:
        raise ValueError(f"beam and max_symbols must be at least 1, got beam {beam} and max_symbols {max_symbols}")
    lengths = encoder_lengths.tolist()
    histories = _Histories(predictor, joint, blank_id, encoder_outputs, fusion)
    beams: list[Beam] = [{(): AlignmentSum(0.0, 0.0, ())} for _ in lengths]
    ended = [{} if length else histories.with_ends(beams[row]) for row, length in enumerate(lengths)]
    for frame in range(max(lengths, default=0)):
        rows = [row for row, length in enumerate(lengths) if frame < length]
        encoded = encoder_outputs[rows, frame]  # (B, D) of the rows that have this frame
        passed = _pass_frame(
            frame, encoded, [beams[row] for row in rows], histories, joint, blank_id, beam, max_symbols
        )
        for row, new_beam in zip(rows, passed, strict=True):
            beams[row] = new_beam
            if frame == lengths[row] - 1:
                ended[row] = histories.with_ends(new_beam)
        histories.keep_only(tokens for row in rows for tokens in beams[row])
    return [
        without_impossible(
            [
                Hypothesis(
                    tokens,
                    alignments.total,
                    alignments.frames,
                    parts={} if fusion is None else {"transducer": alignments.score, "fusion": alignments.text},
                    log_probs=alignments.log_probs,
                )
                for tokens, alignments in _best(hypotheses.items(), beam)
            ]
        )
        for hypotheses in ended
    ]


class _Histories:
    """Outputs of prediction network and language models by token sequence; each is computed once for all utterances.

    Everything is a table with a slot for each known sequence; slots of forgotten sequences are used again.
    """

    def __init__(
        self,
        predictor: PredictionNetwork,
        joint: JointNetwork,
        blank_id: int,
        encoder_outputs: Tensor,
        fusion: Fusion | None,
    ) -> None:
        self.predictor, self.joint, self.blank_id, self.fusion = predictor, joint, blank_id, fusion
        self.device = encoder_outputs.device
        self.no_frame = encoder_outputs.new_zeros(1, encoder_outputs.shape[2])
        start = torch.full((1,), blank_id, device=self.device)
        state = predictor.initial_state(1, self.device)
        models: list[State] = [] if fusion is None else fusion.initial_states()
        self.sizes = [len(state), *map(len, models)]  # tensors of each state
        self.slots: dict[Tokens, int] = {(): 0}
        self.free: list[int] = []
        first = start if fusion is None else torch.full_like(start, fusion.eos_id)
        self.tables = self._read(start, first, state, models)

    def _read(self, tokens: Tensor, texts: Tensor, state: State, models: list[State]) -> list[Tensor]:
        """Return the rows of the tables after N tokens.

        Args:
            tokens: (N,) for the prediction network.
            texts: (N,) for the language models.
            state: Of the prediction network.
            models: States of the language models.

        Returns:
            Outputs (N, D) and the parts of all states; in front of them, with fusion, what the next token adds (N, V),
            with that of the end in the column of the blank.
        """
        outputs, state = self.predictor(tokens.unsqueeze(1), state)
        rows = [outputs[:, 0], *state]
        if self.fusion is None:
            return rows
        internal = self.joint(self.no_frame, outputs[:, 0]) if self.fusion.internal_weight else None
        following, new_states = self.fusion.step(texts, models, internal)
        return [following, *rows, *(part for model in new_states for part in model)]

    def __call__(self, sequences: Sequence[Tokens]) -> tuple[Tensor, Tensor | None]:
        """Return the outputs after N sequences, each a known one or one token longer than a known one.

        Returns:
            The network's outputs (N, D), and what language models add for the next token, (N, V), if there are any.
        """
        if new := list(dict.fromkeys(tokens for tokens in sequences if tokens not in self.slots)):
            self._store(new)
        slots = torch.tensor([self.slots[tokens] for tokens in sequences], device=self.device)
        if self.fusion is None:
            return self.tables[0][slots], None
        return self.tables[1][slots], self.tables[0][slots]

    def _store(self, new: list[Tokens]) -> None:
        parents = torch.tensor([self.slots[tokens[:-1]] for tokens in new], device=self.device)
        last = torch.tensor([tokens[-1] for tokens in new], device=self.device)
        states = iter([part[parents] for part in self.tables[1 if self.fusion is None else 2 :]])
        state, *models = (tuple(next(states) for _ in range(size)) for size in self.sizes)
        rows = self._read(last, last, state, models)
        missing = len(new) - len(self.free)
        if missing > 0:
            size = len(self.tables[0])
            more = max(missing, size)  # doubled, so that growing costs little
            self.tables = [torch.cat([table, table.new_zeros(more, *table.shape[1:])]) for table in self.tables]
            self.free += range(size, size + more)
        slots = [self.free.pop() for _ in new]
        self.slots.update(zip(new, slots, strict=True))
        indices = torch.tensor(slots, device=self.device)
        for table, part in zip(self.tables, rows, strict=True):
            table.index_copy_(0, indices, part.to(table.dtype))

    def with_ends(self, hypotheses: Beam) -> Beam:
        """Return known hypotheses with what language models add for their ends."""
        if self.fusion is None:
            return hypotheses
        ends = self.tables[0][[self.slots[tokens] for tokens in hypotheses], self.blank_id].tolist()
        return {
            tokens: alignments._replace(text=alignments.text + end)
            for (tokens, alignments), end in zip(hypotheses.items(), ends, strict=True)
        }

    def keep_only(self, sequences: Iterable[Tokens]) -> None:
        """Forget all sequences but the given ones and those that are one token longer."""
        alive = set(sequences)
        dropped = [tokens for tokens in self.slots if tokens not in alive and tokens[:-1] not in alive]
        self.free += [self.slots.pop(tokens) for tokens in dropped]


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
    """Return the beams of B utterances after a frame, encoded as (B, D), given those before it."""
    passed: list[Beam] = [{} for _ in beams]
    for symbols in range(max_symbols + 1):
        rows = [row for row, hypotheses in enumerate(beams) for _ in hypotheses]
        if not rows:
            break
        predicted, following = histories([tokens for hypotheses in beams for tokens in hypotheses])
        log_probs = joint(encoded[rows], predicted).float().log_softmax(dim=1)  # (N, V)
        blanks = log_probs[:, blank_id].tolist()
        log_probs[:, blank_id] = -math.inf
        count = min(beam, log_probs.shape[1]) if symbols < max_symbols else 0
        choices = iter(zip(blanks, *_most_promising(log_probs, following, count), strict=True))
        beams = [
            _step(frame, hypotheses, passed[row], [next(choices) for _ in hypotheses], beam)
            for row, hypotheses in enumerate(beams)
        ]
    return [dict(_best(hypotheses.items(), beam)) for hypotheses in passed]


def _most_promising(
    log_probs: Tensor, following: Tensor | None, count: int
) -> tuple[list[list[float]], list[list[float]], list[list[int]]]:
    """Return the best next tokens of N hypotheses: log probabilities, what language models add, and ids.

    Args:
        log_probs: (N, V) of the transducer.
        following: (N, V), what language models add; None for nothing.
        count: Tokens of each hypothesis.
    """
    if following is None:
        best = log_probs.topk(count, dim=1)
        return best.values.tolist(), [[0.0] * count] * len(log_probs), best.indices.tolist()
    ids = (log_probs + following).topk(count, dim=1).indices
    return log_probs.gather(1, ids).tolist(), following.gather(1, ids).tolist(), ids.tolist()


def _step(
    frame: int,
    hypotheses: Beam,
    passed: Beam,
    choices: list[tuple[float, list[float], list[float], list[int]]],
    beam: int,
) -> Beam:
    """Put the hypotheses that leave a frame by a blank into `passed`; return the best of those that emit a token each.

    The choices of each hypothesis are the blank's log probability, then those of the best tokens, what language models
    add for them, and their ids.
    """
    for (tokens, alignments), (blank, *_) in zip(hypotheses.items(), choices, strict=True):
        passing = alignments.passing(blank)
        passed[tokens] = passed[tokens].joined(passing) if tokens in passed else passing
    best_totals = heapq.nlargest(beam, (alignments.total for alignments in passed.values()))
    threshold = best_totals[-1] if len(best_totals) == beam else -math.inf
    longer = [
        ((*tokens, token), alignments.emitting(log_prob, frame, text))
        for (tokens, alignments), (_, log_probs, texts, ids) in zip(hypotheses.items(), choices, strict=True)
        for log_prob, text, token in zip(log_probs, texts, ids, strict=True)
        if alignments.total + log_prob + text > threshold
    ]
    return dict(_best(longer, beam))


def _best(hypotheses: Iterable[tuple[Tokens, AlignmentSum]], beam: int) -> list[tuple[Tokens, AlignmentSum]]:
    return heapq.nlargest(beam, hypotheses, key=lambda item: item[1].total)


def _log_add(a: float, b: float) -> float:
    """Return log(exp(a) + exp(b))."""
    low, high = sorted((a, b))
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
