import math
from collections.abc import Callable

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from asr_lightning.models.schedules import TriStage, WarmupCosine, WarmupInverseRoot


def rates(make: Callable[[torch.optim.Optimizer], LambdaLR], steps: int) -> list[float]:
    """The learning rate of each step, with a peak of 2."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler, seen = make(optimizer), []
    for _ in range(steps):
        seen.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return seen


def test_cosine_rises_and_falls_to_its_floor() -> None:
    seen = rates(lambda optimizer: WarmupCosine(optimizer, 4, 12, floor=0.1), 15)
    assert seen[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert seen[8] == pytest.approx(0.2 + 1.8 * 0.5)
    assert seen[12:] == pytest.approx([0.2] * 3)


def test_inverse_root_halves_after_four_times_the_warm_up() -> None:
    seen = rates(lambda optimizer: WarmupInverseRoot(optimizer, 4), 20)
    assert seen[3] == pytest.approx(2.0) == max(seen)
    assert seen[15] == pytest.approx(1.0)


def test_three_stages() -> None:
    seen = rates(lambda optimizer: TriStage(optimizer, 4, 3, 5), 20)
    assert seen[:4] == pytest.approx([0.02, 0.515, 1.01, 1.505])
    assert seen[4:8] == pytest.approx([2.0] * 4)
    assert seen[12:] == pytest.approx([0.02] * 8)
    falls = [math.log(later / earlier) for earlier, later in zip(seen[7:12], seen[8:13], strict=True)]
    assert falls == pytest.approx([math.log(0.01) / 5] * 5)
