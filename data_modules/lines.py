"""The lines of text files of any size: their positions and texts are read from disk; no text stays in memory."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from io import BufferedIOBase
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import Dataset
from tqdm import tqdm

from asr_lightning.errors import InputError, reason
from asr_lightning.files import cache_folder, regular, remove_abandoned, unfinished_prefix
from asr_lightning.text.english import english_transcript

FORMAT = 1  # of the index; raise it when that changes, and old ones are rebuilt
ROW = np.dtype([("offset", "<i8"), ("line", "<u4"), ("bytes", "<u4"), ("characters", "<u4")])
ROWS_AT_ONCE = 1 << 18  # lines whose rows are in memory while an index is made
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Signature = tuple[int, int]  # bytes, and nanoseconds of the last change


class Lines(Dataset):
    """The lines of some files that have words in them, the longest first; an item is a name, `file:number`, and a text.

    The index is a file of `ROW`s that is mapped into memory, so all processes share what of it is in use. Offsets count
    through all files, one behind the other.

    Args:
        index: The folder of the index.
        files: What it was made from, in its order.
        signatures: Of the files when it was made.
        normalize: Write English as `asr_lightning.text.english.english_transcript` does.

    Attributes:
        left_out: Lines without words.
        digest: A hash of all texts in the order of the files.

    Raises:
        OSError: There is no such index.
        ValueError: The index is damaged.
    """

    def __init__(self, index: Path, files: list[Path], signatures: list[Signature], normalize: bool) -> None:
        self.index = index
        self.files = files
        self.normalize = normalize
        metadata = json.loads((index / "about.json").read_text("utf-8"))
        self.left_out = int(metadata["left_out"])
        self.digest = str(metadata["texts"])
        with (index / "rows.npy").open("rb") as rows:
            if metadata["digest"] != _metadata(self.left_out, self.digest, rows)["digest"]:
                raise ValueError(f"{index} was changed after it was written")
        self._signatures = signatures
        self._starts = np.cumsum([0, *(size for size, _ in signatures)])
        self._rows = np.load(index / "rows.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def characters(self) -> np.ndarray:
        """(N,) of each line, never rising; what is skipped is not counted."""
        return self._rows["characters"]

    def __getitem__(self, number: int) -> tuple[str, str]:
        offset, line, size, _ = self._rows[number].tolist()
        index = int(np.searchsorted(self._starts, offset, side="right")) - 1
        path = self.files[index]
        text = self._read(path, self._signatures[index], offset - int(self._starts[index]), size).decode("utf-8")
        return f"{path}:{line}", english_transcript(text) if self.normalize else text

    def _read(self, path: Path, signature: Signature, offset: int, size: int) -> bytes:
        try:
            file = os.open(path, os.O_RDONLY)
            try:
                if _signature(os.fstat(file)) == signature:
                    return os.pread(file, size, offset)
                problem = "it is not the file that this run began with"
            finally:
                os.close(file)
        except OSError as error:
            problem = str(error)
        raise InputError(f"{path} cannot be read any more: {problem}. Restore it, and resume from the last checkpoint")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_rows"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._rows = np.load(self.index / "rows.npy", mmap_mode="r")


def open_lines(files: list[Path], skip_columns: int = 0, normalize: bool = False) -> Lines:
    """Return the lines of files by their index in the cache, which is made where it is missing or out of date.

    Args:
        files: Plain text in UTF-8, a sentence per line.
        skip_columns: So many words at the beginning of every line are no part of it.
        normalize: Write English as `asr_lightning.text.english.english_transcript` does.

    Raises:
        InputError: A file cannot be read or is not UTF-8, no line has words, or the cache cannot be written.
    """
    options = json.dumps([FORMAT, [str(path) for path in files], skip_columns, normalize])
    signatures = [_signature(os.stat(path)) for path in files]
    parent = cache_folder() / "text" / _digest(options)
    index = parent / _digest(json.dumps(signatures))
    try:
        return Lines(index, files, signatures, normalize)
    except FileNotFoundError:
        pass
    except Exception as error:  # damaged, or of an older version: NumPy reads heads of arrays as Python
        rank_zero_info(f"The index of {files[0]} is made anew: {reason(error)}.")
        shutil.rmtree(index, ignore_errors=True)
    try:
        _make_index(index, files, skip_columns, normalize)
    except OSError as error:
        raise InputError(
            f"cannot write an index of {files[0]} into {parent}: {error}. Free some space (it takes {ROW.itemsize} "
            "bytes a line), or set the environment variable ASR_LIGHTNING_CACHE to a folder that can be written to"
        ) from error
    return Lines(index, files, signatures, normalize)


def _metadata(left_out: int, texts: str, rows: BufferedIOBase) -> dict[str, Any]:
    """Metadata that lie beside the rows, with a checksum of everything."""
    digest = hashlib.file_digest(rows, "sha256")
    digest.update(f"{left_out} {texts}".encode())
    return {"left_out": left_out, "texts": texts, "digest": digest.hexdigest()}


def _signature(status: os.stat_result) -> Signature:
    return status.st_size, status.st_mtime_ns


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode("utf-8", errors="surrogateescape")).hexdigest()[:16]


def _make_index(index: Path, files: list[Path], skip_columns: int, normalize: bool) -> None:
    """Write an index atomically, and remove those of earlier versions of the files."""
    index.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(index.parent, index.name)
    with tempfile.TemporaryDirectory(dir=index.parent, prefix=f"{unfinished_prefix(index)}.") as workplace:
        unfinished = Path(workplace) / "index"
        _write_index(unfinished, files, skip_columns, normalize)
        try:
            unfinished.rename(index)
        except OSError:
            if not index.exists():  # else another process was faster
                raise
    for old in index.parent.iterdir():
        if old != index and not old.name.startswith("."):
            shutil.rmtree(old, ignore_errors=True)  # a run that has it open keeps it


def _write_index(folder: Path, files: list[Path], skip_columns: int, normalize: bool) -> None:
    folder.mkdir()
    unsorted, left_out = folder.with_name("unsorted"), 0
    texts = hashlib.sha256()
    scanned = _scan(files, skip_columns, normalize, texts)
    with unsorted.open("wb") as file:
        while chunk := list(islice(scanned, ROWS_AT_ONCE)):
            rows = np.array(chunk, ROW)
            used = rows[rows["characters"] > 0]
            left_out += len(rows) - len(used)
            file.write(used.tobytes())
    if not unsorted.stat().st_size:
        names = ", ".join(map(str, files[:5])) + (f" and {len(files) - 5} more" if len(files) > 5 else "")
        raise InputError(
            f"expected sentences, found none in the {left_out} lines of {names}"
            + (f" behind the first {skip_columns} columns: is skip_columns right?" if skip_columns else "")
        )
    rows = np.memmap(unsorted, ROW, "r")
    order = np.argsort(np.iinfo("u4").max - rows["characters"], kind="stable")
    longest_first = np.lib.format.open_memmap(folder / "rows.npy", "w+", ROW, rows.shape)
    for start in range(0, len(order), ROWS_AT_ONCE):
        longest_first[start : start + ROWS_AT_ONCE] = rows[order[start : start + ROWS_AT_ONCE]]
    longest_first.flush()
    with (folder / "rows.npy").open("rb") as file:
        metadata = _metadata(left_out, texts.hexdigest()[:16], file)
    (folder / "about.json").write_text(json.dumps(metadata), "utf-8")


def _scan(
    files: list[Path], skip_columns: int, normalize: bool, texts: "hashlib._Hash"
) -> Iterator[tuple[int, int, int, int]]:
    """Give a row for every line of every file, and hash its text; one without words has no characters."""
    begin = 0  # of the line, in all files
    total = sum(os.stat(path).st_size for path in files)
    with tqdm(total=total, desc="Indexing text", unit="B", unit_scale=True, delay=1) as bar:
        for path in files:
            for number, line in enumerate(_read_lines(path), start=1):
                columns = (line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line).split(None, skip_columns)
                tail = columns[skip_columns] if len(columns) > skip_columns else b""  # to the end of the line
                content = tail.rstrip()
                try:
                    text = content.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise InputError(
                        f"{path}:{number}: expected UTF-8, found {error.object[error.start :][:10]!r}. Convert the "
                        "file, as with `iconv -f LATIN1 -t UTF-8`, or take out the line"
                    ) from error
                text = english_transcript(text) if normalize else text
                texts.update(text.encode() + b"\n")
                yield begin + len(line) - len(tail), number, len(content), len(text) if text.strip() else 0
                begin += len(line)
            bar.update(begin - bar.n)


def _read_lines(path: Path) -> Iterator[bytes]:
    try:
        with regular(path).open("rb") as file:
            yield from file
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
