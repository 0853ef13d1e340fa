"""Training speed of experiments: seconds of audio per second, and memory, of steps on random audio.

    python benchmarks/training_speed.py [EXPERIMENT.yaml ...] [--device cuda] [--precision bf16-mixed]
    python benchmarks/training_speed.py --batch-seconds 15 30 60 --utterance-seconds 2.5 5 15 30    # growth

A step is the forward pass, the loss, the backward pass and the optimizer, on utterances of equal length: no reading, no
padding; every row is of a process of its own. The first two steps are not counted. Memory is the peak allocated on a
GPU, of the process on a CPU.
"""

import argparse
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import torch
import yaml
from timing import Row, in_turns, peak_memory, print_table

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


@dataclass(frozen=True)
class Case:
    """What is measured."""

    experiment: Path
    batch_seconds: float
    utterance_seconds: float
    device: str
    precision: str
    turns: int


def measure(case: Case) -> tuple[list[float], float, float]:
    """Return the seconds of each counted step, the seconds of audio in it, and peak memory in MiB."""
    torch.manual_seed(1)
    content = yaml.safe_load(case.experiment.read_text())["model"]
    recognizer = build_recognizer(content).to(case.device).train()
    optimizer = recognizer.make_optimizer(recognizer.parameters())
    batch = random_batch(case.batch_seconds, case.utterance_seconds).to(case.device)

    def step() -> None:
        with torch.autocast(case.device, torch.bfloat16, enabled=case.precision == "bf16-mixed"):
            loss = recognizer.loss(batch).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds = in_turns({"ours": step}, case.turns, case.device)["ours"]
    return seconds, batch.seconds, peak_memory(case.device)


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Give a row for each experiment, length of batches and length of utterances."""
    for path, batch, utterance in product(options.experiments, options.batch_seconds, options.utterance_seconds):
        case = Case(path, batch, utterance, options.device, options.precision, options.turns)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:  # memory is the process's
            seconds, audio, memory = pool.submit(measure, case).result()
        yield Row(
            f"training step, {path.stem}", f"{audio / utterance:.0f} × {utterance:g} s, {options.precision}", seconds,
            audio=audio, memory=(memory, None),
        )  # fmt: skip


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", type=Path, default=DEMO)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="32-true", choices=["32-true", "bf16-mixed"])
    parser.add_argument("--batch-seconds", nargs="+", type=float, default=[30.0])
    parser.add_argument("--utterance-seconds", nargs="+", type=float, default=[3.0])
    parser.add_argument("--turns", type=int, default=10)
    return parser


if __name__ == "__main__":
    print_table(rows(make_parser().parse_args()))
