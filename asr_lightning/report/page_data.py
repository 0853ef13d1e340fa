"""Gathers what runs have left in their folders, for the page."""

import base64
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asr_lightning.analysis.layers import FIGURES, Measured, curves
from asr_lightning.analysis.probes import LayerFigures
from asr_lightning.errors import InputError, reason
from asr_lightning.report.figures import ErrorRate
from asr_lightning.report.figures import curves as rate_curves
from asr_lightning.report.layer_figures import phone_colours
from asr_lightning.report.tables import from_csv

METRICS = ("wer", "cer", "ser", "swer", "unspaced_cer")
CHARACTERS = 10_000  # of each network's neighbours
POSTERIORS = 12  # tokens of each utterance, the most probable ones, besides the blank

Data = dict[str, Any]


def gather_curves(rows: Sequence[ErrorRate]) -> Data | None:
    """Return error rates by run, subset, metric and seed; None without any."""
    if not rows:
        return None
    by_metric = {metric: rate_curves(rows, metric) for metric in METRICS}  # type: ignore[arg-type]
    names = list(by_metric["wer"])
    runs = [
        {
            "name": name,
            "rates": {
                subset: {metric: _pairs(by_metric[metric][name][subset]) for metric in METRICS}
                for subset in by_metric["wer"][name]
            },
        }
        for name in names
    ]
    subsets = sorted({row.subset for row in rows})
    return {"metrics": METRICS, "subsets": subsets, "epochs": max(row.epoch for row in rows), "runs": runs}


def _pairs(seeds: dict[str, dict[int, float]]) -> dict[str, list[list[float]]]:
    return {
        seed: [[epoch, rate] for epoch, rate in rates.items() if np.isfinite(rate)] for seed, rates in seeds.items()
    }


def gather_layers(name: str, folder: Path) -> Data | None:
    """Return what the callback `TSNE` wrote of a run; None where it wrote nothing.

    Args:
        name: Of the run.
        folder: `<run folder>/tsne/<stage>`.

    Raises:
        InputError: A file cannot be read.
    """
    if not (folder / "figures.csv").exists():
        return None
    measured = [
        Measured(row["layer"], row["speaker"], row["space"], LayerFigures(*(float(row[one]) for one in FIGURES)))
        for row in _read(folder / "figures.csv", {"layer", "speaker", "space", *FIGURES})
    ]
    names = list(dict.fromkeys(one.layer for one in measured))
    speakers = {
        speaker: _speaker(folder / speaker, names, folder.parents[1] / "activations" / folder.name)
        for speaker in dict.fromkeys(one.speaker for one in measured)
    }
    phones = sorted(
        {phone for one in speakers.values() for layer in one["layers"].values() for phone in layer["phone"]}
    )
    return {
        "name": name,
        "layers": names,
        "speakers": speakers,
        "colours": phone_colours([phone for phone in phones if phone]),
        "curves": [
            {
                "figure": one.figure,
                "space": one.space,
                "layers": one.layers,
                "means": _finite(one.means),
                "intervals": [_finite(pair) for pair in one.intervals],
            }
            for one in curves(measured)
        ],
    }


def _speaker(folder: Path, layers: Sequence[str], activations: Path) -> Data:
    texts = {row["utterance"]: row["reference"] or row["hypothesis"] for row in _read(activations / "utterances.csv",
             {"utterance", "reference", "hypothesis"})}  # fmt: skip
    columns = {"utterance", "start", "end", "character", "phone", "x", "y"}
    tables = {layer: _read(folder / f"{layer}.csv", columns) for layer in layers}
    names = sorted({row["utterance"] for rows in tables.values() for row in rows})
    number = {name: place for place, name in enumerate(names)}
    return {
        "utterances": [{"id": name, "text": texts.get(name, "")} for name in names],
        "layers": {
            layer: {
                "utterance": [number[row["utterance"]] for row in rows],
                **{key: [round(float(row[key]), 3) for row in rows] for key in ("start", "end", "x", "y")},
                **{key: [row[key] for row in rows] for key in ("character", "phone")},
            }
            for layer, rows in tables.items()
        },
    }


def gather_neighbours(name: str, folder: Path) -> Data | None:
    """Return what the callback `Neighbours` wrote of a run; None where it wrote nothing.

    The first sentences with at most 10,000 characters are kept, and neighbours in others are left out.

    Args:
        name: Of the run.
        folder: `<run folder>/neighbours/<stage>`.

    Raises:
        InputError: A file cannot be read.
    """
    if not (folder / "table.csv").exists():
        return None
    with (folder / "table.csv").open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    if not rows:
        raise InputError(f"{folder / 'table.csv'}: expected a line of each layer, found none")
    layers, most = [], 0
    for row in rows:
        lines = _read(folder / f"{row[0]}.csv", {"utterance", "index", "character", "neighbour_1"})
        kept = _whole_sentences(lines)
        place = {(line["utterance"], line["index"]): number for number, line in enumerate(kept)}
        ranks = sum(key.startswith("neighbour_") for key in lines[0]) if lines else 0
        layers.append({"name": row[0], **_nearest(kept, place, ranks)})
        most = max(most, ranks)
    utterances = list(dict.fromkeys(line["utterance"] for line in kept))
    characters = [line["character"] for line in kept]
    number = {utterance: place for place, utterance in enumerate(utterances)}
    sentence = [number[line["utterance"]] for line in kept]
    begins = [place for place, line in enumerate(kept) if line["index"] == "0"] + [len(kept)]
    texts = [
        "".join(characters[one:two]).replace("_", " ").strip() for one, two in zip(begins, begins[1:], strict=False)
    ]
    return {
        "name": name,
        "layers": layers,
        "characters": characters,
        "sentence": sentence,
        "begins": begins,
        "sentences": [{"id": one, "text": text} for one, text in zip(utterances, texts, strict=True)],
        "table": {
            "title": f"Matching preceding characters, {name}",
            "head": head,
            "rows": rows,
            "notes": [
                f"Total and mean over {most} neighbour{'s' * (most != 1)} of each character; means for shuffled "
                "states, and for neighbours drawn by their last one, two or three characters."
            ],
        },
    }


def _whole_sentences(lines: list[dict[str, str]]) -> list[dict[str, str]]:
    end = min(len(lines), CHARACTERS)
    while 0 < end < len(lines) and lines[end]["index"] != "0":
        end -= 1
    return lines[:end]


def _nearest(lines: list[dict[str, str]], place: dict[tuple[str, str], int], ranks: int) -> Data:
    found: Data = {"places": [], "counts": [], "distances": []}
    for line in lines:
        known = [rank for rank in range(1, ranks + 1) if (line[f"utterance_{rank}"], line[f"index_{rank}"]) in place]
        found["places"].append([place[line[f"utterance_{rank}"], line[f"index_{rank}"]] for rank in known])
        found["counts"].append([int(line[f"matching_{rank}"]) for rank in known])
        found["distances"].append([round(float(line[f"distance_{rank}"]), 2) for rank in known])
    return found


def gather_alignments(name: str, folder: Path) -> Data | None:
    """Return what the callback `Alignments` wrote of a run; None where it wrote nothing.

    Args:
        name: Of the run.
        folder: `<run folder>/alignments/<stage>`.

    Raises:
        InputError: A file cannot be read.
    """
    utterances = []
    for path in sorted(folder.glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as kept:
                parts = {key: kept[key] for key in kept.files}
            audio = path.with_suffix(".flac").read_bytes()
            tokens = [str(one) for one in parts["tokens"]]
            maps = [
                _map(key.removeprefix("attention/"), "weights", weights, [*tokens, "end"][: len(weights)])
                for key, weights in parts.items()
                if key.startswith("attention/")
            ]
            if "posteriors" in parts:
                maps.append(_posteriors(parts))
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path}: expected what the callback Alignments writes: {reason(error)}") from error
        utterances.append(
            {
                "id": path.stem,
                "text": "".join(tokens).replace("_", " ").strip(),
                "seconds": float(parts["seconds"]),
                "audio": base64.b64encode(audio).decode(),
                "maps": maps,
            }
        )
    return {"name": name, "utterances": utterances} if utterances else None


def _map(name: str, kind: str, weights: np.ndarray, labels: list[str]) -> Data:
    """Write weights (U, T) as bytes: 255 is the greatest."""
    most = float(weights.max()) if weights.size else 0.0
    numbers = np.round(255 * weights / most if most > 0 else weights).astype(np.uint8)
    content = base64.b64encode(numbers.tobytes()).decode()
    return {"name": name, "kind": kind, "shape": weights.shape, "most": most, "weights": content, "labels": labels}


def _posteriors(parts: dict[str, np.ndarray]) -> Data:
    posteriors, vocabulary = parts["posteriors"], [str(one) for one in parts["vocabulary"]]
    blank = int(parts["blank_id"])
    others = [int(one) for one in np.argsort(-posteriors.max(axis=0)) if one != blank][:POSTERIORS]
    columns = [blank, *others]
    return _map("CTC posteriors", "posteriors", posteriors[:, columns].T, [vocabulary[one] for one in columns])


def _finite(values: np.ndarray) -> list[float | None]:
    return [round(float(one), 5) if np.isfinite(one) else None for one in values]


def _read(path: Path, columns: set[str]) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            missing = columns - set(reader.fieldnames or [])
            if missing:
                raise InputError(f"{path}: expected the columns {', '.join(sorted(missing))} too")
            return [{name: from_csv(row[name] or "") for name in reader.fieldnames or []} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {path}: {error}; let the callbacks write it again") from error
