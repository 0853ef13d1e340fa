"""Processes that read ahead."""

import os
import signal
from types import FrameType

import torch


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
