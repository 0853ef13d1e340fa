"""Greedy and beam search of a transducer [Graves 2012, "Sequence transduction with recurrent neural networks"].

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

from asr_lightning.decoding.fusion import Fusion
from asr_lightning.decoding.hypothesis import Hypothesis
from asr_lightning.decoding.language_model import LanguageModel
from asr_lightning.errors import InputError
from asr_lightning.text.tokenizers import Tokenizer

WINDOW = 8  # frames that greedy search looks ahead at once; 4 to 8 was fastest at 16 utterances on a CPU

State = tuple[Tensor, ...]  # each with the batch first
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


class TransducerSearch:
    """Greedy or beam search of a transducer, with language models if wanted.

    Hypotheses y of an utterance x are ranked by

        log P(y|x) + language_model_weight log P_LM(y) - density_ratio_weight log P_D(y)
                   - internal_language_model_weight log P_ILM(y) + length_bonus |y|.

    P_LM and P_D count the end of the sentence at the last frame. P_D is a model of the transcripts that the transducer
    was trained on: one like P_LM gives the density ratio [McDermott et al. 2019], an n-gram of low order the low-order
    density ratio [Zheng et al. 2022]. P_ILM is the internal language model: the softmax over the tokens, the blank left
    out, of the joint network without the encoder's term [Variani et al. 2020, 3.2; Meng et al. 2021, 3.2]. It has no
    end. A weight of 0 leaves its model out: it is neither read nor asked.

    Args:
        beam: Hypotheses kept. 1 without a language model and without a bonus is greedy.
        max_symbols: Most tokens emitted in one frame.
        language_model: For `language_model_weight`.
        language_model_weight: Of the log probability of every token, and of the end.
        internal_language_model_weight: Of what is subtracted for the internal language model.
        density_ratio_model: For `density_ratio_weight`.
        density_ratio_weight: Of what is subtracted for this model.
        length_bonus: Added for every token, against the shortness that language models prefer.

    Raises:
        InputError: A number is out of its range, or there is a weight without its language model.
    """

    def __init__(
        self,
        beam: int = 1,
        max_symbols: int = 10,
        language_model: LanguageModel | None = None,
        language_model_weight: float = 0.0,
        internal_language_model_weight: float = 0.0,
        density_ratio_model: LanguageModel | None = None,
        density_ratio_weight: float = 0.0,
        length_bonus: float = 0.0,
    ) -> None:
        if beam < 1 or max_symbols < 1:
            raise InputError(
                f"TransducerSearch needs beam >= 1 and max_symbols >= 1, got beam={beam} and max_symbols={max_symbols}"
            )
        weights = {
            "language_model_weight": language_model_weight,
            "internal_language_model_weight": internal_language_model_weight,
            "density_ratio_weight": density_ratio_weight,
        }
        if min(weights.values()) < 0 or not all(map(math.isfinite, (*weights.values(), length_bonus))):
            raise InputError(
                f"TransducerSearch needs weights of at least 0 and a finite length_bonus, got {weights} and "
                f"length_bonus={length_bonus}; it subtracts the internal language model and the density ratio itself"
            )
        for name, model in (("language_model", language_model), ("density_ratio", density_ratio_model)):
            if model is None and weights[f"{name}_weight"]:
                missing = "density_ratio_model" if name == "density_ratio" else name
                raise InputError(
                    f"TransducerSearch needs a {missing} for {name}_weight={weights[f'{name}_weight']}, got none: name "
                    "one, or set the weight to 0"
                )
        self.beam = beam
        self.max_symbols = max_symbols
        self.language_model = language_model
        self.language_model_weight = language_model_weight
        self.internal_language_model_weight = internal_language_model_weight
        self.density_ratio_model = density_ratio_model
        self.density_ratio_weight = density_ratio_weight
        self.length_bonus = length_bonus

    def __call__(
        self,
        encoder_outputs: Tensor,
        encoder_lengths: Tensor,
        predictor: PredictionNetwork,
        joint: JointNetwork,
        tokenizer: Tokenizer,
    ) -> list[list[Hypothesis]]:
        """Return for each of the B utterances at most `beam` hypotheses, the best first.

        Raises:
            InputError: A language model cannot be used.
        """
        arguments = (encoder_outputs, encoder_lengths, predictor, joint, tokenizer.blank_id)
        fusion = self._fusion(tokenizer, encoder_outputs.device)
        if self.beam == 1 and fusion is None:
            return [[best] for best in greedy_search(*arguments, max_symbols=self.max_symbols)]
        return beam_search(*arguments, beam=self.beam, max_symbols=self.max_symbols, fusion=fusion)

    def _fusion(self, tokenizer: Tokenizer, device: torch.device) -> Fusion | None:
        """Return what is added to the transducer's scores; None where nothing is."""
        models = []
        for model, weight in (
            (self.language_model, self.language_model_weight),
            (self.density_ratio_model, -self.density_ratio_weight),
        ):
            if model is not None and weight:
                model.prepare(tokenizer, device)
                models.append((model, weight))
        if not models and not self.internal_language_model_weight and not self.length_bonus:
            return None
        weights = tuple(models), self.internal_language_model_weight, self.length_bonus
        return Fusion(*weights, len(tokenizer), tokenizer.blank_id, tokenizer.eos_id)


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
        histories.forget_all_but(tokens for row in rows for tokens in beams[row])
    return [
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

    def forget_all_but(self, sequences: Iterable[Tokens]) -> None:
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
