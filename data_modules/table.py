"""Corpora that are a table: CSV, TSV or JSON lines with an audio file and its transcript in every row.

```
ROOT/train.tsv, dev.tsv, test.tsv       a table for each subset, as in Common Voice; or
ROOT/train/metadata.csv                 one in a folder for each subset, as on the Hugging Face hub; or
ROOT/anything.csv                       one table, perhaps with a column that names the subset
```

Columns with usual names are recognized: path, text, speaker, subset, begin and end in seconds (or duration), channel
from 0, id. Common Voice (`path`, `sentence`, `client_id`), audio folders (`file_name`, `transcription`), manifests of
NeMo (`audio_filepath`, `text`, `offset`, `duration`) and LJSpeech (no header, columns parted by `|`) are such.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asr_lightning.errors import InputError, shown
from data_modules.layouts import role_of, table_name
from data_modules.listed import ALL, ListedDataModule, Listings
from data_modules.manifest import BadFile, Listing
from data_modules.table_reading import (
    AUDIO_SUFFIXES,
    NAMES,
    Table,
    channel_of,
    field_text,
    find_tables,
    look,
    read_table_rows,
    times_of,
)  # fmt: skip
from data_modules.walk import find_file

FOLDERS = ("clips", "wavs", "wav", "audio", "audios", "data")  # in which audio may lie, beside its table


class TableDataModule(ListedDataModule):
    """Utterances that a table lists: `data: {class_path: data_modules.table.TableDataModule, init_args: {root: …}}`.

    A subset is a table `<subset>.csv`, `.tsv`, `.jsonl` or `.json` in `root`, a `metadata.csv` in a folder of that
    name, or what the column `subset` of a single table says. One table without such a column is split, see `split`.
    Paths are absolute, or begin at the table, in a folder beside it as `clips` or `wavs`, or at `root`; the suffix may
    be missing. Utterances are called by their column `id`, or else by their files.

    Args:
        root: The folder of the tables, or a table itself.
        table: The only table to read, from `root` on; default all with a path and a text.
        columns: Names of columns by what they hold: path, text, speaker, subset, begin, end, duration, channel, id;
            those that are not given are recognized by their usual names. In a table without a header, columns are
            called by their numbers from 0, as `{path: 0, text: 2}`.
        audio: The folder that paths begin at, if it is another. Of paths of another machine, the end is looked for.
        encoding: Of the table.
        **arguments: Those of `ListedDataModule` and `CorpusDataModule`.
    """

    def __init__(
        self,
        root: str,
        table: str | None = None,
        columns: dict[str, str | int] | None = None,
        audio: str | None = None,
        encoding: str = "utf-8",
        **arguments: Any,
    ) -> None:
        super().__init__(root, **arguments)
        self.table = table
        self.columns = {role: str(column) for role, column in (columns or {}).items()}
        self.audio = None if audio is None else Path(audio).expanduser().absolute()
        self.encoding = encoding
        if unknown := sorted(set(self.columns) - set(NAMES)):
            raise InputError(f"columns must be of {', '.join(NAMES)}, got {', '.join(unknown)}")
        try:
            "".encode(encoding)
        except LookupError as error:
            raise InputError(f"encoding: {error}; expected a name as utf-8, cp949 or latin-1") from error
        self.use_all_subsets()

    @property
    def layout(self) -> str:
        """A description of the files of such a corpus, for messages."""
        return "a table (.csv, .tsv, .jsonl) with columns for the audio file and its transcript"

    def options(self) -> tuple[object, ...]:
        """Options that the manifests depend on, beside the files."""
        return (*super().options(), self.table, self.columns, self.audio, self.encoding)

    @functools.cached_property
    def tables(self) -> dict[str, tuple[Table, dict[str, str]]]:
        """The tables by name, each with its columns by what they hold.

        Raises:
            InputError: A table or column that was named is not there.
        """
        if self.table is not None and not self.root.is_file():
            paths = [self.root / self.table]
            if not paths[0].is_file():
                raise InputError(f"There is no table {paths[0]}: set --data.init_args.table to one that is there.")
        else:
            paths = [self.root] if self.root.is_file() else find_tables(self.root)
        tables: dict[str, tuple[Table, dict[str, str]]] = {}
        lacking: list[str] = []
        for path in paths:
            try:
                table = look(path, self.encoding)
            except OSError as error:
                if len(paths) == 1:
                    raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
                continue
            if table is None or (path.suffix == ".txt" and tables):
                continue
            missing = [column for column in self.columns.values() if column not in table.columns]
            if missing:
                lacking.append(
                    f"{path} has no column {', '.join(missing)}: expected names among its columns "
                    f"{', '.join(shown(column) for column in table.columns)}"
                )
            columns = self._columns(table)
            if not missing and {"path", "text"} <= columns.keys():
                if twice := [column for column in columns.values() if table.columns.count(column) > 1]:
                    raise InputError(
                        f"{path}: expected one column {twice[0]}, found {table.columns.count(twice[0])}. Rename the "
                        "others, or name another column with --data.init_args.columns, or another table with "
                        "--data.init_args.table"
                    )
                tables.setdefault(table_name(path, self.root), (table, columns))
        if lacking and not tables:
            raise InputError("\n".join(lacking[:5]))
        return tables

    def _columns(self, table: Table) -> dict[str, str]:
        """The columns of a table by what they hold: as given, as usually named, or by what the first row holds."""
        columns = {**table.guess(), **self.columns}
        if not table.header and "path" not in columns:
            files = [
                str(number) for number, field in enumerate(table.first) if self._find(str(field), table) is not None
            ]
            if files:
                columns["path"] = files[0]
        if not table.header and "text" not in columns and columns.get("path") == "0":
            if len(table.columns) == 2 or table.delimiter == "|":  # LJSpeech's last column is the normalized one
                columns["text"] = table.columns[-1]
        return columns

    def list_subsets(self) -> list[str]:
        """The tables' names, or the values in the column of subsets of a single one."""
        if len(self.tables) != 1:
            return list(self.tables)
        [(name, (_, columns))] = self.tables.items()
        if "subset" not in columns:
            return [name] if role_of(name) else [ALL]
        return list(self._by_subset)

    @functools.cached_property
    def _by_subset(self) -> dict[str, Listings]:
        """The utterances of a single table by the values in its column of subsets."""
        [(table, columns)] = self.tables.values()
        parts: dict[str, Listings] = {}
        for subset, entry in self._read(table, columns):
            part = parts.setdefault(subset or "unnamed", ([], []))
            part[0].append(entry) if isinstance(entry, Listing) else part[1].append(entry)
        return parts or {ALL: ([], [])}

    def list_utterances(self, subset: str) -> Listings:
        """The rows of a subset that can be used, and those that cannot."""
        if len(self.tables) == 1 and "subset" in next(iter(self.tables.values()))[1]:
            return self._by_subset[subset]
        table, columns = next(iter(self.tables.values())) if subset == ALL else self.tables[subset]
        entries = [entry for _, entry in self._read(table, columns)]
        listings = [entry for entry in entries if isinstance(entry, Listing)]
        return listings, [entry for entry in entries if isinstance(entry, BadFile)]

    def _read(self, table: Table, columns: dict[str, str]) -> Iterator[tuple[str, Listing | BadFile]]:
        """Give every row with its subset."""
        for line, row in read_table_rows(table, self.encoding):
            location = f"{table.path}:{line}"
            if isinstance(row, str):
                yield "", BadFile(location, "malformed row", row)
                continue
            try:
                fields = {role: field_text(role, row.get(column)) for role, column in columns.items()}
            except ValueError as error:
                yield "", BadFile(location, "malformed row", str(error))
                continue
            yield fields.get("subset", ""), self._listing(fields, table, location)

    def _listing(self, fields: dict[str, str], table: Table, location: str) -> Listing | BadFile:
        if any("\ud800" <= character <= "\udfff" or character == "\ufffd" for character in fields["text"]):
            detail = f"{fields['path']}; another encoding is set by --data.init_args.encoding"
            return BadFile(location, f"transcript not {self.encoding.upper()}", detail)
        if not fields["path"]:
            return BadFile(location, "malformed row", "the column of the path is empty")
        path = self._find(fields["path"], table)
        if path is None:
            folders = ", ".join(str(base) for base in self._bases(table)[:3])
            advice = "" if self.audio else "; another is set by --data.init_args.audio"
            detail = f"no {shown(fields['path'])} in {folders}{advice}"
            return BadFile(location, "transcript without audio", detail)
        try:
            begin, end = times_of(fields)
            channel = channel_of(fields)
        except ValueError as error:
            return BadFile(location, "malformed row", str(error))
        stem = Path(path).stem
        part = f"-{round(1000 * begin):08d}-{round(1000 * end):08d}" if begin and end is not None else ""
        part += f"-{channel}" if channel is not None else ""
        id = fields.get("id") or f"{stem}{part}"
        return Listing(id, path, fields["text"], fields.get("speaker", ""), begin, end, channel)

    def _bases(self, table: Table) -> list[Path]:
        parent = table.path.parent
        bases = [parent, *(parent / folder for folder in FOLDERS)]
        bases += (
            [self.root, *(self.root / folder for folder in FOLDERS)] if self.root not in (parent, table.path) else []
        )
        return bases if self.audio is None else [self.audio]

    def _find(self, name: str, table: Table) -> str | None:
        """The audio file of a row; None where there is none."""
        suffixes = ("", *AUDIO_SUFFIXES) if not name.lower().endswith(AUDIO_SUFFIXES) else ("",)
        path = find_file(name, self._bases(table), suffixes)
        if path is None and self.audio is not None:  # of another machine: its end may be below the folder
            parts = name.replace("\\", "/").strip("/").split("/")
            ends = ("/".join(parts[first:]) for first in range(1, len(parts)))
            path = next(filter(None, (find_file(end, [self.audio], suffixes) for end in ends)), None)
        return path
