"""Training speed of experiments: seconds of audio per second, and memory, of steps on random audio.

    python benchmarks/training_speed.py [EXPERIMENT.yaml ...] [--device cuda] [--precision bf16-mixed]

A step is the forward pass, the loss, the backward pass and the optimiser, on utterances of equal length: no reading, no
padding. The first two steps are not counted. Memory is the peak allocated on a GPU, of the process on a CPU.
"""

import argparse
import resource
import statistics
import time
from pathlib import Path

import torch
import yaml

from asr_lightning.batch import Batch, Utterance
from asr_lightning.models.checkpoints import build_recognizer

DEMO = [Path("experiments/demo/rnnt_teacher.yaml"), Path("experiments/demo/rnnt_random.yaml")]
TEXT = "THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG AND RUNS"  # 52 characters; about 4 s of read speech


def random_batch(batch_seconds: float, utterance_seconds: float) -> Batch:
    """Return noise with a text of 13 characters per second, as LibriSpeech has."""
    count = max(1, int(batch_seconds / utterance_seconds))
    text = (TEXT + " ") * 20
    text = text[: int(13 * utterance_seconds)]
    return Batch.collate(
        [Utterance(str(i), 0.1 * torch.randn(int(16_000 * utterance_seconds)), 16_000, text) for i in range(count)]
    )


def measure(path: Path, batch: Batch, device: str, precision: str, steps: int) -> tuple[list[float], float]:
    """Return audio seconds per second of each counted step, and peak memory in MiB."""
    recognizer = build_recognizer(yaml.safe_load(path.read_text())["model"]).to(device).train()
    optimizer = recognizer.make_optimizer(recognizer.parameters())
    batch = batch.to(device)
    speeds = []
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for step in range(steps + 2):
        start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = recognizer.loss(batch).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        if step >= 2:
            speeds.append(batch.seconds / (time.perf_counter() - start))
    if device == "cuda":
        return speeds, torch.cuda.max_memory_allocated() / 2**20
    return speeds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    """Print one line per experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", type=Path, default=DEMO)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="32-true", choices=["32-true", "bf16-mixed"])
    parser.add_argument("--batch-seconds", type=float, default=30.0)
    parser.add_argument("--utterance-seconds", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    batch = random_batch(arguments.batch_seconds, arguments.utterance_seconds)
    print(f"{arguments.device}, {arguments.precision}, {torch.get_num_threads()} threads, "
          f"{len(batch)} utterances of {arguments.utterance_seconds} s")  # fmt: skip
    for path in arguments.experiments:
        speeds, memory = measure(path, batch, arguments.device, arguments.precision, arguments.steps)
        spread = f"{min(speeds):.0f} to {max(speeds):.0f}"
        print(f"{path}\t{statistics.median(speeds):.0f} ({spread}) audio seconds per second\t{memory:.0f} MiB")


if __name__ == "__main__":
    main()
