"""Files that are whole or not there, and where those lie that can be made anew."""

import fcntl
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a file to write to, and put it in the place of `path` when it is complete: nobody reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.{_writer()}")
    try:
        yield half
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)


@contextmanager
def replacing_files(folder: Path) -> Iterator[Path]:
    """Give a folder to write files to, and move them into `folder` when all are complete: none without the others."""
    folder.mkdir(parents=True, exist_ok=True)
    half = folder / f".{_writer()}"
    half.mkdir(exist_ok=True)
    try:
        yield half
        for path in half.iterdir():
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(half, ignore_errors=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold `.NAME.lock` beside a path; the system drops the lock when its process dies. The empty file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _writer() -> str:
    """Tells this process from those of other machines that share the disk."""
    return f"{platform.node()}.{os.getpid()}"


def write_atomically(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    with replacing(path) as half:
        half.write_text(text, encoding="utf-8")


def cache_folder() -> Path:
    """Where what is known of corpora lies: `$ASR_LIGHTNING_CACHE`, or `~/.cache/asr_lightning`."""
    return Path(os.environ.get("ASR_LIGHTNING_CACHE") or Path.home() / ".cache" / "asr_lightning")
