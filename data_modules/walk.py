"""The files of a folder at any depth, whatever links, permissions and equal names there are."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from data_modules.manifest import BadFile, Listing


def walk(
    folder: Path, problems: list[BadFile], above: tuple[tuple[int, int], ...] = ()
) -> Iterator[tuple[Path, list[str]]]:
    """Yield every folder, itself first, with the sorted names of what is in it and is no folder.

    Links are followed, except one to a folder that it lies in: its files come anyway. Hidden names are passed over.

    Args:
        folder: Where to begin.
        problems: Folders that cannot be read are added.
        above: Device and inode of each folder that this one lies in.
    """
    try:
        status = os.stat(folder)
        with os.scandir(folder) as scanned:
            entries = sorted(
                (entry for entry in scanned if not entry.name.startswith(".")), key=lambda entry: entry.name
            )
    except OSError as error:
        problems.append(BadFile(str(folder), "unreadable folder", error.strerror or str(error)))
        return
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    folders = [entry for entry in entries if _is_folder(entry)]
    folder_names = {entry.name for entry in folders}
    yield folder, [entry.name for entry in entries if entry.name not in folder_names]
    for entry in folders:
        yield from walk(folder / entry.name, problems, (*above, identity))


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
