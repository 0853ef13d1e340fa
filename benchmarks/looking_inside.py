"""Time and memory of t-SNE and of nearest neighbours, over the number of points; each in a process of its own.

    python benchmarks/looking_inside.py [--points 10000 100000] [--dimension 160] [--threads 1]

Points are 40 clusters in 160 dimensions, as frames of phones are; of neighbours, sentences of 40 tokens. More than
100,000 states are asked for by 10,000 queries, as their number times that of the states is what takes the time.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import torch
from timing import Row, peak_memory, print_table

from asr_lightning.analysis.neighbours import nearest
from asr_lightning.analysis.projection import project

ALL_QUERIES = 100_000  # up to which every state is a query
QUERIES = 10_000


def points_of(count: int, dimension: int) -> np.ndarray:
    """Return clusters (N, D)."""
    random = np.random.default_rng(1)
    centers = 3.0 * random.normal(size=(40, dimension)).astype(np.float32)
    return centers[random.integers(0, 40, count)] + random.normal(size=(count, dimension)).astype(np.float32)


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


def run_sklearn(points: np.ndarray, threads: int) -> str:
    """Find as many neighbours of each by scikit-learn, of its own sentence too: it knows no groups."""
    from sklearn.neighbors import NearestNeighbors

    assert len(points) <= ALL_QUERIES
    NearestNeighbors(n_neighbors=5, algorithm="brute", n_jobs=threads).fit(points).kneighbors()
    return "all"


KINDS: dict[str, Callable[[np.ndarray, int], str]] = {
    "neighbours": run_neighbours,
    "t-SNE": run_tsne,
    "scikit-learn's neighbours": run_sklearn,
}


def measure(kind: str, count: int, options: argparse.Namespace) -> tuple[str, float, float]:
    """Return which queries were made, the seconds and the peak MiB, in a process of its own."""
    command = [sys.executable, __file__, "--one", kind, "--points", str(count)]
    command += ["--dimension", str(options.dimension), "--threads", str(options.threads)]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    queries, seconds, peak = json.loads(output)
    return queries, seconds, peak


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Give a row for every kind and number of points."""
    for kind, count in product(options.kinds, options.points):
        queries, seconds, peak = measure(kind, count, options)
        sizes = f"{count:,} points, {queries}, {options.dimension} dimensions"
        if kind != "neighbours" or count > options.beside:
            yield Row(kind, sizes, [seconds], memory=(peak, None))
            continue
        _, peer_seconds, peer_peak = measure("scikit-learn's neighbours", count, options)
        yield Row(
            kind, sizes, [seconds], "scikit-learn's NearestNeighbors, brute", [peer_seconds], memory=(peak, peer_peak)
        )


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--beside", type=int, default=20_000, help="points up to which scikit-learn is asked too")
    parser.add_argument("--kinds", nargs="+", choices=["neighbours", "t-SNE"], default=["neighbours", "t-SNE"])
    parser.add_argument("--dimension", type=int, default=160)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", choices=KINDS, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Print a row for every kind and number of points."""
    options = make_parser().parse_args()
    if options.one:
        points = points_of(options.points[0], options.dimension)
        start = time.perf_counter()
        queries = KINDS[options.one](points, options.threads)
        seconds = time.perf_counter() - start
        print(json.dumps([queries, seconds, peak_memory()]))
    else:
        print_table(rows(options))


if __name__ == "__main__":
    main()
