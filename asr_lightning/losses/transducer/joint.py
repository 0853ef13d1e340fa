"""The exact loss of the transducer, computed together with its joint network: the logits of all nodes are never held.

Of each node (t, u) of the lattice only three numbers are kept: the logarithm of the softmax's denominator and the log
probabilities of the blank and of the next token. The backward pass computes the logits again, a block of the lattice
at a time, so memory does not grow with the vocabulary. It leaves out nodes that hardly any alignment visits: together
they change no sum over frames or tokens by more than the rounding of its terms.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from asr_lightning.errors import InputError
from asr_lightning.losses.transducer import lattice
from asr_lightning.losses.transducer.check import kernels_work
from asr_lightning.losses.transducer.lattice import Block, delayed, favored, negligible, real_targets
from asr_lightning.nn.sequences import silence_padding

LOGITS = {"cpu": 2**20, "cuda": 2**26}  # of a block: on a CPU they stay in its cache
NARROW = 32  # frames of a block of the backward pass on a CPU: over more, the visited positions move too far


class TransducerLoss(ABC):
    """Base class: the loss of each utterance from the inputs of the joint network."""

    @abstractmethod
    def __call__(
        self,
        encoded: Tensor,
        predicted: Tensor,
        output: nn.Linear,
        targets: Tensor,
        encoder_lengths: Tensor,
        target_lengths: Tensor,
        blank_id: int,
    ) -> Tensor:
        """Return the losses, (B,), of the logits output(tanh(encoded + predicted)).

        Args:
            encoded: (B, T, D) projected frames.
            predicted: (B, U + 1, D) projected histories: before any token, and after each.
            output: Output layer of the joint network.
            targets: (B, U) token ids; what lies beyond the lengths is ignored.
            encoder_lengths: (B,) real frames.
            target_lengths: (B,) real tokens.
            blank_id: The blank's token id.
        """


class ExactLoss(TransducerLoss):
    """The sum over all alignments, computed a block of the lattice at a time: `joint_transducer_loss`.

    Args:
        delay_penalty: Weight of the delay of tokens, see `lattice.delayed`.
        fast_emit: λ of FastEmit, see `lattice.favored`.

    Raises:
        InputError: `fast_emit` is negative or not finite.
    """

    def __init__(self, delay_penalty: float = 0.0, fast_emit: float = 0.0) -> None:
        self.delay_penalty = delay_penalty
        self.fast_emit = checked_fast_emit(fast_emit)

    def __call__(
        self,
        encoded: Tensor,
        predicted: Tensor,
        output: nn.Linear,
        targets: Tensor,
        encoder_lengths: Tensor,
        target_lengths: Tensor,
        blank_id: int,
    ) -> Tensor:
        """Return the losses, (B,)."""
        lengths, options = (encoder_lengths, target_lengths), (self.delay_penalty, self.fast_emit)
        return joint_transducer_loss(
            encoded, predicted, output.weight, output.bias, targets, *lengths, blank_id, *options
        )


def checked_fast_emit(weight: float) -> float:
    """Return the weight of FastEmit, if it is valid.

    Raises:
        InputError: It is negative or not finite.
    """
    if not 0 <= weight < math.inf:
        raise InputError(f"expected fast_emit to be a finite number from 0, got {weight}")
    return weight


def joint_transducer_loss(
    encoded: Tensor,
    predicted: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    encoder_lengths: Tensor,
    target_lengths: Tensor,
    blank_id: int,
    delay_penalty: float = 0.0,
    fast_emit: float = 0.0,
) -> Tensor:
    """Return the transducer loss of the logits linear(tanh(encoded + predicted)), with gradients for all four tensors.

    Under autocast the joint network is computed in the type of autocast; the softmax's denominator is always float32
    and the recursions are float64. On a CPU no padding is computed. On a GPU nothing is read back from the device,
    except when kernels are compared with plain PyTorch, once per GPU.

    Args:
        encoded: (B, T, D) projected frames.
        predicted: (B, U + 1, D) projected histories: before any token, and after each.
        weight: (V, D) of the output layer.
        bias: (V,) of the output layer.
        targets: (B, U) token ids; what lies beyond the lengths is ignored.
        encoder_lengths: (B,) real frames.
        target_lengths: (B,) real tokens; 0 is an empty transcript, whose only alignment is blanks.
        blank_id: The blank's token id.
        delay_penalty: Weight of the delay of tokens, see `lattice.delayed`.
        fast_emit: λ of FastEmit, which changes the gradients alone, see `lattice.favored`.

    Returns:
        (B,) losses, float32 or that of float64 input; infinite, with a gradient of zero, where there is no frame or no
        possible alignment.

    Raises:
        ValueError: The shapes do not fit each other, or (on a CPU) the lengths.
    """
    check_shapes(encoded, predicted, targets)
    kind = encoded.device.type
    if torch.is_autocast_enabled(kind):
        low = torch.get_autocast_dtype(kind)
        encoded, predicted, weight, bias = (x.to(low) for x in (encoded, predicted, weight, bias))
    encoded = silence_padding(encoded, encoder_lengths).contiguous()
    predicted = silence_padding(predicted, target_lengths + 1).contiguous()
    targets = pad(real_targets(targets, target_lengths, blank_id), (0, 1), value=blank_id)  # (B, U + 1)
    lengths = encoder_lengths, target_lengths
    with torch.autocast(kind, enabled=False):
        losses, *_ = _forward(encoded, predicted, weight, bias, targets, *lengths, blank_id, delay_penalty, fast_emit)
    return losses


def check_shapes(encoded: Tensor, predicted: Tensor, targets: Tensor) -> None:
    """Refuse tensors of shapes that do not fit each other with a ValueError."""
    if predicted.shape[1] != targets.shape[1] + 1 or encoded.shape[2] != predicted.shape[2]:
        raise ValueError(
            f"expected encoded (B, T, D), predicted (B, U + 1, D) and targets (B, U), got {tuple(encoded.shape)}, "
            f"{tuple(predicted.shape)} and {tuple(targets.shape)}"
        )


def check_lengths(shape: tuple[int, ...], encoder_lengths: Tensor, target_lengths: Tensor) -> None:
    """Refuse lengths beyond the lattice (B, T, U + 1) with a ValueError, on a CPU; a GPU is not asked for them."""
    if encoder_lengths.device.type != "cpu" or not len(encoder_lengths):
        return
    frames, tokens = int(encoder_lengths.max()), int(target_lengths.max())
    if frames > shape[1] or tokens >= shape[2]:
        raise ValueError(
            f"expected at most {shape[1]} frames and {shape[2] - 1} tokens, got lengths up to {frames} and {tokens}"
        )


def operations_for(x: Tensor) -> ModuleType:
    """Return the module whose functions compute the loss of a tensor: `kernels` on a GPU, `lattice` elsewhere."""
    if x.is_cuda and x.dtype != torch.float64 and kernels_work(x.device):
        from asr_lightning.losses.transducer import kernels  # Triton is not on every system, and slow to import

        return kernels
    return lattice


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
    delay_penalty: float,
    fast_emit: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return losses (B,), and (B, T, U + 1) each: denominators, weights of blanks and of tokens in the gradient."""
    operations = operations_for(encoded)
    precise = torch.promote_types(encoded.dtype, torch.float32)
    shape = (*encoded.shape[:2], predicted.shape[1])
    normalizer, blank, label = (encoded.new_zeros(shape, dtype=precise) for _ in range(3))
    lengths = encoder_lengths, target_lengths
    for block in lattice_blocks(shape, len(weight), encoder_lengths, target_lengths):
        logits, _ = _logits(operations, encoded, predicted, weight, bias, block)
        operations.score(logits, targets, lengths, blank_id, block, (normalizer, blank, label))
    losses, by_blank, by_label = operations.occupancies(blank, delayed(label, encoder_lengths, delay_penalty), *lengths)
    return losses.to(precise), normalizer, by_blank.to(precise), favored(by_label, fast_emit).to(precise)


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
    normalizer: Tensor,
    by_blank: Tensor,
    by_label: Tensor,
    gradient: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of encoded, predicted, weight and bias."""
    operations = operations_for(encoded)
    gradients = tuple(torch.zeros_like(x, dtype=normalizer.dtype) for x in (encoded, predicted, weight, bias))
    of_encoded, of_predicted, of_weight, of_bias = gradients
    visited = by_blank + by_label > negligible(normalizer)
    for block in lattice_blocks(normalizer.shape, len(weight), encoder_lengths, target_lengths, visited):
        rows, frames, positions = block
        logits, hidden = _logits(operations, encoded, predicted, weight, bias, block)
        error, of_block_bias = operations.errors(
            logits, targets, blank_id, normalizer, by_blank, by_label, gradient, block
        )
        flat = error.flatten(0, 2)
        of_weight += flat.T @ hidden.flatten(0, 2)
        of_bias += of_block_bias
        of_frames, of_positions = operations.sums((flat @ weight).view_as(hidden), hidden)
        of_encoded[rows, frames] += of_frames
        of_predicted[rows, positions] += of_positions
    return tuple(x.to(encoded.dtype) for x in gradients)  # type: ignore[return-value]


def _logits(
    operations: ModuleType, encoded: Tensor, predicted: Tensor, weight: Tensor, bias: Tensor, block: Block
) -> tuple[Tensor, Tensor]:
    """Return logits (b, t, u, V) and hidden units (b, t, u, D) of a block."""
    hidden = operations.hidden_units(encoded, predicted, block)
    return linear(hidden, weight, bias), hidden


def lattice_blocks(
    shape: tuple[int, ...],
    vocabulary: int,
    encoder_lengths: Tensor,
    target_lengths: Tensor,
    visited: Tensor | None = None,
) -> Iterator[Block]:
    """Divide the lattice (B, T, U + 1) into blocks with a bounded number of logits."""
    check_lengths(shape, encoder_lengths, target_lengths)
    if encoder_lengths.device.type == "cpu":
        return real_blocks(vocabulary, encoder_lengths, target_lengths, visited)
    return whole_blocks(shape, vocabulary)


def real_blocks(
    vocabulary: int, encoder_lengths: Tensor, target_lengths: Tensor, visited: Tensor | None
) -> Iterator[Block]:
    """Yield blocks of one utterance each, without padding; with `visited` (B, T, U + 1), only blocks around its nodes.

    The frames of a block need all positions from the first to the last that is visited in any of them.
    """
    for utterance, (frames, tokens) in enumerate(zip(encoder_lengths.tolist(), target_lengths.tolist(), strict=True)):
        step = max(1, LOGITS["cpu"] // (vocabulary * (tokens + 1)))
        if visited is not None:
            step = min(step, NARROW)
        for start in range(0, frames, step):
            stop, first, last = min(start + step, frames), 0, tokens
            if visited is not None:
                needed = visited[utterance, start:stop].any(dim=0).nonzero()
                if not len(needed):
                    continue
                first, last = int(needed[0]), int(needed[-1])
            yield slice(utterance, utterance + 1), slice(start, stop), slice(first, last + 1)


def whole_blocks(shape: tuple[int, ...], vocabulary: int) -> Iterator[Block]:
    """Yield blocks of some frames of all utterances: for this nothing has to be read back from a device."""
    batch, frames, positions = shape
    step = max(1, LOGITS["cuda"] // max(1, vocabulary * batch * positions))
    for start in range(0, frames, step):
        yield slice(0, batch), slice(start, min(start + step, frames)), slice(0, positions)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:  # noqa: ANN401
    *tensors, ctx.blank_id, _, _ = inputs
    ctx.save_for_backward(*tensors, *output[1:])


def _differentiate(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
    tensors = ctx.saved_tensors
    return (*_backward(*tensors[:7], ctx.blank_id, *tensors[7:], gradient), *[None] * 6)


@_forward.register_fake
def _(encoded: Tensor, predicted: Tensor, *_: Any) -> tuple[Tensor, ...]:  # noqa: ANN401
    precise = torch.promote_types(encoded.dtype, torch.float32)
    nodes = encoded.new_empty((*encoded.shape[:2], predicted.shape[1]), dtype=precise)
    return encoded.new_empty(len(encoded), dtype=precise), nodes, torch.empty_like(nodes), torch.empty_like(nodes)


@_backward.register_fake
def _(encoded: Tensor, predicted: Tensor, weight: Tensor, bias: Tensor, *_: Any) -> tuple[Tensor, ...]:  # noqa: ANN401
    return tuple(torch.empty_like(x) for x in (encoded, predicted, weight, bias))


_forward.register_autograd(_differentiate, setup_context=_setup)
