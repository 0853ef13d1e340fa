"""Files of the callbacks that look inside a network."""

from pathlib import Path

import numpy as np
import soundfile

from asr_lightning.analysis.activations import PartWriter, Rows, UtteranceActivations, merge_parts
from asr_lightning.analysis.character_neighbours import find_character_neighbours, neighbour_table
from asr_lightning.analysis.layers import layer_table, measure_layers, project_layers, read_layers
from asr_lightning.callbacks.neighbours import csv_rows, header
from asr_lightning.callbacks.tsne import positions_as_csv
from asr_lightning.report.tables import as_csv

HOSTILE = "</script><img src=x onerror=\"document.title='broken'\">"


def inside(folder: Path) -> None:
    """Write the files of the callbacks, with random numbers for a network."""
    random = np.random.default_rng(0)
    part = PartWriter(folder / "activations" / ".part")
    for number in range(6):
        text = list("_I_SAW_A_CAT") if number else list("_가_나무_") + [HOSTILE]
        starts = (np.arange(20) * 0.04).tolist()
        frames = [starts, [start + 0.04 for start in starts], [text[frame % len(text)] for frame in range(20)],
                  [("SIL", "AA", "B")[frame % 3] for frame in range(20)]]  # fmt: skip
        modules = {
            "low": Rows(random.normal(size=(20, 6)), "frame", *frames),
            "top": Rows(random.normal(size=(20, 6)), "frame", *frames),
            "state": Rows(random.normal(size=(len(text) + 1, 6)), "token", characters=[*text, "<eos>"]),
        }
        spoken = "".join(text)
        part.append(UtteranceActivations(f"u{number}", "test", "me", 0.8, spoken, spoken, modules))
    merge_parts([part.folder], folder / "activations" / "test", {})
    projected = project_layers(read_layers(folder / "activations" / "test"), "me", iterations=50, perplexity=5)
    (folder / "tsne" / "test" / "me").mkdir(parents=True)
    for projection in projected:
        (folder / "tsne" / "test" / "me" / f"{projection.layer.name}.csv").write_text(positions_as_csv(projection))
    (folder / "tsne" / "test" / "figures.csv").write_text(as_csv(layer_table(measure_layers(projected))))
    [neighbours] = find_character_neighbours(folder / "activations" / "test", ["state"])
    (folder / "neighbours" / "test").mkdir(parents=True)
    (folder / "neighbours" / "test" / "state.csv").write_text(as_csv([header(5), *csv_rows(neighbours)]))
    (folder / "neighbours" / "test" / "table.csv").write_text(as_csv(neighbour_table([neighbours])))
    (folder / "alignments" / "test").mkdir(parents=True)
    weights = np.eye(5, 20)
    posteriors = random.dirichlet(np.ones(8), 20)
    for name in ("u1", "u2"):
        np.savez_compressed(
            folder / "alignments" / "test" / f"{name}.npz", tokens=list("_CAT"), seconds=0.8, onsets=[], blank_id=0,
            vocabulary=list("-ABCDEFG"), posteriors=posteriors, **{"attention/decoder.attention": weights},
        )  # fmt: skip
        soundfile.write(folder / "alignments" / "test" / f"{name}.flac", 0.1 * random.normal(size=12_800), 16_000)
