"""The forward-backward algorithm of lattice-free MMI over random graphs: seconds and peak memory.

    python benchmarks/lattice_free_mmi.py [--device cuda]

Random graphs are the slow case: nearly every arc enters its state with a pdf of its own, so that there are as many
nodes as arcs. Memory is what the process has beyond its state before, on a GPU what is allocated; the scores and their
gradient are counted, the graphs are not. Every size runs in a process of its own.
"""

import argparse
import multiprocessing
import statistics
import time

import torch
from timing import peak_memory

from asr_lightning.losses.graphs import Graph, GraphBatch
from asr_lightning.losses.lattice_free_mmi import lattice_free_mmi_loss, total_log_probability

PDFS = 500
SIZES = [  # B, T, then states and arcs of the denominator and of each numerator
    (8, 400, (1_000, 4_000), (100, 300)),
    (8, 400, (3_000, 12_000), (300, 900)),
    (8, 400, (10_000, 40_000), (300, 900)),
    (32, 400, (3_000, 12_000), (300, 900)),
    (8, 1_600, (3_000, 12_000), (1_000, 3_000)),
]


def random_graph(states: int, arcs: int) -> Graph:
    """Return a graph whose every state may start and end a path."""
    ends = torch.zeros(states, dtype=torch.float64)
    return Graph(
        torch.randint(states, (arcs,)),
        torch.randint(states, (arcs,)),
        torch.randint(PDFS, (arcs,)),
        torch.randn(arcs).double(),
        ends,
        ends,
    )


def measure(
    batch: int,
    frames: int,
    denominator_size: tuple[int, int],
    numerator_size: tuple[int, int],
    device: str,
    repeats: int = 5,
) -> None:
    """Print the median time of the denominator's, the numerators' and the loss's value and gradient, and the memory."""
    torch.manual_seed(1)
    denominator = GraphBatch.collate([random_graph(*denominator_size)]).to(device)
    numerators = GraphBatch.collate([random_graph(*numerator_size) for _ in range(batch)]).to(device)
    lengths = torch.full((batch,), frames, device=device)
    baseline = 0.0 if device == "cuda" else peak_memory()
    scores = torch.randn(batch, frames, PDFS, device=device, requires_grad=True)
    medians = []
    for work in (
        lambda: total_log_probability(scores, lengths, denominator),
        lambda: total_log_probability(scores, lengths, numerators),
        lambda: lattice_free_mmi_loss(scores, lengths, numerators, denominator),
    ):
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            work().sum().backward()
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        medians.append(statistics.median(times))
    memory = peak_memory(device) - baseline
    denominator_seconds, numerator_seconds, loss_seconds = medians
    print(
        f"B {batch}, T {frames}, denominator of {denominator_size[0]} states and {denominator_size[1]} arcs "
        f"{denominator_seconds:.2f} s, "
        f"numerators of {numerator_size[0]} and {numerator_size[1]} {numerator_seconds:.2f} s, "
        f"loss {loss_seconds:.2f} s, {memory:.0f} MiB",
        flush=True,
    )


def main() -> None:
    """Print a line per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    print(f"{arguments.device}, {torch.get_num_threads()} threads, P {PDFS}, values and gradients", flush=True)
    for size in SIZES:
        process = multiprocessing.get_context("spawn").Process(target=measure, args=(*size, arguments.device))
        process.start()
        process.join()


if __name__ == "__main__":
    main()
