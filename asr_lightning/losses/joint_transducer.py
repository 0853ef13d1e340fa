"""The transducer's loss together with its joint network, which never holds the logits of all frames and tokens.

Of each place (t, u) of the lattice only three numbers are kept: the logarithm of the softmax's denominator and the
scores of the blank and of the next token. The backward pass computes the logits again, a block of the lattice at a
time, so memory does not grow with the vocabulary. It leaves out places that hardly any alignment visits: together they
move no sum over frames or tokens by more than the rounding of its terms.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from asr_lightning.losses.transducer import occupancies, real_targets
from asr_lightning.nn.masks import silence_padding

LOGITS = {"cpu": 2**20, "cuda": 2**26}  # of a block: those of a CPU stay in its cache
NARROW = 32  # frames of a block of the backward pass on a CPU: over more, the places that matter move too far

Block = tuple[slice, slice, slice]  # rows, frames and places of the lattice


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
    are float64 always. On a CPU no padding is computed; elsewhere nothing is read back from the device.

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
    encoded = silence_padding(encoded, encoder_lengths)
    predicted = silence_padding(predicted, target_lengths + 1)
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
    precise = torch.promote_types(encoded.dtype, torch.float32)
    places = (*encoded.shape[:2], predicted.shape[1])
    normaliser, blank, label = (encoded.new_zeros(places, dtype=precise) for _ in range(3))
    for block in _blocks(places, len(weight), encoder_lengths, target_lengths):
        logits = _logits(encoded, predicted, weight, bias, block)[0].to(precise)
        blank[block] = logits[..., blank_id]
        label[block] = logits.gather(3, _tokens(targets, block)).squeeze(3)
        largest = logits.amax(dim=3)
        normaliser[block] = logits.sub_(largest.unsqueeze(3)).exp_().sum(dim=3).log_().add_(largest)
    losses, by_blank, by_label = occupancies(blank - normaliser, label - normaliser, encoder_lengths, target_lengths)
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
    precise = normaliser.dtype
    gradients = tuple(torch.zeros_like(x, dtype=precise) for x in (encoded, predicted, weight, bias))
    of_encoded, of_predicted, of_weight, of_bias = gradients
    visited = by_blank + by_label
    matters = visited > torch.finfo(precise).eps / max(normaliser.shape[1:])
    visited, by_blank, by_label = (x * gradient[:, None, None] for x in (visited, by_blank, by_label))
    for block in _blocks(normaliser.shape, len(weight), encoder_lengths, target_lengths, matters):
        rows, frames, places = block
        logits, hidden = _logits(encoded, predicted, weight, bias, block)
        error = logits.to(precise).sub_(normaliser[block].unsqueeze(3)).exp_().mul_(visited[block].unsqueeze(3))
        error[..., blank_id] -= by_blank[block]
        error.scatter_add_(3, _tokens(targets, block), -by_label[block].unsqueeze(3))
        flat = error.flatten(0, 2).to(weight.dtype)
        of_weight += flat.T @ hidden.flatten(0, 2)
        of_bias += error.sum(dim=(0, 1, 2))
        inner = torch.ops.aten.tanh_backward((flat @ weight).view_as(hidden), hidden)
        of_encoded[rows, frames] += inner.sum(dim=2)
        of_predicted[rows, places] += inner.sum(dim=1)
    return tuple(x.to(encoded.dtype) for x in gradients)  # type: ignore[return-value]


def _logits(encoded: Tensor, predicted: Tensor, weight: Tensor, bias: Tensor, block: Block) -> tuple[Tensor, Tensor]:
    """Return logits (b, t, u, V) and hidden units (b, t, u, D) of a block."""
    rows, frames, places = block
    hidden = (encoded[rows, frames].unsqueeze(2) + predicted[rows, places].unsqueeze(1)).tanh_()
    return linear(hidden, weight, bias), hidden


def _tokens(targets: Tensor, block: Block) -> Tensor:
    """Return the next token of each place of a block, (b, t, u, 1)."""
    rows, frames, places = block
    return targets[rows, None, places, None].expand(-1, frames.stop - frames.start, -1, -1)


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
