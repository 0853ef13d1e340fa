"""Learning rates over steps; the optimiser's own rate is the peak."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class WarmupCosine(LambdaLR):
    """Rises linearly from 0 to the peak, then falls along half a cosine to a floor.

    Args:
        optimizer: Its learning rate is the peak.
        warmup_steps: Steps to the peak.
        total_steps: Steps to the floor; it stays there.
        floor: Share of the peak that remains.
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int, total_steps: int, floor: float = 0.0) -> None:
        def factor(step: int) -> float:
            if step < warmup_steps:
                return (step + 1) / warmup_steps
            done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
            return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * done))

        super().__init__(optimizer, factor)


class WarmupInverseRoot(LambdaLR):
    """Rises linearly from 0 to the peak, then falls with the inverse root of the step [Vaswani et al. 2017, §5.3].

    Args:
        optimizer: Its learning rate is the peak.
        warmup_steps: Steps to the peak.
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int) -> None:
        def factor(step: int) -> float:
            return min((step + 1) / warmup_steps, math.sqrt(warmup_steps / (step + 1)))

        super().__init__(optimizer, factor)


class TriStage(LambdaLR):
    """Rises linearly to the peak, stays there, then falls exponentially to a floor, where it stays [seed 003].

    Seed 003 has a peak of 1e-4 (the optimiser's rate), 1e-6 before and after (a hundredth), and 400 steps of warm-up.

    Args:
        optimizer: Its learning rate is the peak.
        warmup_steps: Steps to the peak.
        hold_steps: Steps at the peak.
        decay_steps: Steps to the floor.
        start: Share of the peak that it begins with.
        floor: Share of the peak that remains.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int,
        hold_steps: int,
        decay_steps: int,
        start: float = 0.01,
        floor: float = 0.01,
    ) -> None:
        def factor(step: int) -> float:
            if step < warmup_steps:
                return start + (1.0 - start) * step / warmup_steps
            done = min(1.0, max(0, step - warmup_steps - hold_steps) / max(1, decay_steps))
            return floor**done

        super().__init__(optimizer, factor)
