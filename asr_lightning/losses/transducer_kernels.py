"""Triton kernels of the transducer's loss: the functions of `transducer_blocks`, with fewer passes over the logits.

A block is of all utterances and places, and of some frames. Where a function of `transducer_blocks` reads or writes all
logits or all hidden units of a block several times, its kernel reads them once and writes them once, with all numbers
between in float32; logits of padding are not read. The recursions are in `transducer_recursion`.

Programs do not wait for each other, and none adds to what another has written, so results do not vary between runs.
A lattice has fewer than 2^31 places; its logits may be more. Of the sizes, only those of a model are compiled in.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from asr_lightning.losses.transducer_blocks import Block, negligible
from asr_lightning.losses.transducer_recursion import coordinates, launch, occupancies, without_sizes

__all__ = ["errors", "hidden_units", "occupancies", "score", "sums"]

TILE, COLUMNS = 4096, 1024  # numbers that a program holds of logits or of hidden units, and at most of each place
TILES = 8  # that a program goes through where it adds up the bias's gradient
FRAMES, PLACES, UNITS = 16, 32, 64  # of the hidden units that a program adds up


@without_sizes
def _hidden_kernel(
    encoded, predicted, hidden, count, start, span, frames, places,
    dimension: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0) * rows + tl.arange(0, rows)
    row, frame, place = coordinates(index, start, span, places)
    unit = tl.program_id(1) * columns + tl.arange(0, columns)[None, :]
    inside = (index < count)[:, None] & (unit < dimension)
    frames_at = encoded + (row * frames + frame).to(tl.int64)[:, None] * dimension
    places_at = predicted + (row * places + place).to(tl.int64)[:, None] * dimension
    of_frame = tl.load(frames_at + unit, mask=inside, other=0.0).to(tl.float32)
    x = of_frame + tl.load(places_at + unit, mask=inside, other=0.0).to(tl.float32)
    decayed = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - decayed) / (1.0 + decayed)
    square = x * x  # near zero the difference above cancels: there, the first terms of the series
    near = x * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))))
    y = tl.where(square < 0.0625, near, tl.where(x < 0, -far, far))
    tl.store(hidden + index.to(tl.int64)[:, None] * dimension + unit, y, mask=inside)


@without_sizes
def _score_kernel(
    logits, targets, encoder_lengths, target_lengths, normaliser, blank, label,
    blank_id, count, start, span, frames, places,
    vocabulary: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0) * rows + tl.arange(0, rows)
    row, frame, place = coordinates(index, start, span, places)
    inside = index < count
    real = inside & (frame < tl.load(encoder_lengths + row, mask=inside, other=0))
    real = real & (place <= tl.load(target_lengths + row, mask=inside, other=0))
    scores = logits + index.to(tl.int64) * vocabulary
    largest = tl.full([rows], float("-inf"), tl.float32)
    total = tl.zeros([rows], tl.float32)
    for first in range(0, vocabulary, columns):
        token = first + tl.arange(0, columns)[None, :]
        x = tl.load(scores[:, None] + token, mask=real[:, None] & (token < vocabulary), other=float("-inf"))
        x = x.to(tl.float32)
        top = tl.maximum(largest, tl.max(x, axis=1))
        shift = tl.where(top == float("-inf"), 0.0, top)  # a chunk may hold nothing but minus infinity
        total = total * tl.exp(largest - shift) + tl.sum(tl.exp(x - shift[:, None]), axis=1)
        largest = top
    denominator = tl.where(largest == float("-inf"), 0.0, tl.log(total) + largest)  # 0 where nothing is possible
    target = tl.load(targets + row * places + place, mask=real, other=0)
    known = real & (target >= 0) & (target < vocabulary)  # an unknown token costs what nobody overlooks
    of_blank = tl.load(scores + blank_id, mask=real, other=0.0).to(tl.float32)
    of_label = tl.load(scores + target, mask=known, other=float("nan")).to(tl.float32)
    at = (row * frames + frame) * places + place
    tl.store(normaliser + at, denominator, mask=real)
    tl.store(blank + at, of_blank - denominator, mask=real)
    tl.store(label + at, of_label - denominator, mask=real)


@without_sizes
def _error_kernel(
    logits, targets, normaliser, by_blank, by_label, gradient, of_bias,
    blank_id, least, count, start, span, frames, places,
    vocabulary: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr, tiles: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(1) * columns + tl.arange(0, columns)[None, :]
    total = tl.zeros([1, columns], tl.float32)
    for tile in range(tiles):
        index = (tl.program_id(0) * tiles + tile) * rows + tl.arange(0, rows)
        row, frame, place = coordinates(index, start, span, places)
        inside = index < count
        at = (row * frames + frame) * places + place
        of_blank = tl.load(by_blank + at, mask=inside, other=0.0)
        of_label = tl.load(by_label + at, mask=inside, other=0.0)
        visited = of_blank + of_label
        matters = inside & ~(visited <= least)  # what is not a number matters
        wanted = matters[:, None] & (token < vocabulary)
        target = tl.load(targets + row * places + place, mask=matters, other=0)
        scale = tl.load(gradient + row, mask=matters, other=0.0)
        denominator = tl.load(normaliser + at, mask=matters, other=0.0)
        here = logits + index.to(tl.int64)[:, None] * vocabulary + token
        x = tl.load(here, mask=wanted, other=0.0).to(tl.float32)
        error = tl.exp(x - denominator[:, None]) * visited[:, None]
        error -= tl.where(token == blank_id, of_blank[:, None], 0.0)
        error -= tl.where(token == target[:, None], of_label[:, None], 0.0)
        error = tl.where(wanted, error * scale[:, None], 0.0)
        total += tl.sum(error, axis=0, keep_dims=True)
        tl.store(here, error, mask=inside[:, None] & (token < vocabulary))
    tl.store(of_bias + tl.program_id(0) * vocabulary + token, total, mask=token < vocabulary)


@without_sizes
def _sum_kernel(
    of_hidden, hidden, of_frames, of_places, span, places,
    dimension: tl.constexpr, depth: tl.constexpr, width: tl.constexpr, units: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(span, depth)
    batch = tl.num_programs(0) // tiles
    row, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    place = tl.program_id(1) * width + tl.arange(0, width)[:, None]
    unit = tl.program_id(2) * units + tl.arange(0, units)[None, :]
    total = tl.zeros([width, units], tl.float32)
    for step in range(depth):
        frame = tile * depth + step
        at = ((row * span + frame) * places + place) * dimension + unit
        inside = (frame < span) & (place < places) & (unit < dimension)
        y = tl.load(hidden + at, mask=inside, other=0.0).to(tl.float32)
        inner = tl.load(of_hidden + at, mask=inside, other=0.0).to(tl.float32) * (1.0 - y * y)
        total += inner
        to = ((tl.program_id(1) * batch + row) * span + frame) * dimension + unit
        tl.store(of_frames + to, tl.sum(inner, axis=0, keep_dims=True), mask=(frame < span) & (unit < dimension))
    tl.store(
        of_places + ((tile * batch + row) * places + place) * dimension + unit,
        total,
        mask=(place < places) & (unit < dimension),
    )


def hidden_units(encoded: Tensor, predicted: Tensor, block: Block) -> Tensor:
    """See `transducer_blocks.hidden_units`; the sum is not rounded before its tanh."""
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
    """See `transducer_blocks.score`; beyond the lengths nothing is read and nothing written."""
    vocabulary, sizes = logits.shape[3], _sizes(block, into[0].shape[1])
    rows, columns = _tile(vocabulary)
    grid = (triton.cdiv(sizes[0], rows),)
    tensors = logits, targets, *(length.contiguous() for length in lengths), *into
    launch(_score_kernel, grid, *tensors, blank_id, *sizes, vocabulary=vocabulary, rows=rows, columns=columns)


def errors(
    logits: Tensor,
    targets: Tensor,
    blank_id: int,
    normaliser: Tensor,
    by_blank: Tensor,
    by_label: Tensor,
    gradient: Tensor,
    block: Block,
) -> tuple[Tensor, Tensor]:
    """See `transducer_blocks.errors`; they take the place of the logits, and are zero where hardly anybody visits."""
    vocabulary, sizes = logits.shape[3], _sizes(block, normaliser.shape[1])
    rows, columns = _tile(vocabulary)
    grid = triton.cdiv(sizes[0], TILES * rows), triton.cdiv(vocabulary, columns)
    of_bias = normaliser.new_empty(grid[0], vocabulary)
    tensors = logits, targets, normaliser, by_blank, by_label, gradient.contiguous(), of_bias
    numbers = blank_id, negligible(normaliser), *sizes
    launch(_error_kernel, grid, *tensors, *numbers, vocabulary=vocabulary, rows=rows, columns=columns, tiles=TILES)
    return logits, of_bias.sum(dim=0)


def sums(of_hidden: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """See `transducer_blocks.sums`; they are float32."""
    batch, span, places, dimension = hidden.shape
    tiles = triton.cdiv(span, FRAMES), triton.cdiv(places, PLACES)
    of_frames = hidden.new_empty(tiles[1], batch, span, dimension, dtype=torch.float32)
    of_places = hidden.new_empty(tiles[0], batch, places, dimension, dtype=torch.float32)
    grid = batch * tiles[0], tiles[1], triton.cdiv(dimension, UNITS)
    tensors = of_hidden, hidden, of_frames, of_places
    launch(_sum_kernel, grid, *tensors, span, places, dimension=dimension, depth=FRAMES, width=PLACES, units=UNITS)
    return of_frames.sum(dim=0), of_places.sum(dim=0)


def _sizes(block: Block, frames: int) -> tuple[int, int, int, int, int]:
    """Return how many places a block has, its first frame, its frames, all frames, and the places of a frame."""
    rows, some, places = block
    span = some.stop - some.start
    return rows.stop * span * places.stop, some.start, span, frames, places.stop


def _tile(width: int) -> tuple[int, int]:
    """Return the rows and columns of a tile of a matrix so wide."""
    columns = min(triton.next_power_of_2(width), COLUMNS)
    return TILE // columns, columns
