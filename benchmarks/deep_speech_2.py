"""Training speed of Deep Speech 2 beside the same shapes of torch's own layers, in one run, step by step in turn.

    python benchmarks/deep_speech_2.py [--device cuda] [--hidden 512] [--layers 5]

Plain is Conv2d, BatchNorm2d and Hardtanh, then BatchNorm1d and a bidirectional GRU for each layer, as KoSpeech has
them: its statistics count padding and its backward direction begins in it. Features and the CTC loss are not timed.
Utterances differ in length by 5 %, as those of a batch do.
"""

import argparse
from collections.abc import Iterator

import torch
from timing import Row, in_turns, print_table
from torch import Tensor, nn

from asr_lightning.models.deep_speech_2 import DeepSpeech2Encoder
from asr_lightning.nn.extractors import Convolutions2d

FRAMES_A_SECOND = 100


class PlainDeepSpeech2(nn.Module):
    """The same shapes, of torch's layers."""

    def __init__(self, input_dimension: int, channels: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.front = nn.Sequential(
            nn.Conv2d(1, channels, (11, 41), (2, 2), (5, 20), bias=False),
            nn.BatchNorm2d(channels),
            nn.Hardtanh(0, 20),
            nn.Conv2d(channels, channels, (11, 21), (1, 2), (5, 10), bias=False),
            nn.BatchNorm2d(channels),
            nn.Hardtanh(0, 20),
        )
        sizes = [channels * -(-input_dimension // 4)] + [hidden] * (layers - 1)
        self.norms = nn.ModuleList(nn.BatchNorm1d(size) for size in sizes)
        self.layers = nn.ModuleList(nn.GRU(size, hidden, batch_first=True, bidirectional=True) for size in sizes)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Encode features (B, T, F) as (B, T / 2, hidden)."""
        x = self.front(x.unsqueeze(1)).transpose(1, 2).flatten(2)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            directions, _ = layer(norm(x.transpose(1, 2)).transpose(1, 2))
            x = directions.unflatten(2, (2, -1)).sum(dim=2)
        return x


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Give the row of a training step."""
    size = int(FRAMES_A_SECOND * options.utterance_seconds)
    x = torch.randn(options.utterances, size, options.features, device=options.device)
    lengths = torch.linspace(size / 1.05, size, options.utterances, device=options.device).long()
    front = Convolutions2d(options.features, [options.channels] * 2)
    encoder = DeepSpeech2Encoder(front, options.hidden, options.layers, directions="sum").to(options.device).train()
    plain = (
        PlainDeepSpeech2(options.features, options.channels, options.hidden, options.layers).to(options.device).train()
    )

    def step_of_ours() -> None:
        encoder.zero_grad()
        encoder(x, lengths)[0].sum().backward()

    def step_of_plain() -> None:
        plain.zero_grad()
        plain(x, lengths).sum().backward()

    seconds = in_turns({"ours": step_of_ours, "plain": step_of_plain}, options.turns, options.device)
    yield Row(
        "training step, Deep Speech 2 without features and CTC",
        f"{options.utterances} × {options.utterance_seconds:g} s, {options.layers} layers of {options.hidden}",
        seconds["ours"], "torch's own layers, padding not masked", seconds["plain"],
        float(lengths.sum()) / FRAMES_A_SECOND,
    )  # fmt: skip


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--features", type=int, default=161)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--utterances", type=int, default=8)
    parser.add_argument("--utterance-seconds", type=float, default=4.0)
    parser.add_argument("--turns", type=int, default=7)
    return parser


if __name__ == "__main__":
    print_table(rows(make_parser().parse_args()))
