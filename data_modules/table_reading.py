"""Tables of utterances: CSV, TSV, columns parted by `|`, and JSON lines; which column holds what."""

import csv
import io
import itertools
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asr_lightning.errors import InputError, reason, shown
from asr_lightning.files import read_number, regular

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".oga", ".aiff", ".aif", ".au", ".w64", ".sph")
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".txt")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
DELIMITERS = ("\t", "|", ";", ",")
QUOTING = (",", ";")  # delimiters of tables whose fields may be quoted
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


def decode(content: bytes, encoding: str = "utf-8") -> str:
    """Decode a list of a corpus; bytes that are not of the encoding become lone surrogates, or U+FFFD.

    In place of UTF-8, UTF-16 is recognized by its mark or by the zero byte of its first character.
    """
    if encoding.lower().replace("-", "") in ("utf8", "utf8sig"):
        if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
            encoding = "utf-16"
        elif 0 in content[:2]:
            encoding = "utf-16-le" if content[0] else "utf-16-be"
    try:
        text = content.decode(encoding, errors="surrogateescape")
    except UnicodeError:  # of UTF-16 that is cut off
        text = content.decode(encoding, errors="replace")
    return text.removeprefix("\ufeff")


def look(path: Path, encoding: str = "utf-8") -> Table | None:
    """Look at the beginning of a file; None where it is no table of two columns or more.

    Raises:
        OSError: It cannot be read.
    """
    with regular(path).open("rb") as file:
        head = decode(file.read(HEAD), encoding)
    if "\0" in head.partition("\n")[0]:  # audio, or another encoding
        return None
    if path.suffix.lower() in JSON_SUFFIXES:
        try:
            row = next((row for _, row in _json_rows(head, path, partial=True) if isinstance(row, dict)), None)
        except (ValueError, InputError):
            return None
        if row is None or len(row) < 2 or all(isinstance(value, list | dict) for value in row.values()):
            return None
        return Table(path, list(row), list(row.values()), "", True)
    lines = [line for line in head.splitlines() if line.strip()][:2]
    if not lines:
        return None
    delimiter = "\t" if path.suffix.lower() == ".tsv" and "\t" in lines[0] else _delimiter(lines[0])
    if not delimiter:
        return None
    content = head if delimiter == "," else "\n".join(lines)
    rows = [fields for _, fields in _split(content, delimiter, 2) if isinstance(fields, list)]
    if not rows:
        return None
    columns = [column.strip() or str(number) for number, column in enumerate(rows[0])]  # pandas leaves the first empty
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
    rows = {delimiter: next(iter(_split(line, delimiter, 1)))[1] for delimiter in DELIMITERS}
    counts = {delimiter: len(row) if isinstance(row, list) else 0 for delimiter, row in rows.items()}
    best = max(DELIMITERS, key=lambda delimiter: counts[delimiter])
    return best if counts[best] > 1 else ""


def read_table_rows(table: Table, encoding: str = "utf-8") -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Give the line number and the fields by column of every row, or why it cannot be used; empty lines are no rows.

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
    quoted = table.delimiter in QUOTING
    for line, fields in rows:
        if isinstance(fields, str):
            yield line, fields
            continue
        while len(fields) > len(table.columns) and not fields[-1].strip():  # as lines of spreadsheets end
            fields.pop()
        if len(fields) == len(table.columns):
            yield line, dict(zip(table.columns, fields, strict=True))
        elif any(field.strip() for field in fields):
            advice = f"texts with {table.delimiter!r} need quotation marks" if quoted else "none may be in a text"
            yield (
                line,
                (
                    f"expected {len(table.columns)} columns parted by {table.delimiter!r}, found {len(fields)}"
                    + (f"; {advice}" if len(fields) > len(table.columns) else "")
                ),
            )


def _split(text: str, delimiter: str, limit: int | None = None) -> Iterator[tuple[int, list[str] | str]]:
    """Split lines into fields, with the number of the line that a row ends with; why not, where they cannot be split.

    Commas and semicolons separate fields of spreadsheets: quoted ones may hold delimiters and ends of lines. Tabs and
    bars separate plain lines, as of Common Voice: quotation marks belong to the text, but for those around a field.
    """
    if delimiter in QUOTING:
        csv.field_size_limit(1 << 30)
        # strict: else a quotation mark that is not closed takes the following rows for its text
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        for _ in itertools.count() if limit is None else range(limit):
            first = reader.line_num + 1
            try:
                fields: list[str] | str = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                lines = f"line {first}" if first == reader.line_num else f"lines {first} to {reader.line_num}"
                fields = f"quotation marks of {lines}: {error}; those of a text are doubled, in a quoted field"
            if fields:
                yield reader.line_num, fields
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if limit is not None and number > limit:
            return
        if line.strip():
            yield number, [_unquote(field) for field in line.rstrip("\r").split(delimiter)]


def _unquote(field: str) -> str:
    inner = field[1:-1]
    quoted = len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if quoted else field


def _json_rows(text: str, path: Path, partial: bool = False) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Give the line number and the object of every line, or of every entry of a list; or why it is none."""
    expected = "expected an object of JSON, {…}"
    if text.lstrip()[:1] == "[":
        if partial:  # the first object of what may be cut off
            row, _ = json.JSONDecoder().raw_decode(text.lstrip()[1:].lstrip())
            rows = [row]
        else:
            try:
                rows = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path} is no JSON: {reason(error)}. Write or copy it again.") from error
        for number, row in enumerate(rows, start=1):
            yield number, row if isinstance(row, dict) else f"{expected}, found {shown(repr(row))}"
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, f"{expected}: {reason(error)}"
            continue
        yield number, row if isinstance(row, dict) else f"{expected}, found {shown(repr(row))}"


def field_text(role: str, value: Any) -> str:
    """A field as text; of an object in the column of paths, its path.

    Raises:
        ValueError: It is no text and no number.
    """
    if role == "path" and isinstance(value, dict):
        value = value.get("path")
    if isinstance(value, list | dict | bool):
        raise ValueError(f"expected a text or a number for the {role}, found {shown(repr(value))}")
    return "" if value is None or value != value else str(value).strip()  # NaN, as pandas writes what is missing


def channel_of(fields: dict[str, str]) -> int | None:
    """The channel of an utterance; None for the mean of all.

    Raises:
        ValueError: It is no number from 0 on.
    """
    if not (text := fields.get("channel")):
        return None
    try:
        channel = read_number(text)  # numbers beside missing ones are floats, for pandas
    except ValueError:
        channel = -1.0
    if channel < 0 or not channel.is_integer():
        raise ValueError(f"expected a channel, counted from 0, found {shown(text)!r}")
    return int(channel)


def times_of(fields: dict[str, str]) -> tuple[float, float | None]:
    """The second an utterance begins with, and the one that it ends before; None for the end of its file.

    Raises:
        ValueError: They are no numbers.
    """
    numbers: dict[str, float] = {}
    for role in ("begin", "end", "duration"):
        if fields.get(role):
            try:
                numbers[role] = read_number(fields[role])
            except ValueError:
                raise ValueError(f"expected seconds, found {role} {shown(fields[role])!r}") from None
            if not 0 <= numbers[role] < math.inf:
                raise ValueError(f"expected seconds from 0 on, found {role} {fields[role]}")
    begin = numbers.get("begin", 0.0)
    if "end" in numbers:
        return begin, numbers["end"]
    return begin, begin + numbers["duration"] if "begin" in numbers and "duration" in numbers else None


def find_tables(root: Path) -> list[Path]:
    """The files that may be tables: directly in a folder, and `metadata.csv` or `.jsonl` in the folders below it."""
    try:
        names = sorted(os.listdir(root))
    except OSError:
        return []
    tables = [root / name for name in names if name.lower().endswith(TABLE_SUFFIXES) and not name.startswith(".")]
    nested = [root / name / f"metadata.{kind}" for name in names for kind in ("csv", "jsonl") if name[:1] != "."]
    return [path for path in [*tables, *nested] if path.is_file()]
