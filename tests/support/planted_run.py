"""Planted files of a run of full size, as the callbacks that look inside write them for LibriSpeech's test-clean."""

import json
from pathlib import Path

import numpy as np

from asr_lightning.analysis.layers import FIGURES
from asr_lightning.callbacks.neighbours import header
from asr_lightning.callbacks.tsne import COLUMNS, SENTENCE_COLUMNS
from asr_lightning.report.tables import as_csv

RATES = (100, 50, 25, 25, 25, 25, 25, 25)  # frames per second of eight layers, subsampled behind the first and second
LETTERS, PHONES = list("_ABCDEFGHIJKLMNOPQRSTUVWXYZ"), [f"PH{number}" for number in range(38)] + ["SIL"]


def places(rate: int, seconds: float, sentences: int) -> str:
    """The CSV of a speaker's layer, quickly."""
    count = int(rate * seconds)
    random = np.random.default_rng(rate)
    letters, phones = random.integers(len(LETTERS), size=count), random.integers(len(PHONES), size=count)
    positions = random.normal(size=(count, 2))
    lines = [
        f"u{number:03},me,{frame},{frame / rate:.4f},{(frame + 1) / rate:.4f},"
        f"{LETTERS[letters[frame]]},{PHONES[phones[frame]]},"
        f"{positions[frame, 0]:.4f},{positions[frame, 1]:.4f}"
        for number in range(sentences)
        for frame in range(count)
    ]
    return "\n".join([",".join(COLUMNS), *lines, ""])


def write_layers(folder: Path, speakers: int, sentences: int, seconds: float) -> None:
    """Write all frames of eight layers; those of all speakers are the same. Pictures are of the last speaker's."""
    (folder / "activations" / "test").mkdir(parents=True)
    texts = [["utterance", "reference", "hypothesis"], *([f"u{n:03}", "A SENTENCE", ""] for n in range(sentences))]
    (folder / "activations" / "test" / "utterances.csv").write_text(as_csv(texts))
    layers = {f"layer{number + 1}": places(rate, seconds, sentences) for number, rate in enumerate(RATES)}
    tsne = folder / "tsne" / "test"
    for speaker in range(speakers):
        (tsne / f"10{speaker}").mkdir(parents=True)
        for layer, content in layers.items():
            path = tsne / f"10{speaker}" / f"{layer}.csv"
            if speaker:
                path.hardlink_to(tsne / "100" / path.name)
            else:
                path.write_text(content)
    lines = [[layer, f"10{speaker}", space, *[0.5] * len(FIGURES)]
             for speaker in range(speakers) for layer in layers for space in ("original", "tsne")]  # fmt: skip
    (tsne / "figures.csv").write_text(as_csv([["layer", "speaker", "space", *FIGURES], *lines]))
    rows = [[f"10{speakers - 1}", f"u{number:03}", "A SENTENCE", "the longest"] for number in (5, 3)]
    (tsne / "sentences.csv").write_text(as_csv([SENTENCE_COLUMNS, *rows]))


def write_neighbours(folder: Path, layers: int, sentences: int, characters: int) -> None:
    """Write five neighbours of every character; those of all layers are the same."""
    output = folder / "neighbours" / "test"
    output.mkdir(parents=True)
    random = np.random.default_rng(1)
    others, rows = random.integers(sentences, size=(sentences, characters, 5)), random.integers(
        characters, size=(sentences, characters, 5)
    )  # fmt: skip
    lines = [
        f"u{number:03},{position},A,B<<A>>C"
        + "".join(
            f",B<<A>>C,u{others[number, position, rank]:03},{rows[number, position, rank]},12.3456,2"
            for rank in range(5)
        )
        for number in range(sentences)
        for position in range(characters)
    ]
    content = "\n".join([",".join(header(5)), *lines, ""])
    names = [f"decoder{number + 1}" for number in range(layers)]
    for name in names:
        (output / f"{name}.csv").write_text(content)
    rows_of_table = [[name, str(sentences), str(sentences * characters), "1", "1.00"] for name in names]
    (output / "table.csv").write_text(as_csv([["layer", "sentences", "tokens", "total", "mean"], *rows_of_table]))
    (output / "table.md").write_text("| layer |\n\nThe paper has 79 sentences.\n")


def write_alignments(folder: Path, utterances: int, tokens: int, frames: int, maps: int) -> None:
    """Write attention weights and audio that cannot be compressed."""
    output = folder / "alignments" / "test"
    output.mkdir(parents=True)
    random = np.random.default_rng(2)
    weights = random.random((tokens, frames)).astype(np.float32)
    audio = random.bytes(frames * 40 * 20)  # some 0.8 KB of FLAC for a frame of 40 ms
    for number in range(utterances):
        np.savez(
            output / f"u{number:03}.npz", tokens=["A"] * tokens, seconds=0.04 * frames, onsets=[], blank_id=0,
            vocabulary=["-", "A"], **{f"attention/head{head}": weights for head in range(maps)},
        )  # fmt: skip
        (output / f"u{number:03}.flac").write_bytes(audio)


def write_run(folder: Path) -> None:
    """Write everything of one network but the error rates, which a run needs too."""
    write_layers(folder, speakers=6, sentences=40, seconds=7.4)
    write_neighbours(folder, layers=6, sentences=100, characters=110)
    write_alignments(folder, utterances=8, tokens=200, frames=375, maps=1)
    (folder / "activations" / "test" / "activations.json").write_text(json.dumps({}))
