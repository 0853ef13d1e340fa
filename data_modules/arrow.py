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
import os
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
from data_modules.table_reading import NAMES, Table

OPEN_FILES = 64  # at most, of a process
MARK = "@"  # between a file, and the row and column in it


class ArrowDataModule(ListedDataModule):
    """Datasets of Hugging Face on disk: `data: {class_path: data_modules.arrow.ArrowDataModule, init_args: {root: …}}`.

    A subset is a folder below `root` with Arrow files, as `save_to_disk` makes one for each split; `root` may be such a
    folder itself, which is split, see `split`. Audio is in the files, a column of bytes and a path, or named there.

    Args:
        root: The folder that `save_to_disk` wrote.
        columns: Names of columns by what they hold, as of `TableDataModule`; those that are not given are recognized by
            their usual names, and the audio by its kind.
        **arguments: Those of `ListedDataModule` and `CorpusDataModule`.
    """

    def __init__(self, root: str, columns: dict[str, str] | None = None, **arguments: Any) -> None:
        super().__init__(root, **arguments)
        self.columns = dict(columns or {})
        if unknown := sorted(set(self.columns) - set(NAMES)):
            raise InputError(f"columns must be of {', '.join(NAMES)}, got {', '.join(unknown)}")
        self.use_all_subsets()

    @property
    def layout(self) -> str:
        """A description of the files of such a corpus, for messages."""
        return "*.arrow in it, or in folders below it, as save_to_disk writes them"

    def options(self) -> tuple[object, ...]:
        """Options that the manifests depend on, beside the files."""
        return (*super().options(), self.columns)

    @functools.cached_property
    def folders(self) -> dict[str, Path]:
        """The folders with Arrow files by the names of their subsets."""
        if not self.root.is_dir():
            return {}
        if any(self.root.glob("*.arrow")):
            return {self.root.name if role_of(self.root.name) else ALL: self.root}
        return {path.name: path for path in sorted(self.root.iterdir()) if path.is_dir() and any(path.glob("*.arrow"))}

    def list_subsets(self) -> list[str]:
        """The names of the folders."""
        return list(self.folders)

    def list_utterances(self, subset: str) -> Listings:
        """The rows that can be used, in their order, and those that cannot."""
        listings, bad = list[Listing](), list[BadFile]()
        for path in _files(self.folders[subset]):
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
            raise InputError(
                f"{path} has columns {', '.join(table.column_names)}: name that of the {' and the '.join(missing)}, "
                f"as with --data.init_args.columns.{missing[0]} {table.column_names[0]}"
            )
        role_columns = {role: table.column(columns[role]) for role in ("text", "speaker", "id") if role in columns}
        in_file = "struct" in str(table.schema.field(columns["path"]).type)
        names = table.column(columns["path"]).combine_chunks()
        for row in range(table.num_rows):
            fields = {role: column[row].as_py() for role, column in role_columns.items()}
            name = (names.field("path")[row].as_py() or "") if in_file else (names[row].as_py() or "")
            address = f"{path}{MARK}{row}:{columns['path']}"
            if not in_file or not names.field("bytes")[row].is_valid:
                audio_path = self.root / name
                if not name or not os.path.isfile(audio_path):
                    yield BadFile(address, "transcript without audio", f"neither bytes nor a file {shown(name)}")
                    continue
                address = os.path.normpath(audio_path)
            stem = Path(name.replace("\\", "/")).stem or f"{subset}-{first + row:07d}"
            yield Listing(str(fields.get("id") or stem), address, _text(fields["text"]), _text(fields.get("speaker")))

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


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _files(folder: Path) -> list[Path]:
    """The Arrow files of a folder in their order."""
    try:
        state = json.loads((folder / "state.json").read_text("utf-8"))
        paths = [folder / str(entry["filename"]) for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError):
        paths = []
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
    content: bytes | None = table.column(column)[row].as_py()["bytes"]
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
