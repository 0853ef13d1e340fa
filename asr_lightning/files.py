"""Files that are whole or not there, where those lie that can be made anew, and what folders of runs are called."""

import errno
import fcntl
import math
import os
import platform
import re
import shutil
import stat
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from asr_lightning.errors import InputError, shown

STREAMS = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")  # what a shell gives for `<(…)`: somebody writes to them
MOST_VALUES = 100_000  # of a YAML, aliases written out


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


@contextmanager
def held(path: Path, busy: str) -> Iterator[None]:
    """Hold a file for this process alone.

    The system ends the hold when the process ends, however it ends; its children do not share it. The file stays, and
    says who held it last. On a disk that has no locks, as some of a network, there is a warning and no hold.

    Args:
        path: The file, which is made with its folder.
        busy: The beginning of the message where another process holds it.

    Raises:
        InputError: Another process holds it; the message says which, and since when.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(
        os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "r+", errors="replace"
    ) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                holder = shown("".join(filter(str.isprintable, file.read(1_000)))) or "another process"
                raise InputError(
                    f"{busy}: {holder} writes there. Expected one process at a time, since each would overwrite the "
                    "other's files. Wait for its end, stop it, or name another folder with --trainer.default_root_dir"
                ) from error
            warnings.warn(
                f"{path} cannot be locked ({error.strerror}): this disk has no locks. See to it yourself that no other "
                "process writes to this folder",
                stacklevel=3,
            )
        else:
            file.truncate()
            file.write(f"process {os.getpid()} on {platform.node()}, since {time.strftime('%Y-%m-%d %H:%M:%S %z')},")
            file.flush()
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


def regular(path: Path) -> Path:
    """Return the path, unless it is something that may never end, or never begin to be read.

    Raises:
        OSError: It is a named pipe, a device or a socket, or is not there.
    """
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or str(path).startswith(STREAMS)):
        raise OSError(errno.EINVAL, "expected a file, found a pipe, a device or a socket", str(path))
    return path


def load_yaml(text: str) -> Any:
    """Read a YAML that may be anybody's.

    Raises:
        yaml.YAMLError: It is none, or its aliases write out to more than anybody means.
        ValueError: A date has no such day.
        RecursionError: It is nested too deeply.
    """
    check_aliases(text)
    return yaml.safe_load(text)


def check_aliases(text: str) -> None:
    """See that a YAML is not small only because of its aliases; merged and copied, each of them becomes a value.

    Raises:
        yaml.YAMLError: It is, or it is no YAML.
        RecursionError: It is nested too deeply.
    """
    if "&" in text and "*" in text and _size(yaml.compose(text, Loader=yaml.SafeLoader), {}) > MOST_VALUES:
        raise yaml.YAMLError(f"its aliases stand for more than {MOST_VALUES:,} values: write out those that are meant")


def _size(node: yaml.Node | None, known: dict[int, float]) -> float:
    """The values below a node; without end where it is within itself."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf
        values = node.value if isinstance(node, yaml.SequenceNode) else [one for pair in node.value for one in pair]
        known[id(node)] = 1 + sum(_size(one, known) for one in values)
    return known[id(node)]


def name_of_run(folder: Path) -> tuple[str, str]:
    """Return the name of the experiment and its seed (empty where unknown): `runs/demo/rnnt/seed1` → `rnnt`, `1`."""
    folder = folder.absolute()
    seed = re.fullmatch(r"seed(\d+)", folder.name)
    return (folder.parent.name, seed[1]) if seed else (folder.name, "")
