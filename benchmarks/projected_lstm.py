"""A training step of a layer with recurrent projections beside torch's own LSTMs, in one run, step by step in turn.

    python benchmarks/projected_lstm.py [--device cuda] [--size HIDDEN R P ...]

Ours is a layer of `asr_lightning.nn.projected_lstm`, the others torch's LSTM with a projection of R + P and without
one, all of them bidirectional, forward and backward pass. The input has as many dimensions as the
layer's output, as above the first layer. Utterances differ in length by 5 %, as those of a batch do, which only ours
takes into account. `proj_size` must be smaller than the number of cells: it gets one more where R + P is as large.
"""

import argparse
from collections.abc import Callable, Iterator

import torch
from timing import Row, in_turns, print_table
from torch import nn

from asr_lightning.nn.projected_lstm import BidirectionalRecurrentProjectionLSTM

SIZES = [[160, 80, 80], [1024, 256, 256]]  # of the demo and of the paper


def training_steps(
    hidden: int, recurrent: int, projection: int, utterances: int, frames: int, device: str
) -> dict[str, Callable[[], object]]:
    """Return a forward and backward pass of each layer on the same random input."""
    size = 2 * (recurrent + projection)
    x = torch.randn(utterances, frames, size, device=device, requires_grad=True)
    lengths = torch.linspace(frames / 1.05, frames, utterances, device=device).long()
    cells = max(hidden, recurrent + projection + 1)
    layer = BidirectionalRecurrentProjectionLSTM(size, hidden, recurrent, projection).to(device)
    library = nn.LSTM(size, cells, proj_size=recurrent + projection, batch_first=True, bidirectional=True).to(device)
    plain = nn.LSTM(size, hidden, batch_first=True, bidirectional=True).to(device)
    return {
        "ours": lambda: layer(x, lengths).sum().backward(),
        "torch's LSTM with proj_size": lambda: library(x)[0].sum().backward(),
        "torch's LSTM of as many cells, no projection": lambda: plain(x)[0].sum().backward(),
    }


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Give two rows for each size: beside torch's LSTM with a projection, and without."""
    for hidden, recurrent, projection in options.size or SIZES:
        steps = training_steps(hidden, recurrent, projection, options.utterances, options.frames, options.device)
        seconds = in_turns(steps, options.turns, options.device)
        for peer in list(steps)[1:]:
            yield Row(
                "training step, projected LSTM layer",
                f"{options.utterances} × {options.frames} frames, {hidden} cells, {recurrent} + {projection}",
                seconds["ours"], peer, seconds[peer],
            )  # fmt: skip


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", type=int, nargs=3, action="append", metavar=("HIDDEN", "R", "P"), default=None)
    parser.add_argument("--utterances", type=int, default=8)
    parser.add_argument("--frames", type=int, default=400)
    parser.add_argument("--turns", type=int, default=7)
    return parser


if __name__ == "__main__":
    print_table(rows(make_parser().parse_args()))
