"""The loss on the straight line between two networks of one architecture [Goodfellow et al. 2015; for Han et al. 2024].

Two networks with different random initial weights have their units in different orders, so a barrier between them is
expected. Networks without a barrier lie in one basin, as those may that were initialized from the same teacher.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from asr_lightning.batch import Batch
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.scoring.error_rates import ErrorRates

Measured = TypeVar("Measured")


@dataclass(frozen=True)
class Quality:
    """Loss and error rates of a recognizer.

    Attributes:
        loss: Mean over the utterances whose loss is finite, in nats; NaN if there is none.
        utterances: How many these are.
        error_rates: As fractions, by name; empty if nothing was recognized.
    """

    loss: float
    utterances: int
    error_rates: dict[str, float]


def line_positions(first: float = -0.25, last: float = 1.25, count: int = 13) -> list[float]:
    """Return evenly spaced values of α, with the ends 0 and 1 exactly.

    Raises:
        ValueError: The range does not hold both ends, or there are fewer than two values.
    """
    if not first <= 0 < 1 <= last or count < 2:
        raise ValueError(f"expected 2 or more values in a range that holds 0 and 1, got {count} from {first} to {last}")
    spread = [first + (last - first) * number / (count - 1) for number in range(count)]
    inner = [alpha for alpha in spread if min(abs(alpha), abs(alpha - 1)) > 1e-9]
    return sorted([0.0, 1.0, *inner])


def interpolate(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], alpha: float, parameters: Collection[str]
) -> dict[str, Tensor]:
    """Return (1 - α) of one state_dict and α of another.

    Args:
        first: At α = 0, which gives it exactly.
        second: At α = 1, which gives it exactly; with the same names and shapes.
        alpha: α; below 0 and above 1 the line continues.
        parameters: Names of parameters. All other entries are buffers, such as the running statistics of BatchNorm;
            beyond an end these are as at that end, since a variance could become negative. Whole numbers are rounded.
    """
    clamped = min(max(alpha, 0.0), 1.0)
    weights = {}
    for name, start in first.items():
        end = second[name]
        if start.is_floating_point():
            weights[name] = torch.lerp(start, end, alpha if name in parameters else clamped)
        else:
            weights[name] = torch.lerp(start.double(), end.double(), clamped).round().to(start.dtype)
    return weights


def along_line(
    network: nn.Module,
    second: Mapping[str, Tensor],
    where: Sequence[float],
    measure: Callable[[], Measured],
) -> Iterator[tuple[float, Measured]]:
    """Set a network to points on the line from its own weights to others, and measure it at each.

    Args:
        network: Has its own weights again at the end.
        second: The state_dict at α = 1.
        where: Values of α.
        measure: Called at each point.

    Yields:
        α and the result of `measure`.
    """
    first = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    second_weights = {name: tensor.to(first[name].device) for name, tensor in second.items()}
    try:
        for alpha in where:
            network.load_state_dict(interpolate(first, second_weights, alpha, parameters))
            yield alpha, measure()
    finally:
        network.load_state_dict(first)


@torch.inference_mode()
def quality(recognizer: Recognizer, batches: Iterable[Batch], recognize: bool = False) -> Quality:
    """Measure a recognizer, in evaluation mode and on its device.

    Args:
        recognizer: What to measure.
        batches: Speech with transcripts.
        recognize: Also search for texts and count their errors, which takes longer.
    """
    total, count = 0.0, 0
    rates = ErrorRates().to(recognizer.device)
    for batch in batches:
        device_batch = batch.to(recognizer.device)
        losses = recognizer.loss(device_batch)
        usable = losses.isfinite()
        total += float(losses[usable].double().sum())
        count += int(usable.sum())
        if recognize:
            rates.update([recognizer.tokenizer.fold(text) for text in batch.texts], recognizer.transcribe(device_batch))
    error_rates = {name: float(value) for name, value in rates.compute().items()} if recognize else {}
    return Quality(total / count if count else math.nan, count, error_rates)


def barrier(line: Sequence[tuple[float, float]]) -> float:
    """Return how far the loss between the ends rises above the chord from one end's loss to the other's.

    Args:
        line: α and loss, with both ends [Frankle et al. 2020, "Linear mode connectivity", §2].

    Returns:
        In the unit of the loss; 0 where it rises nowhere, NaN where a loss is not finite.
    """
    losses = dict(line)
    start, end = losses[0.0], losses[1.0]
    rises = [loss - (start + alpha * (end - start)) for alpha, loss in line if 0 <= alpha <= 1]  # 0 if all are alike
    return math.nan if any(math.isnan(rise) for rise in rises) else max(rises)
