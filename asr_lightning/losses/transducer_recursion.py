"""Triton kernels of the recursions over the transducer's lattice: `transducer.occupancies` on a GPU.

One program walks over the lattice of one utterance, forward or, turned around, backward. It holds one number of each
place (log alpha, or log beta), and goes from one anti-diagonal t + u to the next: all that it needs of the one before
is the number at the place itself and that at the place before, so a step is one sum of two probabilities, where a step
by frames would be a scan over all places. Everything is float64. No program waits for another.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from asr_lightning.losses import transducer

LONGEST = 4096  # places that one program can hold: of longer transcripts plain PyTorch takes care

SIZES = ["blank_id", "least", "count", "start", "span", "frames", "places"]  # vary, and are no reason to compile again
without_sizes = triton.jit(do_not_specialize=SIZES)


@triton.jit
def coordinates(index, start, span, places):
    """Return the row, the frame and the place of each index into a block of `span` frames from `start` on."""
    frame = index // places
    return frame // span, start + frame % span, index % places


@triton.jit
def _moves(blank, label, step, place, length, tokens, places, back):
    """Return where a step comes to, what it costs to come from the frame before and from the place before, and whether.

    Turned around, the first frame is the last; a score there belongs to the place come to, else to the one come from.
    """
    turned = step - place
    inside = (turned >= 0) & (turned < length) & (place <= tokens)
    frame = tl.where(back == 1, length - 1 - turned, turned)
    at = frame * places + tl.where(back == 1, tokens - place, place)
    before = (1 - back) * places
    by_blank = tl.load(blank + at - before, mask=inside & (at >= before), other=0.0)
    by_label = tl.load(label + at - (1 - back), mask=inside & (place > 0), other=float("-inf"))
    return at, by_blank.to(tl.float64), by_label.to(tl.float64), inside


@without_sizes
def _walk_kernel(
    blank, label, encoder_lengths, target_lengths, walks, losses, frames, places, held: tl.constexpr
):  # fmt: skip
    row, back = tl.program_id(0), tl.program_id(1)
    length = tl.load(encoder_lengths + row).to(tl.int32)
    tokens = tl.load(target_lengths + row).to(tl.int32)
    fits = (length <= frames) & (tokens < places)
    empty = length <= 0
    length = tl.where(fits, length, 0)  # of lengths beyond the lattice nothing is read, and the loss is no number
    steps = tl.where(length > 0, length + tokens, 0)
    lattice = row.to(tl.int64) * frames * places
    blank += lattice
    label += lattice
    walks += lattice + back.to(tl.int64) * tl.num_programs(0) * frames * places
    place = tl.arange(0, held)
    before = tl.maximum(place - 1, 0)
    carried = tl.where(place == 0, 0.0, float("-inf")).to(tl.float64)
    at, by_blank, by_label, inside = _moves(blank, label, 0, place, length, tokens, places, back)
    step = 0
    while step < steps:  # not `for … in range(steps)`: Triton's interpreter and numpy disagree about such bounds
        here, moved, emitted, real = at, carried + by_blank, tl.gather(carried, before, 0) + by_label, inside
        # What the next step needs is on its way while this one computes.
        at, by_blank, by_label, inside = _moves(blank, label, step + 1, place, length, tokens, places, back)
        largest = tl.maximum(moved, emitted)
        shift = tl.where(largest == float("-inf"), 0.0, largest)
        carried = tl.where(real, shift + tl.log(tl.exp(moved - shift) + tl.exp(emitted - shift)), carried)
        tl.store(walks + here, carried, mask=real)
        step += 1
    likelihood = tl.sum(tl.where(place == tokens, carried, 0.0), axis=0)
    loss = tl.where(fits, tl.where(empty, float("inf"), -likelihood), float("nan"))
    tl.store(losses + row, loss, mask=back == 1)


@without_sizes
def _occupancy_kernel(
    blank, label, encoder_lengths, target_lengths, walks, losses, by_blank, by_label, count, frames, places,
    size: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0) * size + tl.arange(0, size)
    row, frame, place = coordinates(index, 0, frames, places)
    inside = index < count
    length = tl.load(encoder_lengths + row, mask=inside, other=0)
    tokens = tl.load(target_lengths + row, mask=inside, other=0)
    real = inside & (frame < length) & (place <= tokens)
    last, full = frame >= tl.minimum(length, frames) - 1, place >= tl.minimum(tokens, places - 1)
    alpha = tl.load(walks + index, mask=real, other=float("-inf"))
    loss = tl.load(losses + row, mask=real, other=0.0)
    left = alpha + tl.where(loss == float("inf"), float("-inf"), loss)  # of an impossible row nothing is taken
    onward = tl.load(walks + count + index + places, mask=real & ~last, other=float("-inf"))
    onward = tl.where(last & full, 0.0, onward)  # the end is behind the last frame, with all tokens emitted
    upward = tl.load(walks + count + index + 1, mask=real & ~full, other=float("-inf"))
    of_blank = tl.exp(left + tl.load(blank + index, mask=real, other=0.0) + onward)
    of_label = tl.exp(left + tl.load(label + index, mask=real & ~full, other=0.0) + upward)
    tl.store(by_blank + index, tl.where(real, of_blank, 0.0), mask=inside)
    tl.store(by_label + index, tl.where(real, of_label, 0.0), mask=inside)


def occupancies(
    blank: Tensor, label: Tensor, encoder_lengths: Tensor, target_lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `transducer.occupancies`; the losses are float64, and the occupancies in the type of the scores."""
    batch, frames, places = blank.shape
    if not blank.numel() or places > LONGEST:
        losses, *both = transducer.occupancies(blank, label, encoder_lengths, target_lengths)
        return losses, both[0].to(blank.dtype), both[1].to(blank.dtype)
    lengths = encoder_lengths.contiguous(), target_lengths.contiguous()
    losses, walks = (blank.new_empty(shape, dtype=torch.float64) for shape in ((batch,), (2, *blank.shape)))
    held = triton.next_power_of_2(places)
    warps = min(16, max(1, held // 32))
    launch(_walk_kernel, (batch, 2), blank, label, *lengths, walks, losses, frames, places, held=held, num_warps=warps)
    by_blank, by_label = torch.empty_like(blank), torch.empty_like(blank)
    tensors = blank, label, *lengths, walks, losses, by_blank, by_label
    count, size = blank.numel(), 512
    launch(_occupancy_kernel, (triton.cdiv(count, size),), *tensors, count, frames, places, size=size)
    return losses, by_blank, by_label


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: int) -> None:  # noqa: ANN401
    """Run a kernel on the device of its first argument, a tensor. It takes all tensors to be contiguous."""
    assert all(argument.is_contiguous() for argument in arguments if isinstance(argument, Tensor))
    with torch.cuda.device_of(arguments[0]):
        kernel[grid](*arguments, **constants)
