"""The transducer loss on a CPU beside torchaudio's, forward and backward, as a ratio within one run.

python benchmarks/transducer_loss.py
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torchaudio.functional import rnnt_loss

from asr_lightning.losses.transducer import transducer_loss

SHAPES = [(11, 65, 35, 31), (4, 200, 40, 32), (4, 200, 40, 500)]  # B, T, U, V


def seconds(loss: Callable[[Tensor], Tensor], logits: Tensor, repeats: int = 7) -> float:
    """Return the median time of a loss and its gradient."""
    times = []
    for _ in range(repeats):
        leaf = logits.clone().requires_grad_()
        start = time.perf_counter()
        loss(leaf).sum().backward()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Print a line per shape."""
    torch.manual_seed(1)
    print(f"{torch.get_num_threads()} threads")
    for batch, frames, tokens, vocabulary in SHAPES:
        logits = torch.randn(batch, frames, tokens + 1, vocabulary)
        targets = torch.randint(1, vocabulary, (batch, tokens))
        encoder_lengths = torch.randint(frames // 2, frames + 1, (batch,)).index_fill(0, torch.tensor([0]), frames)
        target_lengths = torch.randint(tokens // 2, tokens + 1, (batch,)).index_fill(0, torch.tensor([0]), tokens)
        integers = (targets.int(), encoder_lengths.int(), target_lengths.int())

        def ours(leaf: Tensor, rest: tuple[Tensor, ...] = (targets, encoder_lengths, target_lengths)) -> Tensor:
            return transducer_loss(leaf, *rest, blank_id=0)

        def theirs(leaf: Tensor, rest: tuple[Tensor, ...] = integers) -> Tensor:
            return rnnt_loss(leaf, *rest, blank=0, reduction="none")

        own, other = seconds(ours, logits), seconds(theirs, logits)
        print(
            f"B {batch}, T {frames}, U {tokens}, V {vocabulary}: {1000 * own:.0f} ms, "
            f"torchaudio {1000 * other:.0f} ms, {other / own:.2f} times as fast"
        )


if __name__ == "__main__":
    main()
