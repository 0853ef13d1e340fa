"""Activations of layers on disk, readable with NumPy and pandas.

```
FOLDER/activations.json        per module: unit of a row (frame or token), rows, dimension; the epoch;
                               the numbers of utterances and of utterances with phones
FOLDER/utterances.csv          utterance,subset,speaker,seconds,reference,hypothesis
FOLDER/<module>.npy            (N, D) float32
FOLDER/<module>.csv            one line per row: utterance,speaker,index,start,end,character,phone
```

Utterances are in the order of their names, their rows in that of time. Times are seconds from an utterance's beginning:
a frame's span is as long as the distance of frames, around the center of what the frame was computed from. Rows of a
token (character) have no times; row 0 is the state that the first token is predicted from. `character` is the one that
is being recognized, `phone` is the label; both are empty if unknown.

    np.load("FOLDER/encoder.layers.0.npy", mmap_mode="r"), pandas.read_csv("FOLDER/encoder.layers.0.csv")
"""

import csv
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal

import numpy as np

from asr_lightning.errors import InputError, reason
from asr_lightning.files import remove, write_atomically

Unit = Literal["frame", "token"]
COLUMNS = ("utterance", "speaker", "index", "start", "end", "character", "phone")
UTTERANCE_COLUMNS = ("utterance", "subset", "speaker", "seconds", "reference", "hypothesis")
DESCRIPTION = "activations.json"


@dataclass
class Rows:
    """Activations of one module for one utterance.

    Attributes:
        values: (N, D) float32.
        unit: Unit of a row.
        starts: N seconds, of frames.
        ends: N seconds, of frames.
        characters: N, empty where unknown.
        phones: N, empty where unknown.
    """

    values: np.ndarray
    unit: Unit
    starts: Sequence[float] = ()
    ends: Sequence[float] = ()
    characters: Sequence[str] = ()
    phones: Sequence[str] = ()


@dataclass
class UtteranceActivations:
    """An utterance with the activations of its modules."""

    utterance: str
    subset: str
    speaker: str
    seconds: float
    reference: str
    hypothesis: str
    modules: dict[str, Rows] = field(default_factory=dict)


@dataclass(frozen=True)
class Layer:
    """All rows of a module.

    Attributes:
        name: Of the module.
        unit: Unit of a row.
        values: (N, D) float32, on disk.
        utterances: (N,) names.
        speakers: (N,) names.
        index: (N,) positions within an utterance.
        starts: (N,) seconds; NaN for tokens.
        ends: (N,) seconds; NaN for tokens.
        characters: (N,) strings.
        phones: (N,) strings.
    """

    name: str
    unit: Unit
    values: np.ndarray
    utterances: np.ndarray
    speakers: np.ndarray
    index: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    characters: np.ndarray
    phones: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    def where(self, index: np.ndarray) -> "Layer":
        """Return the rows that a mask (N,) or an index chooses, in memory."""
        parts = {column.name: getattr(self, column.name)[index] for column in fields(self)[2:]}
        return Layer(self.name, self.unit, **parts)


class PartWriter:
    """Writer of one process: values of each module, and a line of JSON per utterance."""

    def __init__(self, folder: Path) -> None:
        """Create the folder; delete what an earlier run left in it."""
        remove(folder)
        folder.mkdir(parents=True)
        self.folder = folder

    def append(self, utterance: UtteranceActivations) -> None:
        """Write the activations of an utterance."""
        line = {name: getattr(utterance, name) for name in UTTERANCE_COLUMNS} | {"modules": {}}
        for module, rows in utterance.modules.items():
            values = np.ascontiguousarray(rows.values, dtype=np.float32)
            with (self.folder / module).open("ab") as file:
                offset = file.tell()
                file.write(values.tobytes())
            columns = {column.name: getattr(rows, column.name) for column in fields(rows) if column.name != "values"}
            line["modules"][module] = {"place": offset, "shape": values.shape, **columns}
        with (self.folder / "utterances.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def merge_parts(parts: Sequence[Path], folder: Path, about: dict[str, Any], limit: int | None = None,
          speakers: int | None = None) -> int:  # fmt: skip
    """Merge the parts of all processes; the result does not depend on their number.

    Args:
        parts: Folders of `PartWriter`, which are removed.
        folder: Output. Files of an earlier call are replaced; other files stay.
        about: Further entries of `activations.json`.
        limit: Utterances to keep, the first by name.
        speakers: Speakers to keep, the first by name.

    Returns:
        The number of utterances.
    """
    lines = sorted(_lines(parts), key=lambda line: line[1]["utterance"])
    chosen: dict[str, tuple[Path, dict[str, Any]]] = {line["utterance"]: (part, line) for part, line in lines}
    if speakers is not None:
        first_speakers = set(sorted({line["speaker"] for _, line in chosen.values()})[:speakers])
        chosen = {utterance: entry for utterance, entry in chosen.items() if entry[1]["speaker"] in first_speakers}
    chosen = dict(list(chosen.items())[:limit])
    new = folder.with_name(f".{folder.name}.new")
    remove(new)
    new.mkdir(parents=True)
    with (new / "utterances.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, UTTERANCE_COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(line for _, line in chosen.values())
    modules = dict.fromkeys(name for _, line in chosen.values() for name in line["modules"])
    descriptions = {module: _write_module(new, module, list(chosen.values())) for module in modules}
    counts = {"utterances": len(chosen), "with_phones": sum(_has_phones(line) for _, line in chosen.values())}
    write_atomically(new / DESCRIPTION, json.dumps({**about, **counts, "modules": descriptions}, indent=1))
    for name in _earlier_files(folder):
        (folder / name).unlink(missing_ok=True)
    folder.mkdir(exist_ok=True)
    for path in sorted(new.iterdir(), key=lambda path: path.name == DESCRIPTION):  # the description last
        path.replace(folder / path.name)
    new.rmdir()
    for part in parts:
        shutil.rmtree(part)
    return len(chosen)


def _has_phones(line: dict[str, Any]) -> bool:
    return any(any(rows["phones"]) for rows in line["modules"].values())


def _earlier_files(folder: Path) -> list[str]:
    """Return the names of the files that an earlier call wrote, the description first."""
    try:
        modules = list(json.loads((folder / DESCRIPTION).read_text("utf-8"))["modules"])
    except (OSError, ValueError, KeyError, TypeError):
        modules = []
    names = [f"{module}{suffix}" for module in modules for suffix in (".npy", ".csv")]
    return [DESCRIPTION, "utterances.csv", *(name for name in names if Path(name).name == name)]


def _lines(parts: Iterable[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    for part in parts:
        path = part / "utterances.jsonl"
        if path.exists():
            with path.open(encoding="utf-8") as file:
                for line in file:
                    yield part, json.loads(line)


def _write_module(folder: Path, module: str, chosen: list[tuple[Path, dict[str, Any]]]) -> dict[str, Any]:
    entries = [(part, line, line["modules"][module]) for part, line in chosen if module in line["modules"]]
    dimension, unit = entries[0][2]["shape"][1], entries[0][2]["unit"]
    total = sum(rows["shape"][0] for _, _, rows in entries)
    values = np.lib.format.open_memmap(folder / f"{module}.npy", "w+", np.float32, (total, dimension))
    with (folder / f"{module}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        begin = 0
        for part, line, rows in entries:
            count = rows["shape"][0]
            block = np.fromfile(part / module, np.float32, count * dimension, offset=rows["place"])
            values[begin : begin + count] = block.reshape(count, dimension)
            begin += count
            columns = [rows[name] or [""] * count for name in ("starts", "ends", "characters", "phones")]
            for number, row in enumerate(zip(*columns, strict=True)):
                start, end, *labels = row
                times = [f"{time:.4f}" if time != "" else "" for time in (start, end)]
                writer.writerow([line["utterance"], line["speaker"], number, *times, *labels])
    values.flush()
    return {"unit": unit, "rows": total, "dimension": dimension}


def read_description(folder: Path) -> dict[str, Any]:
    """Return the content of `activations.json`.

    Raises:
        InputError: There is none, or it cannot be read.
    """
    try:
        description: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text("utf-8"))
        if not all(module["unit"] in ("frame", "token") for module in description["modules"].values()):
            raise ValueError("a module without a unit")
        return description
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"expected activations in {folder}, with a {DESCRIPTION}, got {type(error).__name__}: {reason(error)}; "
            "asr_lightning.callbacks.activations.Activations writes them"
        ) from error


def layers_of_unit(folder: Path, unit: Unit, modules: Sequence[str] | None = None) -> list[str]:
    """Return the modules whose rows are frames, or tokens: those in `modules`, or all.

    Raises:
        InputError: There are none, or a wanted one is not among them.
    """
    layers = [name for name, module in read_description(folder)["modules"].items() if module["unit"] == unit]
    if not layers or any(name not in layers for name in modules or []):
        names = f", {', '.join(modules)}" if modules else ""
        raise InputError(f"{folder}: expected layers of {unit}s{names}, found {', '.join(layers) or 'none'}")
    return list(modules or layers)


def read_layer(folder: Path, module: str) -> Layer:
    """Return the rows of a module; their values stay on disk.

    Raises:
        InputError: There are none, or the files do not belong together.
    """
    modules = read_description(folder)["modules"]
    if module not in modules:
        raise InputError(f"expected one of the modules in {folder}, {', '.join(modules)}; got {module!r}")
    try:
        values = np.load(folder / f"{module}.npy", mmap_mode="r")
        with (folder / f"{module}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))[1:]
    except (OSError, ValueError, EOFError, MemoryError, SyntaxError, TokenError, csv.Error) as error:  # also NumPy's
        raise InputError(f"{folder}: the rows of {module} cannot be read: {reason(error)}") from error
    if values.ndim != 2 or values.dtype.kind != "f":
        raise InputError(f"{folder}/{module}.npy: expected rows of numbers, found {values.shape} of {values.dtype}")
    if len(rows) != len(values) or any(len(row) != len(COLUMNS) for row in rows):
        raise InputError(f"{folder}/{module}.csv: expected {len(values)} lines as in {module}.npy, found {len(rows)}")
    names, speakers, index, starts, ends, characters, phones = zip(*rows, strict=True) if rows else [()] * len(COLUMNS)
    try:
        seconds = [np.array([float(cell or "nan") for cell in column]) for column in (starts, ends)]
        indices = np.array(index, dtype=int)
    except (ValueError, OverflowError) as error:
        raise InputError(
            f"{folder}/{module}.csv: expected numbers for index, start and end: {reason(error)}"
        ) from error
    labels = [np.array(column, dtype=str) for column in (names, speakers, characters, phones)]
    return Layer(
        module, modules[module]["unit"], values, labels[0], labels[1], indices,
        seconds[0], seconds[1], labels[2], labels[3],
    )  # fmt: skip


def read_utterances(folder: Path) -> dict[str, dict[str, str]]:
    """Return the lines of `utterances.csv` by utterance.

    Raises:
        InputError: There is no such file.
    """
    try:
        with (folder / "utterances.csv").open(encoding="utf-8", newline="") as file:
            return {row["utterance"]: row for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise InputError(f"expected activations in {folder}, with an utterances.csv: {reason(error)}") from error
