"""Training steps beside those of other toolkits at the same shapes, as ratios within one run.

    python -m pip install --target PEERS --no-deps speechbrain==1.1.2 hyperpyyaml ruamel.yaml joblib sentencepiece
    PYTHONPATH=PEERS python benchmarks/peers.py [--networks transducer LAS] [--batch-seconds 30] [--utterance-seconds 5]

Ours are the experiments named in `NETWORKS`, without augmentation; peers are those of `peer_networks.py`, at the same
shapes: the transducer has two strided convolutions of 108 channels, 7 Conformer layers of 216, an LSTM and a joint
network of 256; the others are the demo's. A step is features, network, loss, backward pass and AdamW, on noise of equal
length, in characters of English. Ours also normalise their features, and mask what would be padding. The contestants
take turns, step by step. Deep Speech 2, which no peer has, is beside torch's own layers in `deep_speech_2.py`.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peer_networks
import torch
import yaml
from torch import Tensor, nn
from training_speed import random_batch

from asr_lightning.batch import Batch
from asr_lightning.models.checkpoints import build_recognizer

CHARACTERS = {"class_path": "asr_lightning.text.tokenizers.CharacterTokenizer"}
NETWORKS: dict[str, tuple[str, dict[str, Any], dict[str, Callable[[], nn.Module]]]] = {  # ours, its changes, and peers
    "transducer": (
        "experiments/rnnt_random.yaml", {"ctc_weight": 0.0},
        {"torchaudio": peer_networks.TorchaudioTransducer, "SpeechBrain": peer_networks.SpeechBrainTransducer},
    ),
    "LAS": ("experiments/demo/las.yaml", {}, {"SpeechBrain": peer_networks.SpeechBrainAttention}),
    "Transformer": (
        "experiments/demo/speech_transformer.yaml", {}, {"SpeechBrain": peer_networks.SpeechBrainTransformer}
    ),
}  # fmt: skip

Loss = Callable[[Batch], Tensor]


def ours(experiment: str, changes: dict[str, Any]) -> tuple[nn.Module, Loss]:
    """Return an experiment's recogniser of characters without augmentation, and its loss."""
    content: dict[str, Any] = yaml.safe_load(Path(experiment).read_text())["model"]
    content["init_args"] |= {"augment": None, "tokenizer": CHARACTERS, **changes}
    recognizer = build_recognizer(content)
    return recognizer, lambda batch: recognizer.loss(batch).mean()


def peer(module: nn.Module) -> tuple[nn.Module, Loss]:
    """Return a peer and its loss of a batch."""

    def loss(batch: Batch) -> Tensor:
        rows = [torch.tensor([1 + ord(one) % (peer_networks.VOCABULARY - 2) for one in text]) for text in batch.texts]
        return module(batch.audio, torch.stack(rows), torch.tensor([len(row) for row in rows]))

    return module, loss


def step_seconds(loss: Loss, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
    """Return how long a training step takes."""
    start = time.perf_counter()
    loss(batch).backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - start


def measure(network: str, batch: Batch, steps: int) -> list[str]:
    """Return a row of the table for each contestant."""
    experiment, changes, peers = NETWORKS[network]
    contestants = {"asr_lightning": ours(experiment, changes)}
    for name, make in peers.items():
        try:
            contestants[name] = peer(make())
        except ImportError as error:
            print(f"{name} is not here ({error}): see --help")
    optimizers = {name: torch.optim.AdamW(module.train().parameters()) for name, (module, _) in contestants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for step in range(steps + 2):
        for name, (_, loss) in contestants.items():
            spent = step_seconds(loss, optimizers[name], batch)
            if step >= 2:
                seconds[name].append(spent)
    rows = []
    for name, (module, _) in contestants.items():
        speeds = sorted(batch.seconds / one for one in seconds[name])
        ratios = sorted(theirs / own for own, theirs in zip(seconds["asr_lightning"], seconds[name], strict=True))
        rows.append(
            f"| {network} | {name} | {sum(one.numel() for one in module.parameters()):,} | "
            f"{statistics.median(speeds):.1f} ({speeds[0]:.1f} to {speeds[-1]:.1f}) | "
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
        )
    return rows


def main() -> None:
    """Print a row per contestant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batch-seconds", type=float, default=30.0)
    parser.add_argument("--utterance-seconds", type=float, default=5.0)
    parser.add_argument("--steps", type=int, default=7, help="that are counted, after two that are not")
    options = parser.parse_args()
    torch.manual_seed(1)
    batch = random_batch(options.batch_seconds, options.utterance_seconds)
    print(f"{torch.get_num_threads()} threads, {len(batch)} utterances of {options.utterance_seconds} s")
    print(
        "| network | | parameters | audio seconds per second: median (least to most) | ours is so many times as fast |"
    )
    print("| --- | --- | ---: | ---: | ---: |")
    for network in options.networks:
        print("\n".join(measure(network, batch, options.steps)), flush=True)


if __name__ == "__main__":
    main()
