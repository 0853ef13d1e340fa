r"""How processor time and memory grow with the work: a table with the exponent of each, from sizes that double.

    python benchmarks/growth.py [--only step exact ...] [--doublings 2] [--turns 3]

An exponent of 1 is linear growth: it is the slope of a straight line through the logarithms of sizes and figures. Time
is that of the processor, the least of a few turns, after one that is not counted; memory is the most that the process
holds beyond what it held before a turn, by the peak that Linux keeps (elsewhere it is left out). With fixed costs an
exponent is too low at small sizes: raise `--doublings`. Everything runs on one thread, with random weights and noise.
`looking_inside.py --kinds t-SNE --points …` and `page.py --utterances …` have several sizes of their own.

| row          | size                                                                                  |
|--------------|---------------------------------------------------------------------------------------|
| `step`       | seconds of each of two utterances of a training step of the demo's transducer         |
| `batch`      | utterances of 4 s of such a step                                                      |
| `exact`      | frames of the exact transducer loss, with a token for five of them (B 2, D 128, V 64) |
| `pruned`     | frames of the pruned one, likewise                                                    |
| `manifest`   | utterances of a manifest that is written and opened                                   |
| `neighbours` | states whose five neighbours are wanted                                               |
"""

import argparse
import ctypes
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml
from looking_inside import points_of as points_in_clusters
from looking_inside import run_neighbours
from timing import peak_memory
from training_speed import DEMO, random_batch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `data_modules`

from asr_lightning.audio.reading import Header
from asr_lightning.losses.transducer.joint import joint_transducer_loss
from asr_lightning.losses.transducer.pruned import pruned_transducer_loss
from asr_lightning.models.checkpoints import build_recognizer
from data_modules.manifest import Listing, make_cut, write_manifest

Work = Callable[[], object]


def step(count: int, seconds: float) -> Work:
    """Return a training step of the demo's transducer."""
    recognizer = build_recognizer(yaml.safe_load(DEMO[0].read_text())["model"]).train()
    batch = random_batch(count * seconds, seconds)
    return lambda: recognizer.loss(batch).mean().backward()


def loss(of: Callable[..., torch.Tensor], frames: int) -> Work:
    """Return a transducer loss and its gradient."""
    tokens = frames // 5
    sizes = (2, frames, 128), (2, tokens + 1, 128), (64, 128), (64,)
    tensors = [torch.randn(size).requires_grad_() for size in sizes]
    targets, lengths = torch.randint(1, 64, (2, tokens)), (torch.tensor([frames] * 2), torch.tensor([tokens] * 2))
    return lambda: of(*tensors, targets, *lengths, 0).sum().backward()


def manifest(utterances: int) -> Work:
    """Return the writing of a manifest, of utterances that are made one at a time."""
    header = Header(16_000, 160_000, 1)

    def write() -> None:
        with tempfile.TemporaryDirectory() as folder:
            rows = (Listing(f"1-2-{i:08}", f"/corpus/1/2/1-2-{i:08}.flac", "SOME WORDS") for i in range(utterances))
            write_manifest(Path(folder) / "train.cuts.jsonl", (make_cut(x, header, 16_000) for x in rows), "")

    return write


ROWS: dict[str, tuple[str, int, Callable[[int], Work]]] = {
    "step": ("s of an utterance", 4, lambda size: step(2, size)),
    "batch": ("utterances", 2, lambda size: step(size, 4.0)),
    "exact": ("frames", 100, lambda size: loss(joint_transducer_loss, size)),
    "pruned": ("frames", 100, lambda size: loss(pruned_transducer_loss, size)),
    "manifest": ("utterances", 5000, manifest),
    "neighbours": ("states", 4000, lambda size: lambda: run_neighbours(points_in_clusters(size, 160), 1)),
}


def costs(work: Work, turns: int) -> tuple[float, float]:
    """Return the least seconds of processor time of some turns, and the most MiB beyond what was held before."""
    seconds, mebibytes = [], []
    for _ in range(1 + turns):
        held = forget_peak()
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
        mebibytes.append(peak_memory() - held if held else math.nan)
    return min(seconds[1:]), max(mebibytes[1:])


def forget_peak() -> float:
    """Give back free memory, let the peak begin anew, and return the MiB it begins with; 0 where that cannot be."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return 0.0
    return peak_memory()


def exponent(sizes: list[int], figures: list[float]) -> float:
    """Return the slope of the straight line through the logarithms."""
    if min(figures) <= 0 or math.isnan(sum(figures)):
        return math.nan
    return float(np.polyfit(np.log(sizes), np.log(figures), 1)[0])


def main() -> None:
    """Print a line for each kind of work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), help="rows (default: all)")
    parser.add_argument("--doublings", type=int, default=2, help="of the first size")
    parser.add_argument("--turns", type=int, default=3, help="that are counted, of each size")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| what | sizes | s of processor time | exponent | MiB | exponent |\n|---|---|---|---:|---|---:|")
    for name in options.only:
        torch.manual_seed(1)
        unit, first, make = ROWS[name]
        sizes = [first * 2**doubling for doubling in range(options.doublings + 1)]
        seconds, mebibytes = zip(*(costs(make(size), options.turns) for size in sizes), strict=True)
        cells = (
            f"{name} | {', '.join(f'{size:,}' for size in sizes)} {unit}",
            f"{', '.join(f'{x:.3g}' for x in seconds)} | {exponent(sizes, list(seconds)):.2f}",
            f"{', '.join(f'{x:.0f}' for x in mebibytes)} | {exponent(sizes, list(mebibytes)):.2f}",
        )
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
