"""The files of a folder at any depth, whatever links, permissions and equal names there are."""

import contextlib
import functools
import hashlib
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from data_modules.manifest import BadFile, Listing


def walk(folder: Path, problems: list[BadFile]) -> Iterator[tuple[Path, list[str]]]:
    """Yield every folder, itself first, with the sorted names of what is in it and is no folder.

    Links are followed, except one to a folder that it lies in: its files come anyway, or are of other subsets. A folder
    that is reached twice, as by a link beside it, is a problem the second time. Hidden names are passed over.

    Args:
        folder: Where to begin.
        problems: Folders that cannot be read, or that come twice, are added.
    """
    above = set()
    for parent in Path(os.path.realpath(folder)).parents:
        with contextlib.suppress(OSError):
            above.add(_identity(os.stat(parent)))
    yield from _walk(folder, problems, above, {})


def _walk(
    folder: Path, problems: list[BadFile], above: set[tuple[int, int]], visited: dict[tuple[int, int], Path]
) -> Iterator[tuple[Path, list[str]]]:
    """Walk through a folder, given the folders that it lies in and those that have come, by device and inode."""
    try:
        identity = _identity(os.stat(folder))
        with os.scandir(folder) as scanned:
            entries = sorted(
                (entry for entry in scanned if not entry.name.startswith(".")), key=lambda entry: entry.name
            )
    except OSError as error:
        problems.append(BadFile(str(folder), "unreadable folder", error.strerror or str(error)))
        return
    if identity in above:
        return
    if identity in visited:
        problems.append(BadFile(str(folder), "folder twice", f"it is also {visited[identity]}, which is kept"))
        return
    visited[identity] = folder
    folders = [entry for entry in entries if _is_folder(entry)]
    folder_names = {entry.name for entry in folders}
    yield folder, [entry.name for entry in entries if entry.name not in folder_names]
    for entry in sorted(folders, key=lambda entry: entry.is_symlink()):  # a folder is called by its own name first
        yield from _walk(folder / entry.name, problems, above | {identity}, visited)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def fingerprint(folder: Path, suffixes: Iterable[str]) -> str:
    """Hash the relative paths, sizes and modification times of the files with these suffixes, in one walk."""
    endings, problems = tuple(suffixes), list[BadFile]()
    files = [
        (str((directory / name).relative_to(folder)), *_size_and_time(directory / name))
        for directory, names in walk(folder, problems)
        for name in names
        if name.lower().endswith(endings)
    ]
    files += [(bad.path, bad.detail, "") for bad in problems]
    digest = hashlib.sha256()
    for path, size, modified in sorted(files):
        digest.update(f"{path}\0{size}\0{modified}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _size_and_time(path: Path) -> tuple[str, str]:
    try:
        status = os.stat(path)
    except OSError as error:  # a link to nothing, or it has just been removed
        return error.strerror or str(error), ""
    return str(status.st_size), str(status.st_mtime_ns)


def name_apart(listings: list[Listing], root: Path, bad: list[BadFile]) -> list[Listing]:
    """Make ids unique: files of one name in several folders are called by their paths, as `speaker1-chapter2-0001`.

    Args:
        listings: With the names of their files as ids.
        root: The folder that the paths begin in.
        bad: Gets utterances that still have the id of another, as of one file in two formats; the first is kept.
    """
    folders: dict[str, set[Path]] = defaultdict(set)
    for listing in listings:
        folders[listing.id].add(Path(listing.path).parent)
    unique: dict[str, Listing] = {}
    for listing in listings:
        if len(folders[listing.id]) > 1:
            listing = replace(listing, id="-".join([*Path(listing.path).parent.relative_to(root).parts, listing.id]))
        if listing.id in unique:
            bad.append(
                BadFile(listing.path, "duplicate id", f"{listing.id} is also {unique[listing.id].path}, which is kept")
            )
        unique.setdefault(listing.id, listing)
    return list(unique.values())


def find_file(name: str, bases: Iterable[Path], suffixes: Sequence[str] = ("",)) -> str | None:
    """Find a file that a corpus lists: below one of the bases, as it is written or as other file systems write it.

    Some do not tell capitals from small letters, some decompose letters (NFD), some write folders with backslashes.
    Where there is something else of this name, as a folder or a link to nothing, it is returned: opening it says why.

    Args:
        name: Relative to a base, or absolute.
        bases: Folders, in the order of preference.
        suffixes: That may follow the name.

    Returns:
        A normalized path; None where there is nothing of this name, or several files may be meant.
    """
    if "\0" in name:
        return None
    names = dict.fromkeys((name, name.replace("\\", "/")))
    paths = [os.path.normpath(base / (name + suffix)) for name in names for base in bases for suffix in suffixes]
    for path in paths:
        if os.path.isfile(path):
            return path
    for path in paths:
        if (spelled := _as_spelled(path)) is not None and os.path.isfile(spelled):
            return spelled
    return next((path for path in paths if os.path.lexists(path)), None)


def _as_spelled(path: str) -> str | None:
    """Spell a path as its folders and files are called; None where there is no such, or more than one."""
    if os.path.exists(path):
        return path
    folder, name = os.path.split(path)
    if not name or (parent := _as_spelled(folder)) is None:
        return None
    try:
        names = _spellings(parent, os.stat(parent).st_mtime_ns).get(_fold(name), [])
    except OSError:
        return None
    return os.path.join(parent, names[0]) if len(names) == 1 else None


@functools.lru_cache(64)
def _spellings(folder: str, modified: int) -> dict[str, list[str]]:
    """The names in a folder, without their differences in case and composition; a changed folder is read again."""
    names: dict[str, list[str]] = defaultdict(list)
    for name in os.listdir(folder):
        names[_fold(name)].append(name)
    return dict(names)


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name.lower())
