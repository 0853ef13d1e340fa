"""Logged names in the files of offline W&B runs, read without W&B's server."""

import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from wandb.proto.wandb_internal_pb2 import HistoryRecord, Record  # type: ignore[attr-defined] # made when imported

from asr_lightning.errors import InputError, reason

MAGIC = b":W&B"
START = 7  # bytes before the first record: the magic, two of a checksum, one of a version
BLOCK = 32768  # bytes; no header of a part crosses from one to the next
HEADER = struct.Struct("<IHB")  # of a part: checksum, length, and which part of a record it is
WHOLE, FIRST, LAST = 1, 2, 4


@dataclass(frozen=True)
class LoggedRun:
    """Content of the file of one run; a training has a file for each start.

    Attributes:
        path: The file.
        project, group, name, job_type: As W&B will show the run; empty where not given.
        logged: From each name to its kind: `number`, or what W&B calls the type of a picture or table.
    """

    path: Path
    project: str
    group: str
    name: str
    job_type: str
    logged: dict[str, str]


def find_wandb_runs(folders: Iterable[Path]) -> list[LoggedRun]:
    """Read the runs that W&B has written below some folders, those of each folder from the oldest.

    Raises:
        InputError: There is none below one of them, or one cannot be read.
    """
    paths: dict[Path, None] = {}
    for folder in folders:
        files = sorted(folder.rglob("run-*.wandb"), key=lambda path: path.parent.name)
        if not files:
            raise InputError(
                f"expected files of W&B, as wandb/offline-run-…/run-….wandb, below {folder.absolute()}, got none. Is "
                "this the folder of runs that were trained?"
            )
        paths |= dict.fromkeys(path.resolve() for path in files)
    return [read_wandb_run(path) for path in paths]


def read_wandb_run(path: Path) -> LoggedRun:
    """Read a run's file; one that is still written, or was broken off, up to its end.

    Raises:
        InputError: It is no file of W&B's, or ends before the record that names the run.
    """
    run = None
    logged: dict[str, str] = {}
    try:
        for record in records(path.read_bytes()):
            if run is None and record.HasField("run"):
                run = record.run
            logged |= _kinds(record.history)
    except (DecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: expected a run's file of W&B, got one that is damaged: {reason(error)}") from error
    if run is None:
        raise InputError(
            f"{path}: expected a run's file of W&B, got one without a run's name. If the run has just begun, "
            "W&B has not written it to disk yet: wait, or give other folders"
        )
    return LoggedRun(path, run.project, run.run_group, run.display_name, run.job_type, logged)


def records(content: bytes) -> Iterator[Record]:
    """Yield the records of a file in the log format of LevelDB, up to its end."""
    offset, parts = START, b""
    while content.startswith(MAGIC) and offset + HEADER.size <= len(content):
        remaining = BLOCK - offset % BLOCK
        if remaining < HEADER.size:
            offset += remaining
            continue
        _, length, kind = HEADER.unpack_from(content, offset)
        offset += HEADER.size + length
        if offset > len(content):
            return  # not written to its end
        part = content[offset - length : offset]
        parts = part if kind in (WHOLE, FIRST) else parts + part
        if kind in (WHOLE, LAST):
            yield Record.FromString(parts)


def _kinds(line: HistoryRecord) -> dict[str, str]:
    """Return the kind of everything in a line of a run's history; a picture is several values under one name."""
    kinds = {}
    for item in line.item:
        first, *rest = item.nested_key or [item.key]
        value = json.loads(item.value_json)
        if isinstance(value, dict) and "_type" in value:
            kinds[".".join([first, *rest])] = str(value["_type"])
        elif rest == ["_type"]:
            kinds[first] = str(value)
        else:
            kinds[".".join([first, *rest])] = "number"
    typed = tuple(f"{name}." for name, kind in kinds.items() if kind != "number")
    return {name: kind for name, kind in kinds.items() if not name.startswith(typed)}


def layers_of(runs: Iterable[LoggedRun]) -> list[str]:
    """Return the layers with logged t-SNE pictures, in the order of logging."""
    names = dict.fromkeys(name for run in runs for name in run.logged if name.startswith("tsne/"))
    return list(dict.fromkeys(name.removeprefix("tsne/").rpartition("/")[0] for name in names))
