"""Datasets of Hugging Face on disk, as `Dataset.save_to_disk` writes them: audio and transcripts in Arrow files.

```
ROOT/dataset_dict.json
     train/state.json, dataset_info.json, data-00000-of-00002.arrow, …
     test/…
```

Needs pyarrow: `pip install '.[huggingface]'`. Folders of audio with a `metadata.csv` are tables, see `table.py`.
"""

import functools
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from lhotse import MonoCut

from asr_lightning.audio import reading
from asr_lightning.audio.reading import Header
from asr_lightning.errors import InputError, reason, shown
from data_modules import dataset
from data_modules.layouts import role_of
from data_modules.listed import ALL, ListedDataModule, Listings
from data_modules.manifest import BadFile, Listing
from data_modules.table_reading import Table, channel_of, field_text, times_of
from data_modules.walk import find_file

OPEN_FILES = 64  # at most, of a process
ROLES = ("text", "speaker", "id", "channel")  # that columns may have beside the audio
TIMES = ("begin", "end", "duration")
MARK = "@"  # between a file, and the row and column in it


class ArrowDataModule(ListedDataModule):
    """Datasets of Hugging Face on disk: `data: {class_path: data_modules.arrow.ArrowDataModule, init_args: {root: …}}`.

    A subset is a folder below `root` with Arrow files, as `save_to_disk` makes one for each split; `root` may be such a
    folder itself, which is split, see `split`. Audio is in the files, a column of bytes and a path, or named there.

    Args:
        root: The folder that `save_to_disk` wrote.
        columns: Names of columns by what they hold, as of `TableDataModule`; those that are not given are recognized by
            their usual names, and the audio by its kind. Times of audio that is in the files are used if given here.
        **arguments: Those of `ListedDataModule` and `CorpusDataModule`.
    """

    def __init__(self, root: str, columns: dict[str, str] | None = None, **arguments: Any) -> None:
        super().__init__(root, **arguments)
        self.columns = dict(columns or {})
        roles = ("path", *ROLES, *TIMES)
        if unknown := sorted(set(self.columns) - set(roles)):
            raise InputError(f"columns must be of {', '.join(roles)}, got {', '.join(unknown)}")
        self.use_all_subsets()

    @property
    def layout(self) -> str:
        """A description of the files of such a corpus, for messages."""
        return "*.arrow in it, or in folders below it, as save_to_disk writes them"

    def options(self) -> tuple[object, ...]:
        """Options that the manifests depend on, beside the files."""
        return (*super().options(), self.columns)

    @functools.cached_property
    def files(self) -> dict[str, list[Path]]:
        """The Arrow files by the names of their subsets."""
        if not self.root.is_dir():
            return {}
        if splits := _splits(self.root):
            return splits
        return {
            path.name: _arrow_files(path)
            for path in sorted(self.root.iterdir())
            if path.is_dir() and _arrow_files(path)
        }

    def list_subsets(self) -> list[str]:
        """The names of the folders, or of the splits whose files lie in one."""
        return list(self.files)

    def list_utterances(self, subset: str) -> Listings:
        """The rows that can be used, in their order, and those that cannot."""
        listings, bad = list[Listing](), list[BadFile]()
        for path in self.files[subset]:
            for entry in self._read(path, subset, len(listings) + len(bad)):
                listings.append(entry) if isinstance(entry, Listing) else bad.append(entry)
        return listings, bad

    def _read(self, path: Path, subset: str, first: int) -> Iterator[Listing | BadFile]:
        try:
            table = _open(str(path))
        except ImportError:
            raise
        except Exception as error:  # of pyarrow
            raise InputError(f"{path} cannot be read: {reason(error)}. Copy it again.") from error
        columns = {**Table(path, table.column_names, [], "", True).guess(), **self.columns}
        if "path" not in self.columns:
            kinds = {name: str(table.schema.field(name).type) for name in table.column_names}
            audio = [name for name, kind in kinds.items() if kind.startswith("struct") and "bytes: binary" in kind]
            columns |= {"path": audio[0]} if audio else {}
        missing = [role for role in ("path", "text") if columns.get(role) not in table.column_names]
        if missing:
            free = [name for name in table.column_names if name not in columns.values()] or ["COLUMN"]
            raise InputError(
                f"{path} has columns {', '.join(table.column_names)}: name that of the {' and the '.join(missing)}, "
                f"as with --data.init_args.columns.{missing[0]} {free[0]}"
            )
        kind = str(table.schema.field(columns["path"]).type)
        in_file = kind.startswith("struct<") and "bytes: " in kind and "path: " in kind
        if not in_file and (kind.startswith(("struct", "list")) or "string" not in kind):
            raise InputError(
                f"{path}: expected audio as a struct of bytes and path, or as the paths of files, found "
                f"{shown(kind)} in the column {columns['path']}. Write it anew after "
                f"dataset.cast_column({columns['path']!r}, datasets.Audio(decode=False))"
            )
        used = [role for role in (*ROLES, *TIMES) if role in columns]
        if in_file:  # times of audio that was cut already are those of what it was cut from
            used = [role for role in used if role in (*ROLES, *self.columns)]
        role_columns = {role: table.column(columns[role]) for role in used}
        names = table.column(columns["path"]).combine_chunks()
        for row in range(table.num_rows):
            name = (names.field("path")[row].as_py() or "") if in_file else (names[row].as_py() or "")
            address = f"{path}{MARK}{row}:{columns['path']}"
            if not in_file or not names.is_valid()[row].as_py() or not names.field("bytes")[row].is_valid:
                audio_path = find_file(name, (self.root, path.parent)) if name else None
                if audio_path is None:
                    yield BadFile(address, "transcript without audio", f"neither bytes nor a file {shown(name)}")
                    continue
                address = audio_path
            stem = Path(name.replace("\\", "/")).stem or f"{subset}-{first + row:07d}"
            try:
                fields = {role: field_text(role, column[row].as_py()) for role, column in role_columns.items()}
                begin, end = times_of(fields)
                channel = channel_of(fields)
            except ValueError as error:
                yield BadFile(address, "malformed row", str(error))
                continue
            part = "" if begin == 0 and end is None else f"-{round(1000 * begin):08d}"
            id = fields.get("id") or f"{stem}{part}"
            yield Listing(id, address, fields["text"], fields.get("speaker", ""), begin, end, channel)

    def file_of(self, path: str) -> str:
        """The file that an utterance's path leads to."""
        return _parse(path)[0] if _is_arrow_cell(path) else path

    @staticmethod
    def read_header(path: str) -> Header:
        """Read the header of an audio file in an Arrow file, or of one beside it."""
        return reading.read_header(io.BytesIO(_bytes(path)) if _is_arrow_cell(path) else path)

    @staticmethod
    def read_audio(cut: MonoCut) -> np.ndarray:
        """Read the audio of a row: (S,) in [-1, 1], at its own sample rate.

        Raises:
            ValueError: It cannot be decoded, or is not as long as the manifest says.
        """
        path = str(cut.recording.sources[0].source)
        return dataset.decode_audio(cut, io.BytesIO(_bytes(path)) if _is_arrow_cell(path) else path)


def _splits(folder: Path) -> dict[str, list[Path]]:
    """The Arrow files directly in a folder: of one dataset, or of the splits that `load_dataset` keeps side by side."""
    paths = _arrow_files(folder)
    splits: dict[str, list[Path]] = {}
    for path in paths:
        name = re.sub(r"-\d{5}-of-\d{5}$", "", path.stem).rpartition("-")[2]
        splits.setdefault(name, []).append(path)
    if len(splits) > 1 and not (folder / "state.json").is_file() and any(map(role_of, splits)):
        return splits
    return {folder.name if role_of(folder.name) else ALL: paths} if paths else {}


def _arrow_files(folder: Path) -> list[Path]:
    """The Arrow files of a dataset in their order.

    Raises:
        InputError: It was saved with a selection of its rows.
    """
    try:
        state = json.loads((folder / "state.json").read_text("utf-8"))
        paths = [folder / str(entry["filename"]) for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return sorted(folder.glob("*.arrow"))
    if state.get("_indices_data_files"):
        raise InputError(
            f"{folder}/state.json: expected all rows of the Arrow files, found a selection of them. Write the dataset "
            "anew, with dataset.flatten_indices().save_to_disk(FOLDER)"
        )
    return paths or sorted(folder.glob("*.arrow"))


def _is_arrow_cell(path: str) -> bool:
    return ".arrow@" in path


def _parse(path: str) -> tuple[str, int, str]:
    """The file, the row and the column of `FILE.arrow@ROW:COLUMN`."""
    file, _, cell = path.rpartition(f".arrow{MARK}")
    row, _, column = cell.partition(":")
    return f"{file}.arrow", int(row), column


def _bytes(path: str) -> bytes:
    file, row, column = _parse(path)
    table = _open(file)
    content: bytes | None = (table.column(column)[row].as_py() or {}).get("bytes")
    if content is None:
        raise ValueError("there is no audio any more")
    return content


@functools.lru_cache(OPEN_FILES)
def _open(path: str) -> Any:
    """Map an Arrow file into memory: return its table, of which only the cells in use are read from disk."""
    try:
        import pyarrow
    except ImportError as error:
        raise InputError(f"{path} needs pyarrow: pip install '.[huggingface]'") from error
    source = pyarrow.memory_map(path)
    try:
        return pyarrow.ipc.open_stream(source).read_all()
    except pyarrow.ArrowInvalid:  # the other of Arrow's two formats
        return pyarrow.ipc.open_file(source).read_all()
