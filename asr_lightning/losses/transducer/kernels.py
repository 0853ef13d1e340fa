"""Triton kernels of the transducer's loss: the functions of `lattice.py`, with fewer passes over memory.

Blocks. A block holds all utterances and positions, and some frames. Where a function of `lattice.py` reads or writes
all logits or hidden units of a block several times, its kernel reads them once and writes them once, with all numbers
between in float32; logits of padding are not read.

Recursions. One program goes through the lattice of one utterance, forward, or backward on the reversed lattice. It
holds one number per position (log alpha, or log beta) and goes from one anti-diagonal t + u to the next: it needs only
the number at the same position and at the position before, so a step is one sum of two probabilities, where a step by
frames would be a scan over all positions. Everything there is float64.

Programs do not wait for each other, and none adds to what another has written, so results do not vary between runs. A
lattice has fewer than 2^31 nodes; its logits may be more. Of the sizes, only those of a model are compiled in.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from asr_lightning.losses.transducer import lattice
from asr_lightning.losses.transducer.lattice import Block, negligible

LONGEST = 4096  # positions that one program can hold: longer transcripts are computed in plain PyTorch

SIZES = ["blank_id", "least", "count", "start", "span", "frames", "positions"]  # vary without compiling again
without_sizes = triton.jit(do_not_specialize=SIZES)


@triton.jit
def coordinates(index, start, span, positions):
    """Return utterance, frame and position of each index into a block of `span` frames from `start` on."""
    frame = index // positions
    return frame // span, start + frame % span, index % positions


@triton.jit
def _moves(blank, label, step, position, length, tokens, positions, back):
    """Return the node that a step reaches, the scores of blank and token that lead there, and whether it is valid.

    On the reversed lattice the first frame is the last, and a score belongs to the node reached, else to the one left.
    """
    column = step - position
    inside = (column >= 0) & (column < length) & (position <= tokens)
    frame = tl.where(back == 1, length - 1 - column, column)
    node = frame * positions + tl.where(back == 1, tokens - position, position)
    stride = (1 - back) * positions
    by_blank = tl.load(blank + node - stride, mask=inside & (node >= stride), other=0.0)
    by_label = tl.load(label + node - (1 - back), mask=inside & (position > 0), other=float("-inf"))
    return node, by_blank.to(tl.float64), by_label.to(tl.float64), inside


@without_sizes
def _recursion_kernel(
    blank, label, encoder_lengths, target_lengths, log_sums, losses, frames, positions, held: tl.constexpr
):  # fmt: skip
    row, back = tl.program_id(0), tl.program_id(1)
    length = tl.load(encoder_lengths + row).to(tl.int32)
    tokens = tl.load(target_lengths + row).to(tl.int32)
    fits = (length <= frames) & (tokens < positions)
    empty = length <= 0
    length = tl.where(fits, length, 0)  # lengths beyond the lattice: nothing is read, and the loss is NaN
    steps = tl.where(length > 0, length + tokens, 0)
    first = row.to(tl.int64) * frames * positions
    blank += first
    label += first
    log_sums += first + back.to(tl.int64) * tl.num_programs(0) * frames * positions
    position = tl.arange(0, held)
    previous = tl.maximum(position - 1, 0)
    carried = tl.where(position == 0, 0.0, float("-inf")).to(tl.float64)
    node, by_blank, by_label, inside = _moves(blank, label, 0, position, length, tokens, positions, back)
    step = 0
    while step < steps:  # not `for … in range(steps)`: Triton's interpreter and numpy disagree about such bounds
        current, moved, emitted, valid = node, carried + by_blank, tl.gather(carried, previous, 0) + by_label, inside
        # Scores of the next step are loaded while this one computes.
        node, by_blank, by_label, inside = _moves(blank, label, step + 1, position, length, tokens, positions, back)
        largest = tl.maximum(moved, emitted)
        shift = tl.where(largest == float("-inf"), 0.0, largest)
        carried = tl.where(valid, shift + tl.log(tl.exp(moved - shift) + tl.exp(emitted - shift)), carried)
        tl.store(log_sums + current, carried, mask=valid)
        step += 1
    likelihood = tl.sum(tl.where(position == tokens, carried, 0.0), axis=0)
    loss = tl.where(fits, tl.where(empty, float("inf"), -likelihood), float("nan"))
    tl.store(losses + row, loss, mask=back == 1)


@without_sizes
def _occupancy_kernel(
    blank, label, encoder_lengths, target_lengths, log_sums, losses, by_blank, by_label, count, frames, positions,
    size: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0) * size + tl.arange(0, size)
    row, frame, position = coordinates(index, 0, frames, positions)
    inside = index < count
    length = tl.load(encoder_lengths + row, mask=inside, other=0)
    tokens = tl.load(target_lengths + row, mask=inside, other=0)
    valid = inside & (frame < length) & (position <= tokens)
    last, full = frame >= tl.minimum(length, frames) - 1, position >= tl.minimum(tokens, positions - 1)
    alpha = tl.load(log_sums + index, mask=valid, other=float("-inf"))
    loss = tl.load(losses + row, mask=valid, other=0.0)
    left = alpha + tl.where(loss == float("inf"), float("-inf"), loss)  # an impossible utterance visits no node
    onward = tl.load(log_sums + count + index + positions, mask=valid & ~last, other=float("-inf"))
    onward = tl.where(last & full, 0.0, onward)  # the end is behind the last frame, with all tokens emitted
    upward = tl.load(log_sums + count + index + 1, mask=valid & ~full, other=float("-inf"))
    of_blank = tl.exp(left + tl.load(blank + index, mask=valid, other=0.0) + onward)
    of_label = tl.exp(left + tl.load(label + index, mask=valid & ~full, other=0.0) + upward)
    tl.store(by_blank + index, tl.where(valid, of_blank, 0.0), mask=inside)
    tl.store(by_label + index, tl.where(valid, of_label, 0.0), mask=inside)


def occupancies(
    blank: Tensor, label: Tensor, encoder_lengths: Tensor, target_lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `lattice.occupancies`; the losses are float64, and the occupancies have the type of the scores."""
    batch, frames, positions = blank.shape
    if not blank.numel() or positions > LONGEST:
        losses, *both = lattice.occupancies(blank, label, encoder_lengths, target_lengths)
        return losses, both[0].to(blank.dtype), both[1].to(blank.dtype)
    lengths = encoder_lengths.contiguous(), target_lengths.contiguous()
    losses, log_sums = (blank.new_empty(shape, dtype=torch.float64) for shape in ((batch,), (2, *blank.shape)))
    held = triton.next_power_of_2(positions)
    warps = min(16, max(1, held // 32))
    launch(
        _recursion_kernel,
        (batch, 2),
        blank,
        label,
        *lengths,
        log_sums,
        losses,
        frames,
        positions,
        held=held,
        num_warps=warps,
    )
    by_blank, by_label = torch.empty_like(blank), torch.empty_like(blank)
    tensors = blank, label, *lengths, log_sums, losses, by_blank, by_label
    count, size = blank.numel(), 512
    launch(_occupancy_kernel, (triton.cdiv(count, size),), *tensors, count, frames, positions, size=size)
    return losses, by_blank, by_label


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: int) -> None:  # noqa: ANN401
    """Run a kernel on the device of its first argument, a tensor. All tensors must be contiguous."""
    assert all(argument.is_contiguous() for argument in arguments if isinstance(argument, Tensor))
    with torch.cuda.device_of(arguments[0]):
        kernel[grid](*arguments, **constants)


TILE, COLUMNS = 4096, 1024  # numbers that a program holds of logits or of hidden units, and at most of each node
TILES = 8  # tiles per program in the sum of the bias's gradient
FRAMES, POSITIONS, UNITS = 16, 32, 64  # of the hidden units that a program sums


@without_sizes
def _hidden_kernel(
    encoded, predicted, hidden, count, start, span, frames, positions,
    dimension: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0) * rows + tl.arange(0, rows)
    row, frame, position = coordinates(index, start, span, positions)
    unit = tl.program_id(1) * columns + tl.arange(0, columns)[None, :]
    inside = (index < count)[:, None] & (unit < dimension)
    frames_at = encoded + (row * frames + frame).to(tl.int64)[:, None] * dimension
    positions_at = predicted + (row * positions + position).to(tl.int64)[:, None] * dimension
    of_frame = tl.load(frames_at + unit, mask=inside, other=0.0).to(tl.float32)
    x = of_frame + tl.load(positions_at + unit, mask=inside, other=0.0).to(tl.float32)
    decayed = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - decayed) / (1.0 + decayed)
    square = x * x  # near zero the difference above cancels: there, the first terms of the series
    near = x * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))))
    y = tl.where(square < 0.0625, near, tl.where(x < 0, -far, far))
    tl.store(hidden + index.to(tl.int64)[:, None] * dimension + unit, y, mask=inside)


@without_sizes
def _score_kernel(
    logits, targets, encoder_lengths, target_lengths, normalizer, blank, label,
    blank_id, count, start, span, frames, positions,
    vocabulary: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0) * rows + tl.arange(0, rows)
    row, frame, position = coordinates(index, start, span, positions)
    inside = index < count
    valid = inside & (frame < tl.load(encoder_lengths + row, mask=inside, other=0))
    valid = valid & (position <= tl.load(target_lengths + row, mask=inside, other=0))
    scores = logits + index.to(tl.int64) * vocabulary
    largest = tl.full([rows], float("-inf"), tl.float32)
    total = tl.zeros([rows], tl.float32)
    for first in range(0, vocabulary, columns):
        token = first + tl.arange(0, columns)[None, :]
        x = tl.load(scores[:, None] + token, mask=valid[:, None] & (token < vocabulary), other=float("-inf"))
        x = x.to(tl.float32)
        top = tl.maximum(largest, tl.max(x, axis=1))
        shift = tl.where(top == float("-inf"), 0.0, top)  # a chunk may hold nothing but minus infinity
        total = total * tl.exp(largest - shift) + tl.sum(tl.exp(x - shift[:, None]), axis=1)
        largest = top
    denominator = tl.where(largest == float("-inf"), 0.0, tl.log(total) + largest)  # 0 where every token is impossible
    target = tl.load(targets + row * positions + position, mask=valid, other=0)
    known = valid & (target >= 0) & (target < vocabulary)  # an unknown token has a score of NaN
    of_blank = tl.load(scores + blank_id, mask=valid, other=0.0).to(tl.float32)
    of_label = tl.load(scores + target, mask=known, other=float("nan")).to(tl.float32)
    node = (row * frames + frame) * positions + position
    tl.store(normalizer + node, denominator, mask=valid)
    tl.store(blank + node, of_blank - denominator, mask=valid)
    tl.store(label + node, of_label - denominator, mask=valid)


@without_sizes
def _error_kernel(
    logits, targets, normalizer, by_blank, by_label, gradient, of_bias,
    blank_id, least, count, start, span, frames, positions,
    vocabulary: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr, tiles: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(1) * columns + tl.arange(0, columns)[None, :]
    total = tl.zeros([1, columns], tl.float32)
    for tile in range(tiles):
        index = (tl.program_id(0) * tiles + tile) * rows + tl.arange(0, rows)
        row, frame, position = coordinates(index, start, span, positions)
        inside = index < count
        node = (row * frames + frame) * positions + position
        of_blank = tl.load(by_blank + node, mask=inside, other=0.0)
        of_label = tl.load(by_label + node, mask=inside, other=0.0)
        visited = of_blank + of_label
        needed = inside & ~(visited <= least)  # also where it is NaN
        wanted = needed[:, None] & (token < vocabulary)
        target = tl.load(targets + row * positions + position, mask=needed, other=0)
        scale = tl.load(gradient + row, mask=needed, other=0.0)
        denominator = tl.load(normalizer + node, mask=needed, other=0.0)
        pointers = logits + index.to(tl.int64)[:, None] * vocabulary + token
        x = tl.load(pointers, mask=wanted, other=0.0).to(tl.float32)
        error = tl.exp(x - denominator[:, None]) * visited[:, None]
        error -= tl.where(token == blank_id, of_blank[:, None], 0.0)
        error -= tl.where(token == target[:, None], of_label[:, None], 0.0)
        error = tl.where(wanted, error * scale[:, None], 0.0)
        total += tl.sum(error, axis=0, keep_dims=True)
        tl.store(pointers, error, mask=inside[:, None] & (token < vocabulary))
    tl.store(of_bias + tl.program_id(0) * vocabulary + token, total, mask=token < vocabulary)


@without_sizes
def _sum_kernel(
    of_hidden, hidden, of_frames, of_positions, span, positions,
    dimension: tl.constexpr, depth: tl.constexpr, width: tl.constexpr, units: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(span, depth)
    batch = tl.num_programs(0) // tiles
    row, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    position = tl.program_id(1) * width + tl.arange(0, width)[:, None]
    unit = tl.program_id(2) * units + tl.arange(0, units)[None, :]
    total = tl.zeros([width, units], tl.float32)
    for step in range(depth):
        frame = tile * depth + step
        offsets = ((row * span + frame) * positions + position) * dimension + unit
        inside = (frame < span) & (position < positions) & (unit < dimension)
        y = tl.load(hidden + offsets, mask=inside, other=0.0).to(tl.float32)
        inner = tl.load(of_hidden + offsets, mask=inside, other=0.0).to(tl.float32) * (1.0 - y * y)
        total += inner
        frame_offsets = ((tl.program_id(1) * batch + row) * span + frame) * dimension + unit
        tl.store(
            of_frames + frame_offsets, tl.sum(inner, axis=0, keep_dims=True), mask=(frame < span) & (unit < dimension)
        )
    tl.store(
        of_positions + ((tile * batch + row) * positions + position) * dimension + unit,
        total,
        mask=(position < positions) & (unit < dimension),
    )


def hidden_units(encoded: Tensor, predicted: Tensor, block: Block) -> Tensor:
    """See `lattice.hidden_units`; the sum is not rounded before its tanh."""
    batch, dimension = len(encoded), encoded.shape[2]
    sizes = _sizes(block, encoded.shape[1])
    hidden = encoded.new_empty(batch, sizes[2], sizes[4], dimension)
    rows, columns = _tile(dimension)
    grid = triton.cdiv(sizes[0], rows), triton.cdiv(dimension, columns)
    launch(_hidden_kernel, grid, encoded, predicted, hidden, *sizes, dimension=dimension, rows=rows, columns=columns)
    return hidden


def score(
    logits: Tensor,
    targets: Tensor,
    lengths: tuple[Tensor, Tensor],
    blank_id: int,
    block: Block,
    into: tuple[Tensor, Tensor, Tensor],
) -> None:
    """See `lattice.score`; beyond the lengths nothing is read or written."""
    vocabulary, sizes = logits.shape[3], _sizes(block, into[0].shape[1])
    rows, columns = _tile(vocabulary)
    grid = (triton.cdiv(sizes[0], rows),)
    tensors = logits, targets, *(length.contiguous() for length in lengths), *into
    launch(_score_kernel, grid, *tensors, blank_id, *sizes, vocabulary=vocabulary, rows=rows, columns=columns)


def errors(
    logits: Tensor,
    targets: Tensor,
    blank_id: int,
    normalizer: Tensor,
    by_blank: Tensor,
    by_label: Tensor,
    gradient: Tensor,
    block: Block,
) -> tuple[Tensor, Tensor]:
    """See `lattice.errors`; they overwrite the logits, and are zero at nodes of negligible visits."""
    vocabulary, sizes = logits.shape[3], _sizes(block, normalizer.shape[1])
    rows, columns = _tile(vocabulary)
    grid = triton.cdiv(sizes[0], TILES * rows), triton.cdiv(vocabulary, columns)
    of_bias = normalizer.new_empty(grid[0], vocabulary)
    tensors = logits, targets, normalizer, by_blank, by_label, gradient.contiguous(), of_bias
    numbers = blank_id, negligible(normalizer), *sizes
    launch(_error_kernel, grid, *tensors, *numbers, vocabulary=vocabulary, rows=rows, columns=columns, tiles=TILES)
    return logits, of_bias.sum(dim=0)


def sums(of_hidden: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """See `lattice.sums`; they are float32."""
    batch, span, positions, dimension = hidden.shape
    tiles = triton.cdiv(span, FRAMES), triton.cdiv(positions, POSITIONS)
    of_frames = hidden.new_empty(tiles[1], batch, span, dimension, dtype=torch.float32)
    of_positions = hidden.new_empty(tiles[0], batch, positions, dimension, dtype=torch.float32)
    grid = batch * tiles[0], tiles[1], triton.cdiv(dimension, UNITS)
    tensors = of_hidden, hidden, of_frames, of_positions
    launch(
        _sum_kernel, grid, *tensors, span, positions, dimension=dimension, depth=FRAMES, width=POSITIONS, units=UNITS
    )
    return of_frames.sum(dim=0), of_positions.sum(dim=0)


def _sizes(block: Block, frames: int) -> tuple[int, int, int, int, int]:
    """Return the nodes of a block, its first frame, its frames, the frames of the lattice, and its positions."""
    rows, span_frames, positions = block
    span = span_frames.stop - span_frames.start
    return rows.stop * span * positions.stop, span_frames.start, span, frames, positions.stop


def _tile(width: int) -> tuple[int, int]:
    """Return the rows and columns of a tile of a matrix of the given width."""
    columns = min(triton.next_power_of_2(width), COLUMNS)
    return TILE // columns, columns
