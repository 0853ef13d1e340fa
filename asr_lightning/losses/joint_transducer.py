"""The transducer's loss together with its joint network, which never holds the logits of all frames and tokens.

Of each place (t, u) of the lattice only three numbers are kept: the logarithm of the softmax's denominator and the
scores of the blank and of the next token. The backward pass computes the logits again, a block of the lattice at a
time, so memory does not grow with the vocabulary. It leaves out places that hardly any alignment visits: together they
move no sum over frames or tokens by more than the rounding of its terms.

On CUDA, Triton kernels do what is done to a block besides its matrix products (`transducer_kernels.py`), and the
recursions (`transducer_recursion.py`). Before they are used for the first time on a device, a tiny case is computed by
them and by plain PyTorch (`transducer_check.py`). Elsewhere, in float64, and where that case fails, plain PyTorch does
all of it (`transducer_blocks.py`).
"""

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from asr_lightning.losses.transducer import real_targets
from asr_lightning.losses.transducer_blocks import Block, negligible
from asr_lightning.losses.transducer_check import parts_for
from asr_lightning.nn.sequences import silence_padding

LOGITS = {"cpu": 2**20, "cuda": 2**26}  # of a block: those of a CPU stay in its cache
NARROW = 32  # frames of a block of the backward pass on a CPU: over more, the places that matter move too far


def joint_transducer_loss(
    encoded: Tensor,
    predicted: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    encoder_lengths: Tensor,
    target_lengths: Tensor,
    blank_id: int,
) -> Tensor:
    """Return `transducer_loss` of the logits linear(tanh(encoded + predicted)), and give gradients to all four.

    Under autocast the joint network is computed in its type; the softmax's denominator is float32 and the recursions
    are float64 always. On a CPU no padding is computed; elsewhere nothing is read back from the device, but where
    kernels are compared with plain PyTorch, once per GPU.

    Args:
        encoded: (B, T, D) projected frames.
        predicted: (B, U + 1, D) projected histories: before any token, and after each.
        weight: (V, D) of the output layer.
        bias: (V,) of the output layer.
        targets: (B, U) token ids; what lies beyond the lengths is ignored.
        encoder_lengths: (B,) real frames.
        target_lengths: (B,) real tokens; 0 is an empty transcript, whose only alignment is blanks.
        blank_id: The blank's token id.

    Returns:
        (B,) losses, float32 or that of float64 input; infinite, with a gradient of zero, where there is no frame.

    Raises:
        ValueError: The shapes do not fit each other, or (on a CPU) the lengths.
    """
    _check(encoded, predicted, targets)
    kind = encoded.device.type
    if torch.is_autocast_enabled(kind):
        low = torch.get_autocast_dtype(kind)
        encoded, predicted, weight, bias = (x.to(low) for x in (encoded, predicted, weight, bias))
    encoded = silence_padding(encoded, encoder_lengths).contiguous()
    predicted = silence_padding(predicted, target_lengths + 1).contiguous()
    targets = pad(real_targets(targets, target_lengths, blank_id), (0, 1), value=blank_id)  # (B, U + 1)
    with torch.autocast(kind, enabled=False):
        losses, *_ = _forward(encoded, predicted, weight, bias, targets, encoder_lengths, target_lengths, blank_id)
    return losses


def _check(encoded: Tensor, predicted: Tensor, targets: Tensor) -> None:
    if predicted.shape[1] != targets.shape[1] + 1 or encoded.shape[2] != predicted.shape[2]:
        raise ValueError(
            f"expected encoded (B, T, D), predicted (B, U + 1, D) and targets (B, U), got {tuple(encoded.shape)}, "
            f"{tuple(predicted.shape)} and {tuple(targets.shape)}"
        )


@torch.library.custom_op("asr_lightning::joint_transducer", mutates_args=())
def _forward(
    encoded: Tensor,
    predicted: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    encoder_lengths: Tensor,
    target_lengths: Tensor,
    blank_id: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return losses (B,), and (B, T, U + 1) each: denominators, and the occupancies of blanks and of tokens."""
    parts = parts_for(encoded)
    precise = torch.promote_types(encoded.dtype, torch.float32)
    places = (*encoded.shape[:2], predicted.shape[1])
    normaliser, blank, label = (encoded.new_zeros(places, dtype=precise) for _ in range(3))
    lengths = encoder_lengths, target_lengths
    for block in _blocks(places, len(weight), encoder_lengths, target_lengths):
        logits, _ = _logits(parts, encoded, predicted, weight, bias, block)
        parts.score(logits, targets, lengths, blank_id, block, (normaliser, blank, label))
    losses, by_blank, by_label = parts.occupancies(blank, label, *lengths)
    return losses.to(precise), normaliser, by_blank.to(precise), by_label.to(precise)


@torch.library.custom_op("asr_lightning::joint_transducer_backward", mutates_args=())
def _backward(
    encoded: Tensor,
    predicted: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    encoder_lengths: Tensor,
    target_lengths: Tensor,
    blank_id: int,
    normaliser: Tensor,
    by_blank: Tensor,
    by_label: Tensor,
    gradient: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of encoded, predicted, weight and bias."""
    parts = parts_for(encoded)
    gradients = tuple(torch.zeros_like(x, dtype=normaliser.dtype) for x in (encoded, predicted, weight, bias))
    of_encoded, of_predicted, of_weight, of_bias = gradients
    matters = by_blank + by_label > negligible(normaliser)
    for block in _blocks(normaliser.shape, len(weight), encoder_lengths, target_lengths, matters):
        rows, frames, places = block
        logits, hidden = _logits(parts, encoded, predicted, weight, bias, block)
        error, of_some_bias = parts.errors(logits, targets, blank_id, normaliser, by_blank, by_label, gradient, block)
        flat = error.flatten(0, 2)
        of_weight += flat.T @ hidden.flatten(0, 2)
        of_bias += of_some_bias
        of_frames, of_places = parts.sums((flat @ weight).view_as(hidden), hidden)
        of_encoded[rows, frames] += of_frames
        of_predicted[rows, places] += of_places
    return tuple(x.to(encoded.dtype) for x in gradients)  # type: ignore[return-value]


def _logits(
    parts: ModuleType, encoded: Tensor, predicted: Tensor, weight: Tensor, bias: Tensor, block: Block
) -> tuple[Tensor, Tensor]:
    """Return logits (b, t, u, V) and hidden units (b, t, u, D) of a block."""
    hidden = parts.hidden_units(encoded, predicted, block)
    return linear(hidden, weight, bias), hidden


def _blocks(
    shape: tuple[int, ...],
    vocabulary: int,
    encoder_lengths: Tensor,
    target_lengths: Tensor,
    matters: Tensor | None = None,
) -> Iterator[Block]:
    """Divide the lattice (B, T, U + 1) into blocks whose logits are few."""
    if encoder_lengths.device.type == "cpu":
        frames, tokens = (int(lengths.max()) if len(lengths) else 0 for lengths in (encoder_lengths, target_lengths))
        if frames > shape[1] or tokens >= shape[2]:
            raise ValueError(
                f"expected at most {shape[1]} frames and {shape[2] - 1} tokens, got lengths up to {frames} and {tokens}"
            )
        return real_blocks(vocabulary, encoder_lengths, target_lengths, matters)
    return whole_blocks(shape, vocabulary)


def real_blocks(
    vocabulary: int, encoder_lengths: Tensor, target_lengths: Tensor, matters: Tensor | None
) -> Iterator[Block]:
    """Give blocks of one utterance each without padding; and of `matters`, where given, all that is True.

    Several frames together need all places from the first to the last that matters in any of them.
    """
    for row, (frames, tokens) in enumerate(zip(encoder_lengths.tolist(), target_lengths.tolist(), strict=True)):
        step = max(1, LOGITS["cpu"] // (vocabulary * (tokens + 1)))
        if matters is not None:
            step = min(step, NARROW)
        for start in range(0, frames, step):
            stop, first, last = min(start + step, frames), 0, tokens
            if matters is not None:
                seen = matters[row, start:stop].any(dim=0).nonzero()
                if not len(seen):
                    continue
                first, last = int(seen[0]), int(seen[-1])
            yield slice(row, row + 1), slice(start, stop), slice(first, last + 1)


def whole_blocks(shape: tuple[int, ...], vocabulary: int) -> Iterator[Block]:
    """Give blocks of some frames of all utterances: for this nothing has to be read back from a device."""
    batch, frames, places = shape
    step = max(1, LOGITS["cuda"] // max(1, vocabulary * batch * places))
    for start in range(0, frames, step):
        yield slice(0, batch), slice(start, min(start + step, frames)), slice(0, places)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:  # noqa: ANN401
    *tensors, ctx.blank_id = inputs
    ctx.save_for_backward(*tensors, *output[1:])


def _differentiate(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
    tensors = ctx.saved_tensors
    return (*_backward(*tensors[:7], ctx.blank_id, *tensors[7:], gradient), None, None, None, None)


@_forward.register_fake
def _(encoded: Tensor, predicted: Tensor, *_: Any) -> tuple[Tensor, ...]:  # noqa: ANN401
    precise = torch.promote_types(encoded.dtype, torch.float32)
    places = encoded.new_empty((*encoded.shape[:2], predicted.shape[1]), dtype=precise)
    return encoded.new_empty(len(encoded), dtype=precise), places, torch.empty_like(places), torch.empty_like(places)


@_backward.register_fake
def _(encoded: Tensor, predicted: Tensor, weight: Tensor, bias: Tensor, *_: Any) -> tuple[Tensor, ...]:  # noqa: ANN401
    return tuple(torch.empty_like(x) for x in (encoded, predicted, weight, bias))


_forward.register_autograd(_differentiate, setup_context=_setup)
