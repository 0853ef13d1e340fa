"""Similarity of a student's layers to its teacher's, over epochs: a table and a figure."""

import csv
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from asr_lightning.errors import InputError, reason
from asr_lightning.report import tables
from asr_lightning.report.figures import mark_epochs, save_figure


@dataclass(frozen=True)
class Similarity:
    """The similarity of a layer at an epoch.

    Attributes:
        epoch: How many epochs the student was trained; 0 before training.
        layer: Of the student, below its encoder.
        teacher_layer: That it is compared to.
        similarity: Linear CKA, from 0 to 1; NaN where a layer is constant.
    """

    epoch: int
    layer: str
    teacher_layer: str
    similarity: float


def as_csv(similarities: Sequence[Similarity]) -> str:
    """Return a table with the columns of `Similarity`."""
    return tables.as_csv([[field.name for field in fields(Similarity)], *map(astuple, similarities)])


def read_similarities(path: Path) -> list[Similarity]:
    """Read a table that `as_csv` made.

    Raises:
        InputError: It is another one, or damaged.
    """
    try:
        rows = list(csv.DictReader(path.read_text("utf-8").splitlines()))
        return [
            Similarity(int(row["epoch"]), row["layer"], row["teacher_layer"], float(row["similarity"])) for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected similarities by epoch and layer: {reason(error)}") from error


def plot_similarities(similarities: Sequence[Similarity], path: Path) -> None:
    """Draw a line over epochs for each layer, the lowest layer darkest, and write a PNG and an SVG.

    Args:
        similarities: Of all epochs.
        path: Of the picture of 6.4 × 4 inches; the other one stands beside it.
    """
    layers = list(dict.fromkeys(value.layer for value in similarities))
    figure = Figure((6.4, 4.0), dpi=300, layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    colors = colormaps["viridis"]
    for number, layer in enumerate(layers):
        points = [value for value in similarities if value.layer == layer]
        panel.plot(
            [point.epoch for point in points], [point.similarity for point in points], marker="o", markersize=3,
            linewidth=1.4, color=colors(0.9 * number / max(1, len(layers) - 1)),
            label=f"{layer}, of {points[0].teacher_layer}" if points[0].teacher_layer != layer else layer,
        )  # fmt: skip
    panel.set_xlabel("epochs trained")
    panel.set_ylabel("similarity to the teacher's layer (linear CKA)")
    panel.set_ylim(0.0, 1.02)
    mark_epochs(panel)
    panel.grid(color="0.9")
    figure.legend(loc="outside right upper", fontsize=8, title="student's layer", title_fontsize=8, frameon=False)
    save_figure(figure, path)
