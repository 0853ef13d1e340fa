"""Processes that read ahead, and threads whose work can be given up."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType

import torch

MOST_WORKERS = 8  # of a training process; more do not read faster than one GPU trains


def default_workers() -> int:
    """Return the number of processes that read ahead for a training process: one per core but one, 1 to 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, max(1, cores - 1))


def begin_worker(worker: int) -> None:
    """Keep a worker to one thread, as workers are the parallelism, and out of reach of signals that stop the run.

    At Ctrl-C or pre-emption the run makes its step and writes a checkpoint, for which it may need a batch. A terminal
    signals the process group, SLURM every process of a job. Workers end with their run, or when they are killed.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _skip_warning)
    os.setpgid(0, 0)


def _skip_warning(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # with a second one, Python ends workers that are left over at its exit


@contextmanager
def threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads; what they have not begun when the block ends, as by Ctrl-C, is left undone.

    The pool's own `with` waits for all of it: for the headers of a whole corpus where the disk is full.
    """
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
