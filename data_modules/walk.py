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
        above: Of the folders that this one lies in, what tells them from others.
    """
    try:
        status = os.stat(folder)
        with os.scandir(folder) as found:
            entries = sorted((one for one in found if not one.name.startswith(".")), key=lambda one: one.name)
    except OSError as error:
        problems.append(BadFile(str(folder), "unreadable folder", error.strerror or str(error)))
        return
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    folders = [one for one in entries if _is_folder(one)]
    below = {one.name for one in folders}
    yield folder, [one.name for one in entries if one.name not in below]
    for one in folders:
        yield from walk(folder / one.name, problems, (*above, here))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def fingerprint(folder: Path, suffixes: Iterable[str]) -> str:
    """Hash the relative paths, sizes and modification times of the files with these suffixes, in one walk."""
    wanted, problems = tuple(suffixes), list[BadFile]()
    found = [
        (str((place / name).relative_to(folder)), *_size_and_time(place / name))
        for place, names in walk(folder, problems)
        for name in names
        if name.lower().endswith(wanted)
    ]
    found += [(bad.path, bad.detail, "") for bad in problems]
    digest = hashlib.sha256()
    for path, size, modified in sorted(found):
        digest.update(f"{path}\0{size}\0{modified}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _size_and_time(path: Path) -> tuple[str, str]:
    try:
        status = os.stat(path)
    except OSError as error:  # a link to nothing, or it has just been removed
        return error.strerror or str(error), ""
    return str(status.st_size), str(status.st_mtime_ns)


def name_apart(found: list[Listing], root: Path, bad: list[BadFile]) -> list[Listing]:
    """Make ids unique: files of one name in several folders are called by their paths, as `speaker1-chapter2-0001`.

    Args:
        found: With the names of their files as ids.
        root: The folder that the paths begin in.
        bad: What still has the id of another one is added, as one file in two formats; the first is kept.
    """
    folders: dict[str, set[Path]] = defaultdict(set)
    for one in found:
        folders[one.id].add(Path(one.path).parent)
    unique: dict[str, Listing] = {}
    for one in found:
        if len(folders[one.id]) > 1:
            one = replace(one, id="-".join([*Path(one.path).parent.relative_to(root).parts, one.id]))
        if one.id in unique:
            bad.append(BadFile(one.path, "duplicate id", f"{one.id} is also {unique[one.id].path}, which is kept"))
        unique.setdefault(one.id, one)
    return list(unique.values())
