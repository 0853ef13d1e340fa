"""Atomic file writes, locks, YAML files, the cache folder, names of run folders, and the commit of the source."""

import errno
import fcntl
import math
import os
import platform
import re
import secrets
import shutil
import stat
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import yaml

from asr_lightning.errors import InputError, printable, reason
from asr_lightning.renamed import current_names

STREAMS = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")  # of a shell's `<(…)`, which are pipes with a writer
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ABANDONED_SECONDS = 24 * 3600  # without a change: longer than any file is written
MOST_VALUES = 100_000  # of a YAML with its aliases expanded


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file to write to, and rename it to `path` when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent, path.name)
    unfinished = path.with_name(f".{path.name}.{_process_name()}.{secrets.token_hex(4)}")
    os.close(
        os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    )  # fails if it exists, also as a link
    try:
        yield unfinished
        os.replace(unfinished, path)
    except OSError as error:
        if error.errno in DISK_FULL and error.filename is None:  # of a write
            error.filename = str(path)
        raise
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def replacing_files(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder to write files to, and move all of them into `folder` when they are complete."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{_process_name()}.", dir=folder))
    try:
        yield unfinished
        for path in unfinished.iterdir():
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock `.NAME.lock` beside a path; the system unlocks it when the process ends. The empty file remains.

    Raises:
        InputError: The name of the lock is not a file, but a link for example.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    try:
        file = _open_beside(lock, os.O_RDWR)
    except PermissionError:  # the file of another user of the folder
        file = _open_beside(lock, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def append_to(path: Path) -> TextIO:
    """Open a file to append text, and create it if it is missing; links are not followed.

    Raises:
        InputError: The path is not a file, but a link for example.
    """
    return os.fdopen(_open_beside(path, os.O_WRONLY | os.O_APPEND), "a", encoding="utf-8")


def _open_beside(path: Path, flags: int) -> int:
    """Open a file without following links, which another user of a shared folder may have made."""
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
            f"{printable(str(path))}: expected a regular file or no file, found a link or something else. Remove it, "
            "and find out who else writes into this folder"
        )
    return file


def remove(path: Path) -> None:
    """Remove a folder with its content, a file, or a link, but not the target of a link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def unfinished_prefix(path: Path) -> str:
    """Return the prefix of names of this process's unfinished files and folders beside a path."""
    return f".{path.name}.{_process_name()}"


def remove_abandoned(folder: Path, name: str = "") -> None:
    """Remove the unfinished files of `replacing` and folders of `replacing_files` that killed processes left.

    A disk may be shared: those of this machine are removed if their process has ended, those of other machines if they
    have not changed for a day.

    Args:
        folder: The folder that contains them.
        name: Name of the file that was being written; empty for folders of `replacing_files`.
    """
    unfinished = re.compile(re.escape(f".{name}." if name else ".") + r"(.+)\.(\d+)(?:\.\w{8})?")
    with os.scandir(folder) as entries:
        matches = [(entry, match) for entry in entries if (match := unfinished.fullmatch(entry.name))]
    for entry, match in matches:
        try:
            gone = match[1] == platform.node() and not _is_alive(int(match[2]))
            if gone or time.time() - entry.stat(follow_symlinks=False).st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(entry) if entry.is_dir(follow_symlinks=False) else os.unlink(entry)
        except OSError:  # another process was faster, or it is another user's
            continue


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    return True


@contextmanager
def exclusive_lock(path: Path, busy: str, option: str = "--trainer.default_root_dir") -> Iterator[None]:
    """Lock a file for this process alone, or refuse if another process has locked it.

    The system unlocks it when the process ends, for whatever reason; child processes do not share the lock. The file
    remains, with the name of its last process. Without locks on the disk, as on some network disks, there is a warning.

    Args:
        path: The file, which is created with its folder.
        busy: The beginning of the message if another process has locked it.
        option: That names another folder.

    Raises:
        InputError: Another process has locked it; the message says which, and since when.
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
                    f"other's files. Wait for its end, stop it, or name another folder with {option}"
                ) from error
            warnings.warn(
                f"{path} cannot be locked ({error.strerror}): this disk has no locks. Make sure that no other "
                "process writes to this folder",
                stacklevel=3,
            )
        else:
            file.truncate()
            file.write(f"process {os.getpid()} on {platform.node()}, since {time.strftime('%Y-%m-%d %H:%M:%S %z')},")
            file.flush()
        yield


def _process_name() -> str:
    """Return a name of this process that is unique on a disk shared by several machines."""
    return f"{platform.node()}.{os.getpid()}"


def write_atomically(path: Path, text: str) -> None:
    """Write a text file, which readers see complete or not at all."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def cache_folder() -> Path:
    """Return the folder of the manifests of corpora: `$ASR_LIGHTNING_CACHE`, or `~/.cache/asr_lightning`."""
    return Path(os.environ.get("ASR_LIGHTNING_CACHE") or Path.home() / ".cache" / "asr_lightning")


def regular(path: Path) -> Path:
    """Return the path of a file or folder; refuse what a reader could wait for without end.

    Raises:
        OSError: It is a named pipe, a device or a socket, or it is missing.
    """
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or str(path).startswith(STREAMS)):
        raise OSError(errno.EINVAL, "expected a file, found a pipe, a device or a socket", str(path))
    return path


def load_yaml(text: str) -> Any:
    """Read a YAML of any source; renamed classes get their current names.

    Raises:
        yaml.YAMLError: It is no YAML, or its aliases expand to too many values.
        ValueError: A date does not exist.
        RecursionError: It is nested too deeply.
    """
    check_aliases(text)
    return yaml.safe_load(current_names(text))


def read_experiment(path: Path) -> dict[str, Any]:
    """Return the content of an experiment's file; an empty dictionary if it is not a mapping.

    Raises:
        InputError: The file cannot be read, or is no YAML.
    """
    try:
        experiment = load_yaml(regular(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(error.strerror or str(error)) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or a wrong date
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
    """Refuse a YAML whose aliases expand to too many values.

    Raises:
        yaml.YAMLError: They do, or it is no YAML.
        RecursionError: It is nested too deeply.
    """
    if "&" in text and "*" in text and _size(yaml.compose(text, Loader=yaml.SafeLoader), {}) > MOST_VALUES:
        raise yaml.YAMLError(f"its aliases expand to more than {MOST_VALUES:,} values: write out the values")


def _size(node: yaml.Node | None, sizes: dict[int, float]) -> float:
    """Return the number of values below a node; infinity if it contains itself."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in sizes:
        sizes[id(node)] = math.inf
        values = node.value if isinstance(node, yaml.SequenceNode) else [value for pair in node.value for value in pair]
        sizes[id(node)] = 1 + sum(_size(value, sizes) for value in values)
    return sizes[id(node)]


def name_of_run(folder: Path) -> tuple[str, str]:
    """Return the name of the experiment and its seed (empty if unknown): `runs/demo/rnnt/seed1` → `rnnt`, `1`."""
    folder = folder.absolute()
    seed = re.fullmatch(r"seed(\d+)", folder.name)
    return (folder.parent.name, seed[1]) if seed else (folder.name, "")


def source_commit() -> str:
    """Return the commit of this source, with `-changed` where files differ from it; the version where it has none."""
    root = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) == root.resolve():  # not a repository that this is installed in
            changed = git("status", "--porcelain", "--untracked-files=no")
            return git("rev-parse", "HEAD") + ("-changed" if changed else "")
    except (OSError, subprocess.SubprocessError):
        pass
    return f"version {metadata.version('asr_lightning')}"


def read_number(field: str) -> float:
    """Return the number in a field of a file.

    Raises:
        ValueError: There is none. Python would read `1_0` as 10, which no file means.
    """
    if "_" in field:
        raise ValueError(f"expected a number, found {field!r}")
    return float(field)
