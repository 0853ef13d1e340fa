"""What the benchmarks share: contestants that take turns within one run, and rows of one table."""

import importlib.metadata
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

WARM = 2  # turns that are not counted

HEAD = (
    "| what | of | ours: median (least to most) | beside it | its time | ours is so many times as fast | memory |\n"
    "| --- | --- | ---: | --- | ---: | ---: | ---: |"
)


Work = Callable[[], object]


def in_turns(contestants: Mapping[str, Work], turns: int, device: str = "cpu") -> dict[str, list[float]]:
    """Let each do its work once a turn; return the seconds of every counted turn."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(WARM + turns):
        for name, work in contestants.items():
            start = time.perf_counter()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn >= WARM:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_memory(device: str = "cpu") -> float:
    """Return the most MiB so far: allocated on a GPU, or resident in this process.

    Not by `getrusage`, whose peak begins with that of the process that started this one.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        what: Is measured.
        of: Shapes and sizes.
        ours: Seconds of each turn.
        peer: Whom it is compared to, and how that is called.
        theirs: Seconds of the peer's turns, the same ones; none where ours stands alone.
        audio: Seconds of audio in a turn.
        memory: Peak MiB of ours, and of the peer's if there is one.
    """

    what: str
    of: str
    ours: list[float]
    peer: str = "–"
    theirs: list[float] | None = None
    audio: float | None = None
    memory: tuple[float, float | None] | None = None

    def __str__(self) -> str:
        """Return the row in Markdown."""
        peer_time, speed, share = "–", "–", "–"
        if self.theirs:
            peer_time = self._cell(self.theirs)
            ratios = sorted(
                peer_seconds / our_seconds for our_seconds, peer_seconds in zip(self.ours, self.theirs, strict=True)
            )
            speed = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        if self.memory:
            our_memory, peer_memory = self.memory
            share = (
                f"{our_memory:,.0f} MiB"
                if peer_memory is None
                else f"{our_memory / peer_memory:.2f} of {peer_memory:,.0f} MiB"
            )
        return f"| {self.what} | {self.of} | {self._cell(self.ours)} | {self.peer} | {peer_time} | {speed} | {share} |"

    def _cell(self, seconds: list[float]) -> str:
        """Return milliseconds, and seconds of audio per second."""
        least, median, most = (1000 * value for value in (min(seconds), statistics.median(seconds), max(seconds)))
        digits = 1 if most < 10 else 0
        cell = f"{median:,.{digits}f} ms ({least:,.{digits}f} to {most:,.{digits}f})"
        return cell if self.audio is None else f"{cell}, {1000 * self.audio / median:,.0f} s/s"


def print_table(rows: Iterable[Row]) -> None:
    """Print rows as they come, below their head."""
    print(HEAD)
    for row in rows:
        print(row, flush=True)


def provenance() -> str:
    """Return a line of the machine, the versions of packages and the commit of a measurement."""
    versions = []
    for package in ("torch", "torchaudio", "speechbrain", "lhotse", "scikit-learn"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    git = subprocess.run(
        ["git", "-C", Path(__file__).parent, "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    return (
        f"{_device()}, {os.cpu_count()} processors, {torch.get_num_threads()} threads, "
        f"load {os.getloadavg()[0]:.1f}; {', '.join(versions)}; commit {git.stdout.strip() or 'unknown'}"
    )


def _device() -> str:
    """Return the GPU, or the processor with the vector instructions that torch takes."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    path = Path("/proc/cpuinfo")  # of Linux
    lines = path.read_text().splitlines() if path.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"
