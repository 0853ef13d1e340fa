"""A training step of a layer with recurrent projections beside torch's own LSTMs, in one run, step by step in turn.

    python benchmarks/projected_lstm.py [--device cuda] [--size HIDDEN R P ...]

`ours` is a layer of `asr_lightning.nn.projected_lstm`, `proj_size` torch's LSTM with a projection of R + P, `plain`
torch's LSTM without one, all of them bidirectional, forward and backward pass. The input has as many dimensions as the
layer's output, as above the first layer. Utterances differ in length by 5 %, as those of a batch do, which only `ours`
takes into account. `proj_size` must be smaller than the number of cells: it gets one more where R + P is as large.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from asr_lightning.nn.projected_lstm import BidirectionalRecurrentProjectionLSTM

SIZES = [[160, 80, 80], [1024, 256, 256]]  # of the demo and of the paper


def seconds_of(step: Callable[[], object], device: str) -> float:
    """Return how long a step takes."""
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def training_steps(
    hidden: int, recurrent: int, projection: int, utterances: int, frames: int, device: str
) -> dict[str, Callable[[], object]]:
    """Return a forward and backward pass of each layer on the same random input."""
    size = 2 * (recurrent + projection)
    x = torch.randn(utterances, frames, size, device=device, requires_grad=True)
    lengths = torch.linspace(frames / 1.05, frames, utterances, device=device).long()
    cells = max(hidden, recurrent + projection + 1)
    ours = BidirectionalRecurrentProjectionLSTM(size, hidden, recurrent, projection).to(device)
    library = nn.LSTM(size, cells, proj_size=recurrent + projection, batch_first=True, bidirectional=True).to(device)
    plain = nn.LSTM(size, hidden, batch_first=True, bidirectional=True).to(device)
    return {
        "ours": lambda: ours(x, lengths).sum().backward(),
        "proj_size": lambda: library(x)[0].sum().backward(),
        "plain": lambda: plain(x)[0].sum().backward(),
    }


def main() -> None:
    """Print the median time of a step of each, and the median ratios to `plain` of the same round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", type=int, nargs=3, action="append", metavar=("HIDDEN", "R", "P"), default=None)
    parser.add_argument("--utterances", type=int, default=8)
    parser.add_argument("--frames", type=int, default=400)
    parser.add_argument("--steps", type=int, default=7)
    options = parser.parse_args()
    print(f"{options.device}, {torch.get_num_threads()} threads, B {options.utterances}, T {options.frames}")
    for size in options.size or SIZES:
        steps = training_steps(*size, options.utterances, options.frames, options.device)
        times: dict[str, list[float]] = {name: [] for name in steps}
        for number in range(options.steps + 2):
            for name, step in steps.items():
                taken = seconds_of(step, options.device)
                if number >= 2:
                    times[name].append(taken)
        print("hidden {}, R {}, P {}".format(*size))
        for name, values in times.items():
            ratio = statistics.median(one / plain for one, plain in zip(values, times["plain"], strict=True))
            print(f"  {name:10}{1000 * statistics.median(values):8.0f} ms a step   {ratio:6.2f} × plain", flush=True)


if __name__ == "__main__":
    main()
