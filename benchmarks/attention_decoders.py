"""Where the time of attention decoders goes: encoder, decoder loop and backward pass of a training step, and searches.

    python benchmarks/attention_decoders.py [EXPERIMENT.yaml ...] [--device cuda] [--profile]

Random audio, weights of torch's own initialization. A search is stopped after as many tokens as the text has, since
untrained networks do not end by themselves. Every number is the median of some repetitions, in one run.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from training_speed import random_batch

from asr_lightning.batch import Batch
from asr_lightning.decoding.attention import AttentionSearch
from asr_lightning.models.checkpoints import build_recognizer

DEMO = [
    Path(f"experiments/demo/{name}.yaml") for name in ("las", "las_sampling", "e2e_a", "e2e_b", "speech_transformer")
]
REPETITIONS = 5
WIDTHS = (20, 11, 9, 9, 9, 10, 9, 9)


def seconds(work: Callable[[], object], device: str) -> float:
    """Return the median time of some work, the first time not counted."""
    times = []
    for _ in range(REPETITIONS + 1):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def measure(path: Path, batch: Batch, device: str) -> tuple[Any, str]:
    """Return the recognizer, and a line of what its parts cost."""
    recognizer: Any = build_recognizer(yaml.safe_load(path.read_text())["model"]).to(device).train()
    optimizer = torch.optim.AdamW(recognizer.parameters(), fused=True)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    recognizer.encoder.register_forward_hook(count)

    def step() -> None:
        optimizer.zero_grad()
        recognizer.loss(batch).mean().backward()
        optimizer.step()

    step()
    assert calls == 1, "the encoder was called again"
    step_seconds = seconds(step, device)
    encoder = seconds(lambda: recognizer(batch.audio, batch.audio_lengths), device)
    forward = seconds(lambda: recognizer.loss(batch), device)
    recognizer.eval()
    with torch.no_grad():
        encoding = seconds(lambda: recognizer(batch.audio, batch.audio_lengths), device)
        encoded, lengths = recognizer(batch.audio, batch.audio_lengths)
        factors = []
        for beam in (1, 8):
            search = AttentionSearch(beam=beam, tokens_per_frame=len(batch.texts[0]) / encoded.shape[1])
            memory = recognizer.decoder.remember(encoded, lengths)
            time_of_search = seconds(lambda: search(recognizer.decoder, memory, lengths, recognizer.tokenizer), device)  # noqa: B023
            factors.append((encoding + time_of_search) / batch.seconds)
    shares = [f"{part / step_seconds:.0%}" for part in (encoder, forward - encoder, step_seconds - forward)]
    cells = [
        path.stem,
        f"{batch.seconds / step_seconds:.0f}",
        f"{1000 * step_seconds:.0f}",
        *shares,
        *(f"{factor:.4f}" for factor in factors),
    ]
    line = "".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True))
    return step, line


def main() -> None:
    """Print one line per experiment, and with --profile the operations that take longest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", type=Path, default=DEMO)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch-seconds", type=float, default=30.0)
    parser.add_argument("--utterance-seconds", type=float, default=3.0)
    parser.add_argument("--profile", action="store_true", help="print the operations of a training step")
    arguments = parser.parse_args()
    batch = random_batch(arguments.batch_seconds, arguments.utterance_seconds).to(arguments.device)
    print(f"{arguments.device}, {torch.get_num_threads()} threads, {len(batch)} utterances of "
          f"{arguments.utterance_seconds} s and {len(batch.texts[0])} characters")  # fmt: skip
    heads = ("", "audio s/s", "step ms", "encoder", "decoder", "backward", "greedy", "beam 8")
    print("".join(f"{head:>{width}}" for head, width in zip(heads, WIDTHS, strict=True)) + "  (× real time)")
    for path in arguments.experiments:
        step, line = measure(path, batch, arguments.device)
        print(line, flush=True)
        if arguments.profile:
            with torch.profiler.profile() as profile:
                step()
            for event in sorted(profile.key_averages(), key=lambda event: -event.self_cpu_time_total)[:12]:
                print(f"    {event.key[:40]:40}{event.self_cpu_time_total / 1000:9.1f} ms{event.count:7} calls")


if __name__ == "__main__":
    main()
