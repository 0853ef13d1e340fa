"""Layers of a run for the page: t-SNE coordinates, as many as a browser can show, and measurements."""

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

POINTS = 150_000  # frames in the page, about 30 bytes each
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
            row["layer"], row["speaker"], row["space"], LayerFigures(*(float(row[figure]) for figure in FIGURES))
        )
        for row in read_rows(folder / "figures.csv", {"layer", "speaker", "space", *FIGURES})
    ]
    layers = list(dict.fromkeys(measurement.layer for measurement in measured))
    captions = _captions(folder)
    all_speakers = list(dict.fromkeys(measurement.speaker for measurement in measured))
    with_pictures = [speaker for speaker in all_speakers if speaker in {owner for owner, _ in captions}]
    chosen = list(dict.fromkeys([*with_pictures, *all_speakers]))[:SPEAKERS]
    texts = _texts(folder.parents[1] / "activations" / folder.name)
    texts |= {utterance: text for (_, utterance), text in captions.items()}
    labels: dict[str, int] = {"": 0}
    speakers, shown, total = {}, 0, 0
    for speaker in chosen:
        pictured = [utterance for owner, utterance in captions if owner == speaker]
        speakers[speaker], frame_count = _speaker(
            folder / speaker, layers, texts, pictured, POINTS // share // max(1, len(chosen)), labels
        )
        shown += sum(len(layer["x"]) for layer in speakers[speaker]["layers"].values())
        total += frame_count
    phones = {
        phone for content in speakers.values() for layer in content["layers"].values() for phone in layer["phone"]
    } - {0}
    curves = layer_curves(measured)
    if not phones:
        raise InputError(
            f"{folder}: expected frames with phones, found none: look inside again with Activations.labels, which "
            "`asr align` makes"
        )
    names = list(labels)
    return {
        "name": name,
        "layers": layers,
        "order": chosen,  # in a browser, keys that are numbers come in the order of numbers
        "speakers": speakers,
        "labels": names,
        "note": _note(shown, total, len(chosen), len(all_speakers)),
        "phones": {phone: asdict(style) for phone, style in phone_styles(names[phone] for phone in phones).items()},
        "figures": [figure for figure in FIGURES if figure != "chance" and is_known(curves, figure)],
        "curves": [_curve(curve) for curve in curves],
    }


def _note(shown: int, total: int, chosen: int, speakers: int) -> str:
    part = f"{chosen} of {speakers} speakers; " if chosen < speakers else ""
    if shown == total and not part:
        return ""
    return (
        f"This page holds {shown:,} of the {total:,} frames of these speakers in all layers: {part}of each "
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
    if not (folder / "sentences.csv").exists():  # older runs have none
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
    folder: Path, layers: Sequence[str], texts: Mapping[str, str], pictured: Sequence[str], limit: int,
    labels: dict[str, int],
) -> tuple[Data, int]:  # fmt: skip
    """Return the frames of a speaker that are shown, and how many there are in all layers.

    Args:
        folder: Of the speaker.
        layers: Names.
        texts: Of utterances, by name.
        pictured: Utterances that have pictures.
        limit: Greatest number of frames, in all layers together.
        labels: Numbers of characters and phones, which new ones are added to.
    """
    counts = {}
    for layer in layers:
        with _rows(folder / f"{layer}.csv", ("utterance",)) as rows:
            counts[layer] = Counter(from_csv(name) for (name,) in rows)
    names = sorted(set().union(*counts.values()))
    sizes = {name: sum(min(FRAMES, count[name]) for count in counts.values()) for name in names}
    chosen = choose(sizes, [name for name in pictured if name in sizes], limit)
    index_of = {name: index for index, name in enumerate(chosen)}
    content = {
        "utterances": [{"id": name, "text": texts.get(name, "")} for name in chosen],
        "layers": {layer: _layer(folder / f"{layer}.csv", index_of, labels) for layer in layers},
    }
    return content, sum(count.total() for count in counts.values())


def choose(sizes: Mapping[str, int], first: Sequence[str], limit: int) -> list[str]:
    """Return sentences whose sizes add up to at most `limit`, but at least one: `first`, then others drawn by lot.

    Args:
        sizes: By name.
        first: Names that are taken before others.
        limit: Greatest sum of the sizes.
    """
    others = [name for name in sorted(sizes) if name not in first]
    chosen: list[str] = []
    remaining = limit
    for name in [*first, *(others[index] for index in np.random.default_rng(SEED).permutation(len(others)))]:
        if sizes[name] <= remaining or not chosen:
            chosen.append(name)
            remaining -= sizes[name]
    return [*(name for name in chosen if name in first), *sorted(name for name in chosen if name not in first)]


def _layer(path: Path, index_of: Mapping[str, int], labels: dict[str, int]) -> Data:
    sentences: dict[str, list[tuple[str, ...]]] = {name: [] for name in index_of}
    with _rows(path, COLUMNS) as rows:
        for row in rows:
            if (name := from_csv(row[0])) in sentences:
                sentences[name].append(row[1:])
    frame_columns: Data = {column: [] for column in ("utterance", "start", "x", "y", "character", "phone")}
    length = 0.0
    for name, frames in sentences.items():
        for index in np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().astype(int):
            start, end, character, phone, x, y = frames[index]
            length = max(length, float(end) - float(start))
            frame_columns["utterance"].append(index_of[name])
            for key, value in (("start", start), ("x", x), ("y", y)):
                frame_columns[key].append(round(float(value), 3))
            for key, value in (("character", character), ("phone", phone)):
                frame_columns[key].append(labels.setdefault(from_csv(value), len(labels)))
    return {**frame_columns, "length": round(length, 4)}


@contextmanager
def _rows(path: Path, columns: Collection[str]) -> Iterator[Iterator[tuple[str, ...]]]:
    """Yield an iterator over the rows of a file, with the given columns only.

    Raises:
        InputError: It cannot be read, or lacks a column.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            head = next(reader, [])
            if missing := sorted(set(columns) - set(head)):
                raise InputError(f"{path}: expected the columns {', '.join(missing)} too")
            indices = [head.index(column) for column in columns]
            yield (tuple(row[index] for index in indices) for row in reader)
    except (OSError, UnicodeDecodeError, csv.Error, IndexError) as error:
        raise InputError(f"cannot read {path}: {reason(error)}; let the callbacks write it again") from error


def _finite(values: np.ndarray) -> list[float | None]:
    return [round(float(value), 5) if np.isfinite(value) else None for value in values]
