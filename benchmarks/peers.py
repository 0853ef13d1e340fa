"""Training steps beside those of other toolkits at the same shapes, as ratios within one run.

    make peers && PYTHONPATH=runs/peers python benchmarks/peers.py [--networks transducer LAS] [--batch-seconds 30]

Ours are the experiments named in `NETWORKS`, without augmentation; peers are those of `peer_networks.py`, at the same
shapes: the transducer has two strided convolutions of 108 channels, 7 Conformer layers of 216, an LSTM and a joint
network of 256; the others are the demo's. A step is features, network, loss, backward pass and fused AdamW, on noise of
equal length, in characters of English. Ours also normalize their features, and mask what would be padding. The
contestants take turns, step by step. Deep Speech 2, which no peer has, is beside torch's own layers in
`deep_speech_2.py`.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peer_networks
import torch
import yaml
from timing import Row, in_turns, print_table
from torch import Tensor, nn
from training_speed import random_batch

from asr_lightning.batch import Batch
from asr_lightning.models.checkpoints import build_recognizer

CHARACTERS = {"class_path": "asr_lightning.text.tokenizers.CharacterTokenizer"}
Peers = dict[str, Callable[[], nn.Module]]
NETWORKS: dict[str, tuple[str, dict[str, Any], Peers]] = {  # ours, its changes, and peers
    "transducer": (
        "experiments/rnnt_random.yaml", {"ctc_weight": 0.0},
        {"torchaudio's Conformer and RNN-T parts": peer_networks.TorchaudioTransducer,
         "SpeechBrain's TransformerASR and transducer parts": peer_networks.SpeechBrainTransducer},
    ),
    "LAS": (
        "experiments/demo/las.yaml", {}, {"SpeechBrain's AttentionalRNNDecoder": peer_networks.SpeechBrainAttention}
    ),
    "Transformer": (
        "experiments/demo/speech_transformer.yaml", {},
        {"SpeechBrain's TransformerASR": peer_networks.SpeechBrainTransformer},
    ),
}  # fmt: skip


def ours(experiment: str, changes: dict[str, Any]) -> tuple[nn.Module, Callable[[Batch], Tensor]]:
    """Return an experiment's recognizer of characters without augmentation, and its loss."""
    content: dict[str, Any] = yaml.safe_load(Path(experiment).read_text())["model"]
    content["init_args"] |= {"augment": None, "tokenizer": CHARACTERS, **changes}
    recognizer = build_recognizer(content)
    return recognizer, lambda batch: recognizer.loss(batch).mean()


def peer(module: nn.Module) -> tuple[nn.Module, Callable[[Batch], Tensor]]:
    """Return a peer and its loss of a batch."""

    def loss(batch: Batch) -> Tensor:
        rows = [
            torch.tensor([1 + ord(character) % (peer_networks.VOCABULARY - 2) for character in text])
            for text in batch.texts
        ]
        lengths = torch.tensor([len(row) for row in rows])
        return module(batch.audio, torch.stack(rows).to(batch.audio.device), lengths.to(batch.audio.device))

    return module, loss


def training_step(module: nn.Module, loss: Callable[[Batch], Tensor], batch: Batch) -> Callable[[], None]:
    """Return a training step with fused AdamW."""
    optimizer = torch.optim.AdamW(module.to(batch.audio.device).train().parameters(), fused=True)

    def step() -> None:
        loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def rows_of(network: str, batch: Batch, turns: int) -> Iterator[Row]:
    """Give a row for each peer of a network."""
    experiment, changes, peers = NETWORKS[network]
    contestants = {"ours": ours(experiment, changes)}
    for name, make in peers.items():
        try:
            contestants[name] = peer(make())
        except ImportError as error:
            print(f"{name}: not here ({error}); `make peers` installs it")
    steps = {name: training_step(*contestant, batch) for name, contestant in contestants.items()}
    seconds = in_turns(steps, turns, batch.audio.device.type)
    millions = {
        name: sum(parameter.numel() for parameter in module.parameters()) / 1e6
        for name, (module, _) in contestants.items()
    }
    for name in list(contestants)[1:]:
        yield Row(
            f"training step, {network}",
            f"{len(batch)} × {batch.seconds / len(batch):g} s, {millions['ours']:.2f} M",
            seconds["ours"], f"{name}, {millions[name]:.2f} M", seconds[name], batch.seconds,
        )  # fmt: skip


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Give the rows of several networks."""
    torch.manual_seed(1)
    batch = random_batch(options.batch_seconds, options.utterance_seconds).to(options.device)
    for network in options.networks:
        yield from rows_of(network, batch, options.turns)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batch-seconds", type=float, default=30.0)
    parser.add_argument("--utterance-seconds", type=float, default=5.0)
    parser.add_argument("--turns", type=int, default=7, help="that are counted, after two that are not")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser


if __name__ == "__main__":
    print_table(rows(make_parser().parse_args()))
