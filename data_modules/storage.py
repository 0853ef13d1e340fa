"""Files on a disk and objects in storage that fsspec knows, by one address: a path, `s3://bucket/folder`, `https://…`.

Credentials, the addresses of servers and other options are found as fsspec's file systems find them: in their own
files and variables, and in `FSSPEC_<PROTOCOL>`, as in `FSSPEC_S3='{"anon": true}'`.
"""

import errno
import functools
import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

import fsspec
from fsspec import AbstractFileSystem

from asr_lightning.errors import InputError, reason
from data_modules.workers import threads

Result = TypeVar("Result")

OPEN_FILES = 256  # at most, of a process; opening again costs a file server more than reading
READ_AHEAD = 8192  # bytes of a request where headers are read one after the other
REQUESTS = 8  # at a time
TIMEOUT = 60.0  # seconds that a request may take
WAITS = (1.0, 3.0, 9.0)  # seconds before an object is asked for again
VERSIONS = ("ETag", "etag", "md5Hash", "content_hash", "LastModified", "Last-Modified", "mtime", "created")
"""Names that file systems have for what changes with a file, the most reliable first."""


class Entry(NamedTuple):
    """A file in a listing: its bytes, and a version that changes when the file does."""

    size: int
    version: str


def normalize(root: str) -> str:
    """Make a root absolute, without a slash at its end."""
    if root.startswith("file://"):
        root = root.removeprefix("file://")
    return root.rstrip("/") if "://" in root else str(Path(root).expanduser().absolute())


def is_remote(address: str) -> bool:
    """Whether this is an object of a storage, and not a file of the system."""
    return "://" in address


def list_files(root: str, subset: str) -> dict[str, Entry]:
    """The files of a subset by name; none where there is no such folder.

    A web server does not list, so there the names are those of `<subset>.json`.

    Raises:
        InputError: The storage cannot be reached, or the package for it is missing.
    """
    try:
        if not is_remote(root):
            with os.scandir(f"{root}/{subset}") as entries:
                files = [(entry.name, entry.stat()) for entry in entries if entry.is_file()]
            return {name: Entry(status.st_size, str(status.st_mtime_ns)) for name, status in files}
        if root.startswith(("http://", "https://")):
            return _list_named(root, subset)
        return {
            entry["name"].rpartition("/")[2]: _entry(entry)
            for entry in _list(f"{root}/{subset}")
            if entry["type"] != "directory" and not entry["name"].endswith("/")  # some keep empty objects for folders
        }
    except InputError:
        raise
    except FileNotFoundError:
        return {}
    except Exception as error:  # every storage has its own
        raise InputError(unreachable(f"{root}/{subset}", error)) from error


def _list_named(root: str, subset: str) -> dict[str, Entry]:
    """Ask a web server for every file that `<subset>.json` names."""

    def ask(name: str) -> Entry | None:
        file_system, path = _find(f"{root}/{subset}/{name}", os.getpid())
        try:
            return _entry(_within_time(file_system, file_system.info, path))
        except FileNotFoundError as error:  # said of whatever goes wrong
            if error.__cause__ is None or getattr(error.__cause__, "status", 0) in (404, 410):
                return None
            raise error.__cause__ from None

    try:
        names = [str(name) for name in json.loads(read_file(f"{root}/{subset}.json"))["files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{root}/{subset}.json is no list of shards: {reason(error)}. Copy it again.") from error
    with threads(REQUESTS) as pool:
        entries = dict(zip(names, pool.map(ask, names), strict=True))
    return {name: entry for name, entry in entries.items() if entry is not None}


def _list(address: str) -> list[dict[str, Any]]:
    file_system, folder = _find(address, os.getpid())
    file_system.invalidate_cache(folder)
    return _within_time(file_system, file_system.ls, folder, detail=True)


def _entry(info: dict[str, Any]) -> Entry:
    version = next((str(info[name]) for name in VERSIONS if info.get(name)), "")
    return Entry(-1 if info.get("size") is None else int(info["size"]), version)


def list_folders(root: str) -> list[str]:
    """The folders below a root, as far as the storage tells; to be read by people."""
    try:
        if not is_remote(root):
            names = [path.name for path in Path(root).iterdir() if path.is_dir()]
        else:
            folders = (entry["name"] for entry in _list(root) if entry["type"] == "directory")
            names = [name.rstrip("/").rpartition("/")[2] for name in folders]
    except Exception:  # the message of the caller says what is wrong
        return []
    return sorted(name for name in names if not name.startswith("."))


def read_file(address: str) -> bytes:
    """Read the whole of a small file.

    Raises:
        FileNotFoundError: It is not there.
        ConnectionError: The storage does not give it.
        OSError: The disk does not.
    """
    if not is_remote(address):
        return Path(address).read_bytes()
    return _ask(address)


def read_range(address: str, offset: int, size: int) -> bytes:
    """Read a part of a file; fewer bytes where it ends before.

    Raises:
        FileNotFoundError: It is not there.
        ConnectionError: The storage does not give it.
        OSError: The disk does not.
    """
    if not is_remote(address):
        file = _open(address)  # held while it is read: another thread may have opened it too, and the cache keeps one
        return os.pread(file.descriptor, size, offset)
    content = _ask(address, start=offset, end=offset + size)
    if len(content) > size:
        raise ConnectionError(f"the server of {address} gives whole files where parts are asked for (HTTP ranges)")
    return content


def open_file(address: str, size: int) -> BinaryIO:
    """Open a file to read it here and there; of an object of `size` bytes, only what is looked at is transferred."""
    if not is_remote(address):
        return open(address, "rb")
    return cast(BinaryIO, io.BufferedReader(_Ranges(address, size), READ_AHEAD))


def close_files() -> None:
    """Close the files of a disk that reads left open; what lies there may have been replaced."""
    _open.cache_clear()


def unreachable(address: str, error: Exception) -> str:
    """Return the error of a storage that gives nothing, with what to do."""
    if isinstance(error, ImportError):
        extra = " (of this project: the extra s3, `pip install '.[s3]'`)" if address.startswith("s3") else ""
        return f"{address} cannot be read: {reason(error)}{extra}."
    if isinstance(error, ValueError) and "Protocol not known" in str(error):
        return f"{address} cannot be read: {reason(error)}. Expected a folder, s3://…, gs://…, https://… or such."
    message = " ".join(reason(error).split()) or type(error).__name__
    return (
        f"{address} cannot be read: {message.rstrip('.')}. Are the address and the credentials right, is the server up?"
    )


class _Ranges(io.RawIOBase):
    """An object that is read by ranges, to be wrapped in a buffer."""

    def __init__(self, address: str, size: int) -> None:
        self.address, self.size, self.position = address, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + (0, self.position, self.size)[whence]
        return self.position

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), self.size - self.position)
        content = read_range(self.address, self.position, size) if size > 0 else b""
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)


_unreachable_processes: set[int] = (
    set()
)  # processes that asked in vain for the last object: they ask for the next one only once


def _ask(address: str, **span: int) -> bytes:
    """Get an object or a part of it, and ask again where that may help."""
    for wait in (*(() if os.getpid() in _unreachable_processes else WAITS), None):
        try:
            file_system, path = _find(address, os.getpid())
            content = _within_time(file_system, file_system.cat_file, path, **span)
            _unreachable_processes.discard(os.getpid())
            return bytes(content)
        except FileNotFoundError:
            raise
        except Exception as error:  # every storage has its own
            if wait is None or _is_final(error):
                if not _is_final(error):
                    _unreachable_processes.add(os.getpid())
                raise ConnectionError(unreachable(address, error)) from error
        time.sleep(wait)
    raise AssertionError


def _is_final(error: Exception) -> bool:
    """Whether another request would fail likewise."""
    status = getattr(error, "status", None)
    refused = isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)
    return refused or isinstance(error, (PermissionError, ImportError)) or getattr(error, "errno", 0) == errno.EINVAL


def _within_time(
    file_system: AbstractFileSystem, call: Callable[..., Result], *arguments: Any, **keywords: Any
) -> Result:
    """Call a method of a file system; those that wait in a thread of their own give up after a time."""
    return call(*arguments, **keywords, **({"timeout": TIMEOUT} if file_system.async_impl else {}))


@functools.cache  # for ever: a forked process that released its parent's would close the parent's connections
def _find(address: str, process: int) -> tuple[AbstractFileSystem, str]:
    """The file system of an address in a process, and the address as a path in it."""
    return fsspec.core.url_to_fs(address)


class _OpenFile:
    """A file that stays open as long as it is referenced; reads give their offset, so forked workers may share it."""

    def __init__(self, path: str) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


@functools.lru_cache(maxsize=OPEN_FILES)
def _open(path: str) -> _OpenFile:
    return _OpenFile(path)
