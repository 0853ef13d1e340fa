"""The transducer's joint network and loss, forward and backward, beside torchaudio's: time and peak memory, as ratios.

    python benchmarks/transducer_loss.py [--vocabularies 32 500 2000 5000] [--device cuda] [--precision bf16]

`fused` is `losses/joint_transducer.py`, `logits` is `losses/transducer.py` on the logits of all frames and tokens, and
`torchaudio` is `torchaudio.functional.rnnt_loss` on the same logits. Each measurement is a process of its own, and the
three take turns. Memory is the most that the process has beyond its inputs after a first small loss; on a GPU, what
is allocated there.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from torch import Tensor

from asr_lightning.losses.joint_transducer import joint_transducer_loss
from asr_lightning.losses.transducer import torchaudio_loss, transducer_loss

KINDS = ("fused", "logits", "torchaudio")


def loss_of(kind: str, tensors: list[Tensor], targets: Tensor, lengths: tuple[Tensor, Tensor]) -> Tensor:
    """Return the loss of each utterance by one of the three."""
    encoded, predicted, weight, bias = tensors
    if kind == "fused":
        return joint_transducer_loss(encoded, predicted, weight, bias, targets, *lengths, 0)
    logits = torch.nn.functional.linear(torch.tanh(encoded.unsqueeze(2) + predicted.unsqueeze(1)), weight, bias)
    return (transducer_loss if kind == "logits" else torchaudio_loss)(logits, targets, *lengths, 0)


def measure(kind: str, vocabulary: int, options: argparse.Namespace) -> dict[str, float]:
    """Return the median seconds of loss and gradient, and peak memory in MiB, in this process."""
    torch.manual_seed(1)
    batch, frames, tokens, dimension = options.shape
    warm = [
        torch.ones(size, device=options.device).requires_grad_() for size in ((2, 9, 64), (2, 4, 64), (32, 64), (32,))
    ]
    two = torch.tensor([3, 2], device=options.device)
    loss_of(kind, warm, torch.ones(2, 3, dtype=torch.int64, device=options.device), (two, two)).sum().backward()
    sizes = (batch, frames, dimension), (batch, tokens + 1, dimension), (vocabulary, dimension), (vocabulary,)
    tensors = [torch.randn(size, device=options.device) for size in sizes]
    tensors[2] /= dimension**0.5
    targets = torch.randint(1, vocabulary, (batch, tokens), device=options.device)
    lengths = tuple(
        torch.randint(round(size * options.shortest), size + 1, (batch,)).index_fill(0, torch.tensor([0]), size)
        for size in (frames, tokens)
    )
    lengths = tuple(length.to(options.device) for length in lengths)
    before, seconds = memory(options.device), []
    for _ in range(options.repeats):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        start = time.perf_counter()
        with torch.autocast(options.device, torch.bfloat16, enabled=options.precision == "bf16"):
            losses = loss_of(kind, leaves, targets, lengths)
        losses.sum().backward()
        if options.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds), "MiB": memory(options.device) - before}


def memory(device: str) -> float:
    """Return the peak so far, in MiB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    """Print a row per vocabulary and kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabularies", nargs="+", type=int, default=[32, 500, 2000, 5000], help="sizes V")
    parser.add_argument("--shape", nargs=4, type=int, default=[4, 200, 40, 320], metavar=("B", "T", "U", "D"))
    parser.add_argument("--shortest", type=float, default=0.5, help="of the longest utterance, in frames and in tokens")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--repeats", type=int, default=5, help="of the loss in a process")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind")
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)  # what a process of its own is to measure
    options = parser.parse_args()
    if options.kind:
        print(json.dumps(measure(options.kind, options.vocabularies[0], options)))
        return
    print(f"{options.device}, {options.precision}, {torch.get_num_threads()} threads, B T U D {options.shape}")
    print("| V | loss | ms: median (least to most) | MiB | times as fast as torchaudio | of its memory |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    for vocabulary in options.vocabularies:
        results: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
        for _ in range(options.rounds):
            for kind in KINDS:
                command = [sys.executable, *sys.argv, "--kind", kind, "--vocabularies", str(vocabulary)]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                results[kind].append(json.loads(output.splitlines()[-1]))
        medians = {
            kind: {name: statistics.median(one[name] for one in rounds) for name in ("seconds", "MiB")}
            for kind, rounds in results.items()
        }
        peer = medians["torchaudio"]
        for kind, rounds in results.items():
            spread = sorted(1000 * one["seconds"] for one in rounds)
            ours = medians[kind]
            print(
                f"| {vocabulary} | {kind} | {1000 * ours['seconds']:.0f} ({spread[0]:.0f} to {spread[-1]:.0f}) "
                f"| {ours['MiB']:.0f} | {peer['seconds'] / ours['seconds']:.2f} | {ours['MiB'] / peer['MiB']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
