"""The loss on the straight line between two networks of one architecture [Goodfellow et al. 2015; for Han et al. 2024].

Two networks that began with different random weights have their units in different orders, so a hill between them is no
wonder. Where there is none, both lie in one valley, as networks may that began with units of the same teacher.
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
    """How good a recogniser is.

    Attributes:
        loss: Mean over the utterances whose loss is finite, in nats; NaN if there is none.
        utterances: How many these are.
        error_rates: As fractions, by name; empty where nothing was recognised.
    """

    loss: float
    utterances: int
    error_rates: dict[str, float]


def line_positions(first: float = -0.25, last: float = 1.25, count: int = 13) -> list[float]:
    """Return places on a line, evenly spread, and both ends, which are 0 and 1, exactly.

    Raises:
        ValueError: The range does not hold both ends, or there are fewer than two places.
    """
    if not first <= 0 < 1 <= last or count < 2:
        raise ValueError(f"expected 2 or more places in a range that holds 0 and 1, got {count} from {first} to {last}")
    spread = [first + (last - first) * number / (count - 1) for number in range(count)]
    between = [alpha for alpha in spread if min(abs(alpha), abs(alpha - 1)) > 1e-9]
    return sorted([0.0, 1.0, *between])


def interpolate(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], alpha: float, parameters: Collection[str]
) -> dict[str, Tensor]:
    """Return (1 - α) of one state_dict and α of another.

    Args:
        first: At α = 0, which gives it exactly.
        second: At α = 1, which gives it exactly; with the same names and shapes.
        alpha: α; the line goes on beyond its ends.
        parameters: Names of parameters. All other entries are buffers, such as the running statistics of BatchNorm;
            these stay as at the nearer end beyond the ends, where a variance could become negative. Whole numbers are
            rounded.
    """
    between = min(max(alpha, 0.0), 1.0)
    weights = {}
    for name, start in first.items():
        end = second[name]
        if start.is_floating_point():
            weights[name] = torch.lerp(start, end, alpha if name in parameters else between)
        else:
            weights[name] = torch.lerp(start.double(), end.double(), between).round().to(start.dtype)
    return weights


def along_line(
    network: nn.Module,
    second: Mapping[str, Tensor],
    where: Sequence[float],
    measure: Callable[[], Measured],
) -> Iterator[tuple[float, Measured]]:
    """Move a network along the line from its own weights to others, and measure it at each place.

    Args:
        network: Has its own weights again at the end.
        second: The state_dict at α = 1.
        where: Values of α.
        measure: Looks at the network.

    Yields:
        α and what was measured there.
    """
    first = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    other = {name: tensor.to(first[name].device) for name, tensor in second.items()}
    try:
        for alpha in where:
            network.load_state_dict(interpolate(first, other, alpha, parameters))
            yield alpha, measure()
    finally:
        network.load_state_dict(first)


@torch.inference_mode()
def quality(recognizer: Recognizer, batches: Iterable[Batch], recognize: bool = False) -> Quality:
    """Measure a recogniser, in evaluation mode and on its device.

    Args:
        recognizer: What to measure.
        batches: Speech with transcripts.
        recognize: Also search for texts and count their errors, which takes longer.
    """
    total, count = 0.0, 0
    rates = ErrorRates().to(recognizer.device)
    for batch in batches:
        here = batch.to(recognizer.device)
        losses = recognizer.loss(here)
        usable = losses.isfinite()
        total += float(losses[usable].double().sum())
        count += int(usable.sum())
        if recognize:
            rates.update([recognizer.tokenizer.fold(text) for text in batch.texts], recognizer.transcribe(here))
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
    first, last = losses[0.0], losses[1.0]
    rises = [loss - (first + alpha * (last - first)) for alpha, loss in line if 0 <= alpha <= 1]  # 0 if all are alike
    return math.nan if any(math.isnan(rise) for rise in rises) else max(rises)
