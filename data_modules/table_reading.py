"""Tables of utterances: CSV, TSV, columns parted by `|`, and JSON lines; which column holds what."""

import csv
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asr_lightning.errors import InputError, reason
from asr_lightning.files import regular

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".oga", ".aiff", ".aif", ".au", ".w64", ".sph")
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".txt")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
DELIMITERS = ("\t", "|", ";", ",")
HEAD = 1 << 20  # bytes that are looked at to see what a table is
NAMES = {  # of columns, the likeliest first, in small letters
    "path": "path audio_filepath audio_path audio_file file_name filename wav_filename wav_path wav audio file".split(),
    "text": "text sentence transcription transcript normalized_text raw_text label words".split(),
    "speaker": "speaker speaker_id client_id spk spk_id speakerid talker reader user_id".split(),
    "subset": "subset split partition set fold".split(),
    "begin": "begin start offset start_time begin_time start_seconds".split(),
    "end": "end end_time stop stop_time end_seconds".split(),
    "duration": "duration length_seconds seconds".split(),
    "channel": "channel".split(),
    "id": "id utt_id utterance_id utterance utt segment_id".split(),
}


@dataclass(frozen=True)
class Table:
    """Columns and layout of a table, by its beginning.

    Attributes:
        path: The file.
        columns: Their names; their numbers from 0 where the table has no header.
        first: The first row.
        delimiter: Between columns; empty for JSON.
        header: Whether the first line names the columns.
    """

    path: Path
    columns: list[str]
    first: list[Any]
    delimiter: str
    header: bool

    def guess(self) -> dict[str, str]:
        """The column of each role that has a usual name."""
        by_name = {column.strip().lower().replace(" ", "_").replace("-", "_"): column for column in self.columns}
        guessed = {
            role: by_name[next(name for name in names if name in by_name)]
            for role, names in NAMES.items()
            if any(name in by_name for name in names)
        }
        return guessed


def decode(content: bytes, encoding: str) -> str:
    """Decode a table; bytes that are not of the encoding become lone surrogates; UTF-16 is recognized by its mark."""
    if encoding.lower().replace("-", "") == "utf8" and content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", errors="replace")
    return content.decode(encoding, errors="surrogateescape").removeprefix("\ufeff")


def look(path: Path, encoding: str = "utf-8") -> Table | None:
    """Look at the beginning of a file; None where it is no table of two columns or more.

    Raises:
        OSError: It cannot be read.
    """
    with regular(path).open("rb") as file:
        head = decode(file.read(HEAD), encoding)
    if path.suffix.lower() in JSON_SUFFIXES:
        try:
            row = next(_json_rows(head, path, partial=True), None)
        except (ValueError, InputError):
            return None
        return None if row is None or len(row[1]) < 2 else Table(path, list(row[1]), list(row[1].values()), "", True)
    lines = [line for line in head.splitlines() if line.strip()][:2]
    if not lines:
        return None
    delimiter = "\t" if path.suffix.lower() == ".tsv" and "\t" in lines[0] else _delimiter(lines[0])
    if not delimiter:
        return None
    rows = [fields for _, fields in _split(head if delimiter == "," else "\n".join(lines), delimiter, 2)]
    columns = [column.strip() for column in rows[0]]
    table = Table(path, columns, rows[1] if len(rows) > 1 else [], delimiter, True)
    if set(table.guess()) & {"path", "text", "id"} and len(set(columns)) == len(columns):
        return table
    if any(_is_audio_name(field) for field in rows[0]) or delimiter == "|":
        return Table(path, [str(number) for number in range(len(rows[0]))], rows[0], delimiter, False)
    return table


def _is_audio_name(field: str) -> bool:
    return field.strip().lower().endswith(AUDIO_SUFFIXES)


def _delimiter(line: str) -> str:
    """Return the separator that gives most columns; empty where none does."""
    counts = {delimiter: len(next(iter(_split(line, delimiter, 1)))[1]) for delimiter in DELIMITERS}
    best = max(DELIMITERS, key=lambda delimiter: counts[delimiter])
    return best if counts[best] > 1 else ""


def read_table_rows(table: Table, encoding: str = "utf-8") -> Iterator[tuple[int, dict[str, Any]]]:
    """Give the line number and the fields by column of every row; lines without anything are passed over.

    Raises:
        InputError: The file cannot be read, or is damaged.
    """
    try:
        text = decode(regular(table.path).read_bytes(), encoding)
    except OSError as error:
        raise InputError(f"{table.path} cannot be read: {error.strerror or error}") from error
    if not table.delimiter:
        yield from _json_rows(text, table.path)
        return
    rows = _split(text, table.delimiter)
    if table.header:
        next(rows, None)
    try:
        for line, fields in rows:
            if fields and any(field.strip() for field in fields):
                yield (
                    line,
                    dict(zip(table.columns, fields, strict=False))
                    | ({"": fields} if len(fields) != len(table.columns) else {}),
                )
    except csv.Error as error:
        raise InputError(f"{table.path} cannot be read as columns parted by {table.delimiter!r}: {error}") from error


def _split(text: str, delimiter: str, limit: int | None = None) -> Iterator[tuple[int, list[str]]]:
    """Split lines into fields, with the number of the line that a row ends with.

    Commas and semicolons separate fields of spreadsheets: quoted ones may hold delimiters and ends of lines. Tabs and
    bars separate plain lines, as of Common Voice: quotation marks belong to the text, but for those around a field.
    """
    if delimiter in ",;":
        csv.field_size_limit(1 << 30)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        for number, fields in enumerate(reader):
            if limit is not None and number >= limit:
                return
            yield reader.line_num, fields
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if limit is not None and number > limit:
            return
        yield number, [_unquote(field) for field in line.rstrip("\r").split(delimiter)] if line.strip() else []


def _unquote(field: str) -> str:
    inner = field[1:-1]
    quoted = len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if quoted else field


def _json_rows(text: str, path: Path, partial: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Give the line number and the object of every line, or of every entry of a list."""
    if text.lstrip()[:1] == "[":
        if partial:  # the first object of what may be cut off
            row, _ = json.JSONDecoder().raw_decode(text.lstrip()[1:].lstrip())
            rows = [row]
        else:
            try:
                rows = json.loads(text)
            except ValueError as error:
                raise InputError(f"{path} is no JSON: {reason(error)}") from error
        yield from ((number, row) for number, row in enumerate(rows, start=1) if isinstance(row, dict))
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("expected an object, {…}")
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number}: expected a line of JSON: {reason(error)}") from error
        yield number, row


def find_tables(root: Path) -> list[Path]:
    """The files that may be tables: directly in a folder, and `metadata.csv` or `.jsonl` in the folders below it."""
    try:
        names = sorted(os.listdir(root))
    except OSError:
        return []
    tables = [root / name for name in names if name.lower().endswith(TABLE_SUFFIXES) and not name.startswith(".")]
    nested = [root / name / f"metadata.{kind}" for name in names for kind in ("csv", "jsonl") if name[:1] != "."]
    return [path for path in [*tables, *nested] if path.is_file()]
