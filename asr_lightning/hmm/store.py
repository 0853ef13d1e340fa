"""Alignments of a corpus in one file: an SQLite database, read utterance by utterance."""

import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from asr_lightning.errors import InputError, reason
from asr_lightning.files import replacing


class AlignmentStore:
    """The transition ids of utterances' frames, by the utterances' names.

    The table `alignments` has the columns `id` (text) and `transition_ids` (int32, little-endian, compressed by zlib).

    Args:
        path: The file.

    Raises:
        InputError: It is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connections: dict[int, sqlite3.Connection] = {}  # by process: none may cross a fork
        self._query("select count(*) from alignments")

    def __len__(self) -> int:
        return int(self._query("select count(*) from alignments")[0][0])

    def get(self, id: str) -> np.ndarray | None:
        """Return the transition ids (T,) of an utterance, if it was aligned."""
        rows = self._query("select transition_ids from alignments where id = ?", id)
        return None if not rows else self._unpack(id, rows[0][0])

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        """Give all utterances in the order of their names."""
        last = ""
        while rows := self._query(
            "select id, transition_ids from alignments where id > ? order by id limit 1000", last
        ):
            for id, packed in rows:
                if not isinstance(id, str) or id <= last:  # in a damaged file, rows can lead in a circle
                    raise self._error("its rows are not sorted by name")
                yield id, self._unpack(id, packed)
                last = id

    def _query(self, text: str, *values: str) -> list[tuple]:
        try:
            if os.getpid() not in self._connections:
                self._connections[os.getpid()] = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)
            return self._connections[os.getpid()].execute(text, values).fetchall()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise self._error(error) from error

    def _unpack(self, id: str, packed: bytes) -> np.ndarray:
        try:
            return np.frombuffer(zlib.decompress(packed), dtype="<i4").astype(np.int64)
        except (zlib.error, ValueError, TypeError) as error:
            raise self._error(f"{id}: {reason(error)}") from error

    def _error(self, why: object) -> InputError:
        return InputError(f"cannot read alignments from {self.path} ({why}); make them with `asr hybrid`")


def write_alignments(path: Path, alignments: Iterable[tuple[str, Iterable[int]]]) -> None:
    """Write the transition ids of utterances; the file is replaced when complete."""
    with replacing(path) as half:
        half.unlink(missing_ok=True)
        with closing(sqlite3.connect(half)) as connection, connection:
            connection.execute("create table alignments (id text primary key, transition_ids blob) without rowid")
            connection.executemany(
                "insert or replace into alignments values (?, ?)",
                ((id, zlib.compress(np.array(list(ids), dtype="<i4").tobytes())) for id, ids in alignments),
            )
