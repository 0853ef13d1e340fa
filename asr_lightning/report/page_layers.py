"""Gathers the layers of a run for the page: places of frames, as many as a browser opens, and numbers along layers."""

import csv
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from asr_lightning.analysis.layers import FIGURES, LayerCurve, LayerMeasurement, layer_curves
from asr_lightning.analysis.probes import LayerFigures
from asr_lightning.errors import InputError, reason
from asr_lightning.report.layer_figures import is_known
from asr_lightning.report.phone_style import phone_styles
from asr_lightning.report.tables import from_csv, read_rows

POINTS = 150_000  # places of frames in the whole page: some 30 bytes each
SPEAKERS = 4  # of each network
FRAMES = 500  # of a sentence in one layer; longer ones are thinned evenly
SEED = 1  # of the sentences that are drawn by lot
COLUMNS = ("utterance", "start", "end", "character", "phone", "x", "y")

Data = dict[str, Any]


def gather_layers(name: str, folder: Path, share: int = 1) -> Data | None:
    """Return what the callback `TSNE` wrote of a run, and how much of it the page holds; None where it wrote nothing.

    Args:
        name: Of the run.
        folder: `<run folder>/tsne/<stage>`.
        share: Runs that share the page.

    Raises:
        InputError: A file cannot be read, or no frame has a phone.
    """
    if not (folder / "figures.csv").exists():
        return None
    measured = [
        LayerMeasurement(
            row["layer"], row["speaker"], row["space"], LayerFigures(*(float(row[one]) for one in FIGURES))
        )
        for row in read_rows(folder / "figures.csv", {"layer", "speaker", "space", *FIGURES})
    ]
    layers = list(dict.fromkeys(one.layer for one in measured))
    captions = _captions(folder)
    everyone = list(dict.fromkeys(one.speaker for one in measured))
    first = [speaker for speaker in everyone if speaker in {one for one, _ in captions}]
    kept = list(dict.fromkeys([*first, *everyone]))[:SPEAKERS]
    texts = _texts(folder.parents[1] / "activations" / folder.name)
    texts |= {utterance: text for (_, utterance), text in captions.items()}
    labels: dict[str, int] = {"": 0}
    speakers, shown, total = {}, 0, 0
    for speaker in kept:
        drawn = [utterance for one, utterance in captions if one == speaker]
        speakers[speaker], counted = _speaker(
            folder / speaker, layers, texts, drawn, POINTS // share // max(1, len(kept)), labels
        )
        shown += sum(len(one["x"]) for one in speakers[speaker]["layers"].values())
        total += counted
    phones = {phone for one in speakers.values() for layer in one["layers"].values() for phone in layer["phone"]} - {0}
    found = layer_curves(measured)
    if not phones:
        raise InputError(
            f"{folder}: expected frames with phones, found none: look inside again with Activations.labels, which "
            "`asr align` makes"
        )
    names = list(labels)
    return {
        "name": name,
        "layers": layers,
        "order": kept,  # in a browser, keys that are numbers come in the order of numbers
        "speakers": speakers,
        "labels": names,
        "note": _note(shown, total, len(kept), len(everyone)),
        "phones": {phone: asdict(style) for phone, style in phone_styles(names[phone] for phone in phones).items()},
        "figures": [one for one in FIGURES if one != "chance" and is_known(found, one)],
        "curves": [_curve(one) for one in found],
    }


def _note(shown: int, total: int, kept: int, speakers: int) -> str:
    most = f"{kept} of {speakers} speakers; " if kept < speakers else ""
    if shown == total and not most:
        return ""
    return (
        f"This page holds {shown:,} places of frames, of the {total:,} of these speakers in all layers: {most}of each "
        f"the sentences with pictures and others drawn by lot (seed {SEED}), of each sentence at most {FRAMES} frames, "
        "evenly thinned. The files below tsne/ hold all, and the numbers are of all."
    )


def _curve(curve: LayerCurve) -> Data:
    return {
        "figure": curve.figure,
        "space": curve.space,
        "layers": curve.layers,
        "means": _finite(curve.means),
        "intervals": [_finite(pair) for pair in curve.intervals],
    }


def _captions(folder: Path) -> dict[tuple[str, str], str]:
    """Return the captions of the sentences that have pictures, by speaker and utterance."""
    if not (folder / "sentences.csv").exists():  # of a run from before it was written
        return {}
    rows = read_rows(folder / "sentences.csv", {"speaker", "utterance", "text", "note"})
    return {
        (row["speaker"], row["utterance"]): f"{row['text']} ({row['note']})" if row["note"] else row["text"]
        for row in rows
    }


def _texts(activations: Path) -> dict[str, str]:
    rows = read_rows(activations / "utterances.csv", {"utterance", "reference", "hypothesis"})
    return {row["utterance"]: row["reference"] or row["hypothesis"] for row in rows}


def _speaker(
    folder: Path, layers: Sequence[str], texts: Mapping[str, str], drawn: Sequence[str], most: int,
    labels: dict[str, int],
) -> tuple[Data, int]:  # fmt: skip
    """Return the frames of a speaker that are shown, and how many there are in all layers.

    Args:
        folder: Of the speaker.
        layers: Names.
        texts: Of utterances, by name.
        drawn: Utterances that have pictures.
        most: Places of frames, in all layers together.
        labels: Numbers of characters and phones, which new ones are added to.
    """
    counts = {}
    for layer in layers:
        with _rows(folder / f"{layer}.csv", ("utterance",)) as rows:
            counts[layer] = Counter(from_csv(name) for (name,) in rows)
    names = sorted(set().union(*counts.values()))
    sizes = {name: sum(min(FRAMES, count[name]) for count in counts.values()) for name in names}
    kept = choose(sizes, [name for name in drawn if name in sizes], most)
    number = {name: index for index, name in enumerate(kept)}
    found = {
        "utterances": [{"id": name, "text": texts.get(name, "")} for name in kept],
        "layers": {layer: _layer(folder / f"{layer}.csv", number, labels) for layer in layers},
    }
    return found, sum(count.total() for count in counts.values())


def choose(sizes: Mapping[str, int], first: Sequence[str], most: int) -> list[str]:
    """Return sentences whose sizes add up to at most so many, but one at least: some first, then others by lot.

    Args:
        sizes: By name.
        first: Names that are taken before others.
        most: Sum of the sizes.
    """
    rest = [name for name in sorted(sizes) if name not in first]
    chosen: list[str] = []
    left = most
    for name in [*first, *(rest[index] for index in np.random.default_rng(SEED).permutation(len(rest)))]:
        if sizes[name] <= left or not chosen:
            chosen.append(name)
            left -= sizes[name]
    return [*(name for name in chosen if name in first), *sorted(name for name in chosen if name not in first)]


def _layer(path: Path, number: Mapping[str, int], labels: dict[str, int]) -> Data:
    sentences: dict[str, list[tuple[str, ...]]] = {name: [] for name in number}
    with _rows(path, COLUMNS) as rows:
        for row in rows:
            if (name := from_csv(row[0])) in sentences:
                sentences[name].append(row[1:])
    frames_of: Data = {column: [] for column in ("utterance", "start", "x", "y", "character", "phone")}
    length = 0.0
    for name, frames in sentences.items():
        for index in np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().astype(int):
            start, end, character, phone, x, y = frames[index]
            length = max(length, float(end) - float(start))
            frames_of["utterance"].append(number[name])
            for key, value in (("start", start), ("x", x), ("y", y)):
                frames_of[key].append(round(float(value), 3))
            for key, value in (("character", character), ("phone", phone)):
                frames_of[key].append(labels.setdefault(from_csv(value), len(labels)))
    return {**frames_of, "length": round(length, 4)}


@contextmanager
def _rows(path: Path, columns: Collection[str]) -> Iterator[Iterator[tuple[str, ...]]]:
    """Give the wanted columns of a file's rows, one row after the other.

    Raises:
        InputError: It cannot be read, or lacks a column.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            head = next(reader, [])
            if missing := sorted(set(columns) - set(head)):
                raise InputError(f"{path}: expected the columns {', '.join(missing)} too")
            columns_read = [head.index(column) for column in columns]
            yield (tuple(row[index] for index in columns_read) for row in reader)
    except (OSError, UnicodeDecodeError, csv.Error, IndexError) as error:
        raise InputError(f"cannot read {path}: {reason(error)}; let the callbacks write it again") from error


def _finite(values: np.ndarray) -> list[float | None]:
    return [round(float(value), 5) if np.isfinite(value) else None for value in values]
