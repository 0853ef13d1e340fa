"""Distillation of a transducer: divergences of a student's posteriors from its teacher's at nodes of the lattice.

The logits of all nodes are never held. Logits are computed a block of the lattice at a time; those of the student are
computed again in the backward pass, and of the teacher three numbers per node are kept.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from asr_lightning.losses.distillation import divergence, log_probabilities
from asr_lightning.losses.transducer import joint as blocks
from asr_lightning.losses.transducer.joint import check_shapes, lattice_blocks
from asr_lightning.losses.transducer.lattice import Block, diagonals, real_targets
from asr_lightning.nn.sequences import real_frames, silence_padding


@dataclass(frozen=True)
class JointInputs:
    """A joint network, and its inputs for a batch.

    Attributes:
        joint: Returns logits (..., V) of frames (..., D) and histories (..., D) that broadcast.
        frames: (B, T, D) projected frames.
        histories: (B, U + 1, D) projected histories: before any token, and after each.
    """

    joint: Callable[[Tensor, Tensor], Tensor]
    frames: Tensor
    histories: Tensor

    def without_padding(self, encoder_lengths: Tensor, target_lengths: Tensor) -> "JointInputs":
        """Return the same with zeros in the padding."""
        frames = silence_padding(self.frames, encoder_lengths)
        return JointInputs(self.joint, frames, silence_padding(self.histories, target_lengths + 1))

    def logits(self, block: Block) -> Tensor:
        """Return the logits of a block of the lattice, (b, t, u, V)."""
        rows, frames, positions = block
        return self.joint(self.frames[rows, frames].unsqueeze(2), self.histories[rows, positions].unsqueeze(1))


def reduced_log_probs(logits: Tensor, tokens: Tensor, blank_id: int, temperature: float = 1.0) -> Tensor:
    """Return the log probabilities of three classes, (..., 3): blank, next token, all other tokens together.

    Args:
        logits: (..., V), of at least three tokens.
        tokens: (...) the next token; the blank where there is none, whose class has no probability then.
        blank_id: The blank's token id.
        temperature: Divides the logits.
    """
    scores = log_probabilities(logits, temperature)
    index = tokens.unsqueeze(-1)
    named = torch.cat([index, torch.full_like(index, blank_id)], dim=-1)
    others = scores.scatter(-1, named, -math.inf).logsumexp(dim=-1)
    label = scores.gather(-1, index).squeeze(-1).masked_fill(tokens == blank_id, -math.inf)
    return torch.stack([scores[..., blank_id], label, others], dim=-1)


def lattice_divergence(
    student: JointInputs,
    teacher: JointInputs,
    targets: Tensor,
    encoder_lengths: Tensor,
    target_lengths: Tensor,
    blank_id: int,
    temperature: float = 1.0,
) -> Tensor:
    """Return the divergence of a student from its teacher, summed over all nodes of the lattice, (B,).

    The posteriors of a node are reduced to three classes: blank, next token, all others [Panchapagesan et al. 2021,
    "Efficient knowledge distillation for RNN-transducer models"].

    Args:
        student: The student's joint network and what it reads; gets gradients.
        teacher: The teacher's, of the same frames and tokens; gets none.
        targets: (B, U) token ids; what lies beyond the lengths is ignored.
        encoder_lengths: (B,) real frames.
        target_lengths: (B,) real tokens.
        blank_id: The blank's token id.
        temperature: Divides both logits; the divergence is multiplied by its square.

    Raises:
        ValueError: The shapes do not fit each other, or (on a CPU) the lengths.
    """
    targets, lengths = _check_inputs(student, teacher, targets, encoder_lengths, target_lengths, blank_id)
    student, teacher = student.without_padding(*lengths), teacher.without_padding(*lengths)
    shape = (*student.frames.shape[:2], student.histories.shape[1])
    valid = real_frames(encoder_lengths, shape[1]).unsqueeze(2) & real_frames(target_lengths + 1, shape[2]).unsqueeze(1)
    rows = torch.arange(shape[0], device=targets.device)
    vocabulary = _vocabulary(teacher)
    total = student.frames.sum(dim=(1, 2), dtype=_sum_dtype(student.frames)) * 0.0  # also where there are no nodes

    def of_block(frames: Tensor, histories: Tensor, expected: Tensor, tokens: Tensor, inside: Tensor) -> Tensor:
        logits = student.joint(frames.unsqueeze(2), histories.unsqueeze(1))
        reduced = reduced_log_probs(logits, tokens, blank_id, temperature)
        # Where a class has no probability, it has none in both.
        reduced = reduced.masked_fill(expected == -math.inf, 0.0)
        return divergence(expected, reduced).masked_fill(~inside, 0.0).sum(dim=(1, 2))

    for block in lattice_blocks(shape, vocabulary, *lengths):
        utterances, frames, positions = block
        tokens = targets[utterances, None, positions].expand(-1, frames.stop - frames.start, -1)
        with torch.no_grad():
            expected = reduced_log_probs(teacher.logits(block), tokens, blank_id, temperature)
        term = checkpoint(
            of_block, student.frames[utterances, frames], student.histories[utterances, positions], expected, tokens,
            valid[block], use_reentrant=False, preserve_rng_state=False,  # a joint network draws nothing
        )  # fmt: skip
        total = total.index_add(0, rows[utterances], term.to(total.dtype))
    return temperature**2 * total


def path_divergence(
    student: JointInputs,
    teacher: JointInputs,
    targets: Tensor,
    encoder_lengths: Tensor,
    target_lengths: Tensor,
    blank_id: int,
    temperature: float = 1.0,
) -> Tensor:
    """Return the divergence of a student from its teacher, summed over the teacher's most probable alignment, (B,).

    At the T + U nodes of this path the posteriors of all tokens are compared [Kurata and Saon 2020, "Knowledge
    distillation from offline to streaming RNN transducer", one-best path]. Arguments and errors are those of
    `lattice_divergence`.
    """
    next_tokens, lengths = _check_inputs(student, teacher, targets, encoder_lengths, target_lengths, blank_id)
    student, teacher = student.without_padding(*lengths), teacher.without_padding(*lengths)
    with torch.no_grad():
        frames, positions, valid = best_path(*lattice_scores(teacher, next_tokens, *lengths, blank_id), *lengths)
    step = max(1, _most_logits(valid) // max(1, _vocabulary(teacher) * len(valid)))
    total = student.frames.sum(dim=(1, 2), dtype=_sum_dtype(student.frames)) * 0.0

    def of_nodes(frames: Tensor, histories: Tensor, expected: Tensor, inside: Tensor) -> Tensor:
        scores = log_probabilities(student.joint(frames, histories), temperature)
        return divergence(expected, scores).masked_fill(~inside, 0.0).sum(dim=1)

    for start in range(0, valid.shape[1], step):
        nodes = slice(start, start + step)
        student_inputs = [
            _rows_at(x, index[:, nodes]) for x, index in ((student.frames, frames), (student.histories, positions))
        ]
        with torch.no_grad():
            teacher_inputs = (
                _rows_at(x, i[:, nodes]) for x, i in ((teacher.frames, frames), (teacher.histories, positions))
            )
            expected = log_probabilities(teacher.joint(*teacher_inputs), temperature)
        term = checkpoint(
            of_nodes, *student_inputs, expected, valid[:, nodes], use_reentrant=False, preserve_rng_state=False
        )
        total = total + term.to(total.dtype)
    return temperature**2 * total


@torch.no_grad()
def lattice_scores(
    inputs: JointInputs, next_tokens: Tensor, encoder_lengths: Tensor, target_lengths: Tensor, blank_id: int
) -> tuple[Tensor, Tensor]:
    """Return the log probabilities of the blank and of the next token, (B, T, U + 1) both; padding has no meaning.

    Args:
        inputs: A joint network and what it reads.
        next_tokens: (B, U + 1) next token at each position; the blank at the last.
        encoder_lengths: (B,) real frames.
        target_lengths: (B,) real tokens.
        blank_id: The blank's token id.
    """
    shape = (*inputs.frames.shape[:2], inputs.histories.shape[1])
    blank, label = (inputs.frames.new_zeros(shape, dtype=_sum_dtype(inputs.frames)) for _ in range(2))
    for block in lattice_blocks(shape, _vocabulary(inputs), encoder_lengths, target_lengths):
        utterances, frames, positions = block
        tokens = next_tokens[utterances, None, positions].expand(-1, frames.stop - frames.start, -1)
        scores = log_probabilities(inputs.logits(block))
        blank[block] = scores[..., blank_id]
        label[block] = scores.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return blank, label


def best_path(
    blank: Tensor, label: Tensor, encoder_lengths: Tensor, target_lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the nodes of the most probable alignment: their frames and positions, and which are real, (B, N) each.

    Node n of the path lies on the anti-diagonal t + u = n; N is the most that any utterance has, its frames plus its
    tokens. Indices of nodes that are not real are 0. Of two equally probable alignments, the one that emits later is
    taken.

    Args:
        blank: (B, T, U + 1) log probabilities of a blank.
        label: (B, T, U + 1) log probabilities of the next token; the last column is not read.
        encoder_lengths: (B,) real frames.
        target_lengths: (B,) real tokens.
    """
    batch, frames, positions = blank.shape
    if not blank.numel():
        empty = torch.zeros((batch, 0), dtype=torch.int64, device=blank.device)
        return empty, empty, empty.bool()
    of_frame = real_frames(encoder_lengths, frames).unsqueeze(2)
    stays = blank.double().masked_fill(~(of_frame & real_frames(target_lengths + 1, positions).unsqueeze(1)), -math.inf)
    emits = label.double().masked_fill(~(of_frame & real_frames(target_lengths, positions).unsqueeze(1)), -math.inf)
    best = torch.full((batch, positions), -math.inf, dtype=torch.float64, device=blank.device)
    best[:, 0] = 0.0
    emitted = []  # of each anti-diagonal but the first, whether a token leads into the node, (B, U + 1)
    for by_blank, by_label in zip(diagonals(stays)[:-1], diagonals(emits)[:-1], strict=True):
        moved, risen = best + by_blank, pad((best + by_label)[:, :-1], (1, 0), value=-math.inf)
        emitted.append(risen > moved)
        best = torch.maximum(moved, risen)
    last = torch.where(encoder_lengths > 0, encoder_lengths + target_lengths - 1, -1)  # (B,) anti-diagonal of the end
    position, path = target_lengths, []
    for diagonal in range(len(emitted), -1, -1):
        path.append(position)
        if diagonal:
            by_token = emitted[diagonal - 1].gather(1, position.unsqueeze(1)).squeeze(1)
            position = position - (by_token & (last >= diagonal)).to(position.dtype)
    path_positions = torch.stack(path[::-1], dim=1)  # (B, T + U)
    diagonal_index = torch.arange(path_positions.shape[1], device=path_positions.device)
    valid = diagonal_index <= last.unsqueeze(1)
    path_positions = path_positions.masked_fill(~valid, 0)
    return (diagonal_index - path_positions).masked_fill(~valid, 0), path_positions, valid


def _check_inputs(
    student: JointInputs,
    teacher: JointInputs,
    targets: Tensor,
    encoder_lengths: Tensor,
    target_lengths: Tensor,
    blank_id: int,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return the next token at each position (B, U + 1), and the lengths; refuse shapes that do not fit."""
    for inputs in (student, teacher):
        check_shapes(inputs.frames, inputs.histories, targets)
    if student.frames.shape[:2] != teacher.frames.shape[:2]:
        raise ValueError(
            f"expected as many frames of the teacher as of the student, got {tuple(teacher.frames.shape[:2])} and "
            f"{tuple(student.frames.shape[:2])}"
        )
    next_tokens = pad(real_targets(targets, target_lengths, blank_id), (0, 1), value=blank_id)
    return next_tokens, (encoder_lengths, target_lengths)


def _vocabulary(inputs: JointInputs) -> int:
    with torch.no_grad():
        hidden = inputs.frames.new_zeros(1, inputs.frames.shape[2])
        return inputs.joint(hidden, hidden).shape[1]


def _rows_at(x: Tensor, index: Tensor) -> Tensor:
    """Return the rows (B, N, D) of x (B, T, D) at indices (B, N)."""
    return x.gather(1, index.unsqueeze(2).expand(-1, -1, x.shape[2]))


def _most_logits(x: Tensor) -> int:
    return blocks.LOGITS["cpu" if x.device.type == "cpu" else "cuda"]


def _sum_dtype(x: Tensor) -> Any:  # noqa: ANN401 - a dtype
    return torch.promote_types(x.dtype, torch.float32)
