"""Files that are whole or not there, where those lie that can be made anew, and what folders of runs are called."""

import errno
import fcntl
import math
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import yaml

from asr_lightning.errors import InputError, printable, reason

STREAMS = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")  # what a shell gives for `<(…)`: somebody writes to them
ABANDONED_SECONDS = 24 * 3600  # without a change: nobody writes a file for that long
MOST_VALUES = 100_000  # of a YAML, aliases written out


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a file to write to, and put it in the place of `path` when it is complete: nobody reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent, path.name)
    half = path.with_name(f".{path.name}.{_writer()}.{secrets.token_hex(4)}")
    os.close(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))  # new, and no link
    try:
        yield half
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)


@contextmanager
def replacing_files(folder: Path) -> Iterator[Path]:
    """Give a folder to write files to, and move them into `folder` when all are complete: none without the others."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder)
    half = Path(tempfile.mkdtemp(prefix=f".{_writer()}.", dir=folder))
    try:
        yield half
        for path in half.iterdir():
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(half, ignore_errors=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold `.NAME.lock` beside a path; the system drops the lock when its process dies. The empty file stays.

    Raises:
        InputError: Something else than a file has the name of the lock, as a link.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    try:
        file = _open_beside(lock, os.O_RDWR)
    except PermissionError:  # of another user, who shares the folder
        file = _open_beside(lock, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def append_to(path: Path) -> TextIO:
    """Open a file for text at its end, which is made where it is not there; never what a link leads to.

    Raises:
        InputError: Something else than a file is there, as a link.
    """
    return os.fdopen(_open_beside(path, os.O_WRONLY | os.O_APPEND), "a", encoding="utf-8")


def _open_beside(path: Path, flags: int) -> int:
    """Open a file with a name that others can guess: in a shared folder it may be their link to another file."""
    try:
        file = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):  # a link, a pipe without a reader, a folder
            raise
        file = -1
    if file < 0 or not stat.S_ISREG(os.fstat(file).st_mode):
        if file >= 0:
            os.close(file)
        raise InputError(
            f"{printable(str(path))}: expected a file of ours or nothing, found a link or something else. Remove it, "
            "and see who else writes into this folder"
        )
    return file


def remove(path: Path) -> None:
    """Remove what has a name: a folder with all in it, a file, or a link, but never what a link leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def half_name(path: Path) -> str:
    """Return the beginning of the name that this process gives to a half file or folder beside a path."""
    return f".{path.name}.{_writer()}"


def remove_abandoned(folder: Path, name: str = "") -> None:
    """Remove what killed writers left in a folder: half files of `replacing` and folders of `replacing_files`.

    A disk may be shared: of this machine, those of processes that are gone are removed, and of others those that nobody
    has written to for a day.

    Args:
        folder: Where they lie.
        name: Of the file that was being written; empty for folders of `replacing_files`.
    """
    half_written = re.compile(re.escape(f".{name}." if name else ".") + r"(.+)\.(\d+)(?:\.\w{8})?")
    with os.scandir(folder) as entries:
        halves = [(entry, match) for entry in entries if (match := half_written.fullmatch(entry.name))]
    for entry, match in halves:
        try:
            gone = match[1] == platform.node() and not _runs(int(match[2]))
            if gone or time.time() - entry.stat(follow_symlinks=False).st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(entry) if entry.is_dir(follow_symlinks=False) else os.unlink(entry)
        except OSError:  # another process was faster, or it is another user's
            continue


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    return True


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
    with os.fdopen(_open_beside(path, os.O_RDWR), "r+", encoding="utf-8", errors="replace") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                holder = printable(file.read(200)) or "another process"
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


def read_experiment(path: Path) -> dict[str, Any]:
    """Return all that an experiment's file says, or nothing where it says something else.

    Raises:
        InputError: The file cannot be read, or is no YAML.
    """
    try:
        experiment = load_yaml(regular(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(error.strerror or str(error)) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or a date without such a day
        raise InputError(f"this is no YAML: {reason(error)}") from error
    return experiment if isinstance(experiment, dict) else {}


def read_yaml(path: Path, kind: str) -> dict[str, Any]:
    """Return the keys and values of a YAML file.

    Args:
        path: The file.
        kind: What it is called in messages, as `the experiment`.

    Raises:
        InputError: It cannot be read, or holds no keys with values.
    """
    try:
        content = read_experiment(path)
    except InputError as error:
        raise InputError(f"cannot read {kind} {path}: {error}") from error
    if not content:
        raise InputError(f"{path}: expected {kind}, keys with values, found none")
    return content


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
