"""Floating-point operations of training at full size, counted, and the hours that follow from a sustained rate.

    python benchmarks/training_flops.py EXPERIMENT.yaml ... [--hours 960] [--teraflops 100]

Counted are the matrix products, convolutions and attentions of the forward and backward passes of a step on random
audio, as torch's FlopCounterMode sees them; a multiplication with its addition is two operations. Not counted:
activations, normalizations, the optimizer, features, evaluation. A recurrent network works step by step and sustains a
far smaller rate than a Conformer on the same device.
"""

import argparse
from pathlib import Path

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode
from training_speed import random_batch

from asr_lightning.models.checkpoints import build_recognizer
from asr_lightning.report.tables import as_markdown


def count(path: Path, utterance_seconds: float) -> tuple[int, float]:
    """Return the parameters of an experiment's model, and the operations of a training step per second of audio."""
    torch.manual_seed(1)
    recognizer = build_recognizer(yaml.safe_load(path.read_text())["model"]).train()
    batch = random_batch(2 * utterance_seconds, utterance_seconds)
    # oneDNN's recurrent layers are one operation, which is not counted; without it they are matrix products.
    with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
        recognizer.loss(batch).mean().backward()
    return sum(weight.numel() for weight in recognizer.parameters()), counter.get_total_flops() / batch.seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="+", type=Path)
    parser.add_argument("--hours", type=float, default=960.0, help="of speech in an epoch (default: 960)")
    parser.add_argument("--utterance-seconds", type=float, default=12.0, help="(default: 12, about LibriSpeech's mean)")
    parser.add_argument("--teraflops", type=float, default=100.0, help="sustained by the device (default: 100)")
    options = parser.parse_args()
    head = ["experiment", "parameters", "GFLOP per s of audio", "epochs", "EFLOP of the training"]
    print(as_markdown([[*head, f"hours at {options.teraflops:g} TFLOP/s"]]), flush=True)
    for path in options.experiments:
        epochs = yaml.safe_load(path.read_text())["trainer"]["max_epochs"]
        parameters, rate = count(path, options.utterance_seconds)
        total = rate * 3600 * options.hours * epochs
        hours = total / (options.teraflops * 1e12) / 3600
        row = [path.stem, f"{parameters:,}", f"{rate / 1e9:.1f}", str(epochs), f"{total / 1e18:.1f}", f"{hours:.1f}"]
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
