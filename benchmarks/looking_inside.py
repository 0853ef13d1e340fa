"""Time and memory of t-SNE and of nearest neighbours, over the number of points; each in a process of its own.

    python benchmarks/looking_inside.py [--points 10000 100000] [--dimension 160] [--threads 1]

Points are 40 clusters in 160 dimensions, as frames of phones are; of neighbours, sentences of 40 tokens. More than
100,000 states are asked for by 10,000 queries, as their number times that of the states is what takes the time.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from asr_lightning.analysis.neighbours import nearest
from asr_lightning.analysis.projection import project

ALL_QUERIES = 100_000  # up to which every state is a query
QUERIES = 10_000


def points_of(count: int, dimension: int) -> np.ndarray:
    """Return clusters (N, D)."""
    random = np.random.default_rng(1)
    centres = 3.0 * random.normal(size=(40, dimension)).astype(np.float32)
    return centres[random.integers(0, 40, count)] + random.normal(size=(count, dimension)).astype(np.float32)


def run_tsne(points: np.ndarray, threads: int) -> str:
    """Project them, with the callback's own numbers."""
    project(points, threads=threads)
    return "all"


def run_neighbours(points: np.ndarray, threads: int) -> str:
    """Find five neighbours of each, or of the first ones."""
    torch.set_num_threads(threads)
    queries = np.arange(len(points) if len(points) <= ALL_QUERIES else QUERIES)
    nearest(points, np.arange(len(points)) // 40, 5, queries)
    return f"{len(queries)} queries"


KINDS: dict[str, Callable[[np.ndarray, int], str]] = {"neighbours": run_neighbours, "t-SNE": run_tsne}


def main() -> None:
    """Print a line for every kind and number of points."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--dimension", type=int, default=160)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        points = points_of(options.points[0], options.dimension)
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        what = KINDS[options.one](points, options.threads)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps([what, time.perf_counter() - start, before, after]))
        return
    print("| what | points | of | seconds | MiB before | MiB at most |\n| --- | ---: | --- | ---: | ---: | ---: |")
    for kind in options.kinds:
        for count in options.points:
            command = [sys.executable, __file__, "--one", kind, "--points", str(count)]
            command += ["--dimension", str(options.dimension), "--threads", str(options.threads)]
            result = subprocess.run(command, capture_output=True, text=True, check=True)
            what, seconds, before, after = json.loads(result.stdout)
            print(f"| {kind} | {count:,} | {what} | {seconds:.1f} | {before // 1024} | {after // 1024} |", flush=True)


if __name__ == "__main__":
    main()
