"""Data of the page from run folders: error rates, neighbours, alignments."""

import base64
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asr_lightning.errors import InputError, reason
from asr_lightning.report.alignment_figure import EMISSION
from asr_lightning.report.figures import ErrorRate
from asr_lightning.report.figures import rates_by_run as rate_curves
from asr_lightning.report.tables import read_rows
from asr_lightning.scoring import RATES

CHARACTERS = 20_000  # of each network, that may be neighbours
NEIGHBOURHOODS = 60_000  # of characters in layers, of the page, about 70 bytes each
ALIGNMENT_BYTES = 5_000_000  # of the page
POSTERIORS = 12  # tokens of each utterance, the most probable ones, besides the blank

Data = dict[str, Any]


def gather_curves(rows: Sequence[ErrorRate]) -> Data | None:
    """Return error rates by run, subset, metric and seed; None without any."""
    if not rows:
        return None
    by_metric = {metric: rate_curves(rows, metric) for metric in RATES}
    names = list(by_metric["wer"])
    runs = [
        {
            "name": name,
            "rates": {
                subset: {metric: _pairs(by_metric[metric][name][subset]) for metric in RATES}
                for subset in by_metric["wer"][name]
            },
        }
        for name in names
    ]
    subsets = sorted({row.subset for row in rows})
    return {"metrics": RATES, "subsets": subsets, "epochs": max(row.epoch for row in rows), "runs": runs}


def _pairs(seeds: dict[str, dict[int, float]]) -> dict[str, list[list[float]]]:
    return {
        seed: [[epoch, rate] for epoch, rate in rates.items() if np.isfinite(rate)] for seed, rates in seeds.items()
    }


def gather_neighbours(name: str, folder: Path, share: int = 1) -> Data | None:
    """Return what the callback `Neighbours` wrote of a run; None where it wrote nothing.

    The page holds the first sentences with at most 20,000 characters, and no neighbours in other sentences. If there is
    no room for the neighbours of all of these, it holds those of the first sentences only.

    Args:
        name: Of the run.
        folder: `<run folder>/neighbours/<stage>`.
        share: Runs that share the page.

    Raises:
        InputError: A file cannot be read, or holds nothing.
    """
    if not (folder / "table.csv").exists():
        return None
    with (folder / "table.csv").open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    if not rows:
        raise InputError(f"{folder / 'table.csv'}: expected a line of each layer, found none")
    layers: list[Data] = []
    max_ranks = 0
    first_positions: list[tuple[str, str, str]] = []
    for row in rows:
        lines = read_rows(folder / f"{row[0]}.csv", {"utterance", "index", "character", "neighbour_1"})
        if not lines:
            raise InputError(f"{folder / row[0]}.csv: expected a line of each character, found none")
        positions = [(line["utterance"], line["index"], line["character"]) for line in lines]
        if layers and positions != first_positions:
            raise InputError(
                f"{folder / row[0]}.csv: expected the characters of {folder / rows[0][0]}.csv, found others: they are "
                "of different tests, so test the network again"
            )
        first_positions = positions
        page_lines = _whole_sentences(lines, CHARACTERS)
        queries = _whole_sentences(page_lines, NEIGHBOURHOODS // share // len(rows))
        row_of = {(line["utterance"], line["index"]): index for index, line in enumerate(page_lines)}
        ranks = sum(key.startswith("neighbour_") for key in lines[0])
        layers.append({"name": row[0], **_nearest(queries, row_of, ranks)})
        max_ranks = max(max_ranks, ranks)
    utterances = list(dict.fromkeys(line["utterance"] for line in page_lines))
    characters = [line["character"] for line in page_lines]
    sentence_of = {utterance: index for index, utterance in enumerate(utterances)}
    sentence_indices = [sentence_of[line["utterance"]] for line in page_lines]
    begins = [index for index, line in enumerate(page_lines) if line["index"] == "0"] + [len(page_lines)]
    texts = [
        "".join(characters[start:stop]).replace("_", " ").strip()
        for start, stop in zip(begins, begins[1:], strict=False)
    ]
    shown = sum(line["index"] == "0" for line in queries)
    note = "" if shown == len(utterances) else (
        f"This page holds the neighbours of the characters of {shown} of {len(utterances)} sentences, the first by "
        "name; the files below neighbours/ hold all."
    )  # fmt: skip
    return {
        "name": name,
        "layers": layers,
        "asked": shown,
        "note": note,
        "characters": characters,
        "sentence": sentence_indices,
        "begins": begins,
        "sentences": [{"id": utterance, "text": text} for utterance, text in zip(utterances, texts, strict=True)],
        "table": {
            "title": f"Matching preceding characters, {name}",
            "head": head,
            "rows": rows,
            "notes": [
                *_caption(folder / "table.md"),
                f"Total and mean over {max_ranks} neighbour{'s' * (max_ranks != 1)} of each character; means for "
                "shuffled states, and for neighbours drawn by their last one, two or three characters.",
            ],
        },
    }


def _caption(path: Path) -> list[str]:
    """Return the notes below a table in Markdown."""
    return path.read_text("utf-8").strip().split("\n\n")[1:] if path.exists() else []


def _whole_sentences(lines: list[dict[str, str]], limit: int) -> list[dict[str, str]]:
    """Return the first sentences with at most `limit` characters together, but at least one sentence."""
    ends = [index for index, line in enumerate(lines) if line["index"] == "0"][1:] + [len(lines)]
    return lines[: max([ends[0], *(end for end in ends if end <= limit)])]


def _nearest(lines: list[dict[str, str]], row_of: dict[tuple[str, str], int], ranks: int) -> Data:
    nearest: Data = {"places": [], "counts": [], "distances": []}
    for line in lines:
        shown_ranks = [
            rank for rank in range(1, ranks + 1) if (line[f"utterance_{rank}"], line[f"index_{rank}"]) in row_of
        ]
        nearest["places"].append([row_of[line[f"utterance_{rank}"], line[f"index_{rank}"]] for rank in shown_ranks])
        nearest["counts"].append([int(line[f"matching_{rank}"]) for rank in shown_ranks])
        nearest["distances"].append([round(float(line[f"distance_{rank}"]), 2) for rank in shown_ranks])
    return nearest


def gather_alignments(name: str, folder: Path, share: int = 1) -> Data | None:
    """Return what the callback `Alignments` wrote of a run; None where it wrote nothing.

    Args:
        name: Of the run.
        folder: `<run folder>/alignments/<stage>`.
        share: Runs that share the page, which holds only as many utterances as there is room for.

    Raises:
        InputError: A file cannot be read, or shows nothing.
    """
    utterances = []
    for path in sorted(folder.glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as archive:
                parts = {key: archive[key] for key in archive.files}
            audio = path.with_suffix(".flac").read_bytes()
            tokens = [str(token) for token in parts["tokens"]]
            labels = [*tokens, "end"]
            maps = [
                _encode_weights(name, EMISSION if name == EMISSION else "weights", weights, labels[: len(weights)])
                for key, weights in parts.items()
                if (name := key.removeprefix("attention/")) != key
            ]
            if "posteriors" in parts:
                maps.append(_posteriors(parts))
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path}: expected what the callback Alignments writes: {reason(error)}") from error
        if not maps:
            raise InputError(f"{path}: expected weights or posteriors, found none; let Alignments write it again")
        utterances.append(
            {
                "id": path.stem,
                "text": "".join(tokens).replace("_", " ").strip(),
                "seconds": float(parts["seconds"]),
                "audio": base64.b64encode(audio).decode(),
                "maps": maps,
            }
        )
    if not utterances:
        return None
    chosen = _fitting_utterances(utterances, ALIGNMENT_BYTES // share)
    note = "" if len(chosen) == len(utterances) else (
        f"This page holds {len(chosen)} of {len(utterances)} utterances; the files below alignments/ hold all."
    )  # fmt: skip
    return {"name": name, "utterances": chosen, "note": note}


def _fitting_utterances(utterances: list[Data], room: int) -> list[Data]:
    """Return the utterances that fit into `room` bytes together, in their order; the smallest if none fits."""
    chosen, remaining = [], room
    for utterance in utterances:
        if (size := _encoded_size(utterance)) <= remaining:
            chosen.append(utterance)
            remaining -= size
    return chosen or [min(utterances, key=_encoded_size)]


def _encoded_size(utterance: Data) -> int:
    return len(utterance["audio"]) + sum(len(attention["weights"]) for attention in utterance["maps"])


def _encode_weights(name: str, kind: str, weights: np.ndarray, labels: list[str]) -> Data:
    """Write weights (U, T) as bytes: 255 is the greatest."""
    greatest = float(weights.max()) if weights.size else 0.0
    numbers = np.round(255 * weights / greatest if greatest > 0 else weights).astype(np.uint8)
    content = base64.b64encode(numbers.tobytes()).decode()
    return {"name": name, "kind": kind, "shape": weights.shape, "most": greatest, "weights": content, "labels": labels}


def _posteriors(parts: dict[str, np.ndarray]) -> Data:
    posteriors, vocabulary = parts["posteriors"], [str(token) for token in parts["vocabulary"]]
    blank = int(parts["blank_id"])
    token_columns = [int(column) for column in np.argsort(-posteriors.max(axis=0)) if column != blank][:POSTERIORS]
    columns = [blank, *token_columns]
    names = [vocabulary[column] for column in columns]
    emitted = [[int(frame), str(token)] for frame, token in zip(parts["onsets"], parts["tokens"], strict=False)]
    return {**_encode_weights("CTC posteriors", "posteriors", posteriors[:, columns].T, names), "emitted": emitted}
