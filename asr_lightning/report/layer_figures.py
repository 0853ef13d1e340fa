"""Figures of layers: t-SNE by order and by phone [Lim et al. 2019, Figures 3 to 8], and curves along the layers."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from asr_lightning.analysis.layers import LayerCurve, LayerProjection
from asr_lightning.errors import InputError
from asr_lightning.report.figures import draw_legend, save_figure
from asr_lightning.report.phone_style import MATPLOTLIB, phone_styles

RED_TO_VIOLET = ("#e6194b", "#f58231", "#ffd700", "#3cb44b", "#00bcd4", "#3f51f5", "#8a2be2")
RAINBOW = LinearSegmentedColormap.from_list("rainbow", RED_TO_VIOLET)
PANEL = 2.4  # inches
COLUMNS = 4  # panels side by side
LEGEND_ENTRY = 0.78  # inches of a phone in the legend
LETTERS = 26  # that fit below a panel side by side
TITLE_LETTERS = 13  # of a title that fit on an inch
SPACE = "_"  # as the tokenizers write it
GRAY = "0.55"
TITLES = {
    "purity": "phone purity of neighbours",
    "chance": "purity by chance",
    "order": "order correlation",
    "silence": "spread of silence",
    "probe": "accuracy of a linear phone probe",
}
UNITS = {
    "purity": "share of neighbours",
    "order": "rank correlation",
    "silence": "share of the spread of all frames",
    "probe": "share of frames",
}


def sentence_rows(projected: LayerProjection, utterance: str) -> np.ndarray:
    """Return the frames of an utterance, (N,), in the order of time."""
    return np.flatnonzero(projected.layer.utterances == utterance)


def plot_order(layers: Sequence[LayerProjection], utterance: str, title: str, path: Path) -> None:
    """Draw the frames of a sentence from red to violet in the order of time, with its characters along the color bar.

    If the times of characters are unknown, as in a hybrid, the bar shows phones.

    Args:
        layers: One panel each.
        utterance: Its name.
        title: The transcript.
        path: PNG; an SVG is written beside it.
    """
    figure, panels = _panels(len(layers), extra=0.6)
    for panel, layer_points in zip(panels, layers, strict=True):
        points = layer_points.positions[sentence_rows(layer_points, utterance)]
        _trace(panel, points)
        colors = np.linspace(0.0, 1.0, len(points))
        panel.scatter(
            points[:, 0], points[:, 1], c=colors, cmap=RAINBOW, s=14, linewidths=0.3, edgecolors="0.35", zorder=2
        )
        panel.set_title(layer_points.layer.name, fontsize=9)
    bar = figure.colorbar(
        matplotlib.cm.ScalarMappable(Normalize(0, 1), RAINBOW),
        ax=list(panels), orientation="horizontal", fraction=0.06, pad=0.02, aspect=60,
    )  # fmt: skip
    columns = min(COLUMNS, len(layers))
    layer, rows, room = layers[0].layer, sentence_rows(layers[0], utterance), LETTERS * columns
    if layer.characters[rows].astype(bool).any():
        positions, labels = _label_positions(layer.characters[rows])
        if len(labels) > room:
            positions, labels = _without_overlaps(*_words(positions, labels), room)
    else:
        positions, labels = _without_overlaps(*_label_positions(layer.phones[rows]), room)
    bar.set_ticks(positions, labels=["␣" if label == SPACE else label for label in labels])
    bar.ax.tick_params(labelsize=8, length=0)
    _save(figure, title, path)


def _label_positions(labels: np.ndarray) -> tuple[list[float], list[str]]:
    """Return the positions along a sentence, 0 to 1, at which the labels of its frames (N,) begin."""
    begins = [index for index in range(len(labels)) if labels[index] and (
        index == 0 or labels[index] != labels[index - 1]
    )]  # fmt: skip
    last_index = max(1, len(labels) - 1)
    return [index / last_index for index in begins], [str(labels[index]) for index in begins]


def _words(positions: Sequence[float], characters: Sequence[str]) -> tuple[list[float], list[str]]:
    """Return the positions of the middles of words, and the words."""
    middles, words, start = [], [], 0
    for stop in [*(index for index, character in enumerate(characters) if character == SPACE), len(characters)]:
        if word := "".join(characters[start:stop]):
            middles.append((positions[start] + positions[stop - 1]) / 2)
            words.append(word)
        start = stop + 1
    return middles, words


def _without_overlaps(positions: Sequence[float], labels: Sequence[str], room: int) -> tuple[list[float], list[str]]:
    """Return positions and labels without those that would overlap on a bar of `room` letters."""
    shown: tuple[list[float], list[str]] = [], []
    end = -1.0
    for position, label in zip(positions, labels, strict=True):
        half = (len(label) + 1) / room / 2
        if position - half >= end:
            shown[0].append(position)
            shown[1].append(label)
            end = position + half
    return shown


def plot_phones(layers: Sequence[LayerProjection], utterance: str, title: str, path: Path) -> None:
    """Draw the frames of a sentence by phone: a color for each class of phones, a shape for each phone of a class.

    The legend has the IPA symbols, with the codes of the corpus in brackets where they differ.

    Args:
        layers: One panel each.
        utterance: Its name.
        title: The transcript.
        path: PNG; an SVG is written beside it.

    Raises:
        InputError: The sentence has no phones.
    """
    labels = layers[0].layer.phones[sentence_rows(layers[0], utterance)]
    phones = [phone for phone in dict.fromkeys(labels.tolist()) if phone]
    if not phones:
        raise InputError(
            f"expected phones of the frames of {utterance}, found none: choose a sentence that was aligned"
        )
    styles = phone_styles(layers[0].layer.phones[layers[0].layer.phones != ""].tolist())
    columns = int(PANEL * min(COLUMNS, len(layers)) / LEGEND_ENTRY)
    figure, panels = _panels(len(layers), extra=0.3 + 0.18 * -(-len(phones) // columns))
    for panel, layer_points in zip(panels, layers, strict=True):
        rows = sentence_rows(layer_points, utterance)
        _trace(panel, layer_points.positions[rows])
        for phone in phones:
            points = layer_points.positions[rows[layer_points.layer.phones[rows] == phone]]
            style = styles.get(phone) or phone_styles([phone])[phone]
            panel.scatter(
                points[:, 0],
                points[:, 1],
                color=style.color,
                s=15,
                linewidths=0.4,
                zorder=2,
                marker=MATPLOTLIB[style.shape],
            )
        unlabeled = layer_points.positions[rows[layer_points.layer.phones[rows] == ""]]  # after the last label
        panel.scatter(unlabeled[:, 0], unlabeled[:, 1], facecolors="none", edgecolors=GRAY, s=10, zorder=2)
        panel.set_title(layer_points.layer.name, fontsize=9)
    handles = [
        Line2D([], [], linestyle="", color=style.color, markersize=5, marker=MATPLOTLIB[style.shape],
               label=style.ipa if style.ipa == phone else f"{style.ipa} ({phone})")
        for phone, style in styles.items()
        if phone in phones
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), columns), fontsize=8,
                  frameon=False, handletextpad=0.1, columnspacing=0.9)  # fmt: skip
    _save(figure, title, path)


def plot_curves(curves: Sequence[LayerCurve], path: Path) -> None:
    """Draw measurements along the layers, in their own space and in the plane of t-SNE, with 95 % intervals.

    A measurement that is known of no layer, as the spread of silence without silent frames, has no panel. A single
    speaker gives no interval, and the figure says so.

    Raises:
        InputError: No measurement is known of any layer.
    """
    names = [name for name in TITLES if name != "chance" and is_known(curves, name)]
    if not names:
        raise InputError(
            "expected layers of which something was measured, found none: their speakers have a single utterance each, "
            "or their values are not finite; look into more utterances"
        )
    columns = min(len(names), 2)
    height = 2.6 * -(-len(names) // columns)
    figure = Figure((3.6 * columns, height + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(-(-len(names) // columns), columns, squeeze=False).flatten()
    chance = next(curve for curve in curves if curve.figure == "chance")
    for panel, name in zip(panels, names, strict=False):
        if name == "purity":
            panel.plot(short_names(chance.layers), chance.means, color=GRAY, linestyle=":", label="chance")
        for number, curve in enumerate(curve for curve in curves if curve.figure == name):
            errors = np.abs(np.nan_to_num(curve.intervals - curve.means[:, None])).T
            panel.errorbar(
                short_names(curve.layers), curve.means, yerr=errors if errors.any() else None,
                color=("black", GRAY)[number % 2], linestyle=("-", "--")[number % 2],
                marker="os"[number % 2], markersize=4, capsize=3, linewidth=1.2,
                label={"original": "the layer's own space", "tsne": "plane of t-SNE"}[curve.space],
            )  # fmt: skip
        panel.set_title(TITLES[name], fontsize=10)
        panel.set_ylabel(UNITS[name], fontsize=8)
        if min(line.get_ydata().min() for line in panel.get_lines()) >= 0:
            panel.set_ylim(bottom=0.0)
        panel.tick_params(labelsize=8)
        for label in panel.get_xticklabels():
            label.set(rotation=30, horizontalalignment="right", rotation_mode="anchor")
        panel.grid(color="0.9")
    for panel in panels[len(names) :]:
        panel.remove()
    bounded = any(np.isfinite(curve.intervals).any() for curve in curves)
    title = "means over speakers with 95 % intervals" if bounded else "one speaker: no intervals"
    draw_legend(figure, panels[: len(names)], 3, fontsize=8, title=title, title_fontsize=8)
    save_figure(figure, path)


def short_names(layers: Sequence[str]) -> list[str]:
    """Return the names of layers without the modules that all of them are in: `layers.0` of `encoder.layers.0`."""
    parts = [layer.split(".") for layer in layers]
    shared = 0
    while len(parts) > 1 and all(len(part) > shared + 1 and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    return [".".join(part[shared:]) for part in parts]


def is_known(curves: Sequence[LayerCurve], name: str) -> bool:
    """Whether a measurement is known of any layer."""
    return any(np.isfinite(curve.means).any() for curve in curves if curve.figure == name)


def _panels(count: int, extra: float) -> tuple[Figure, Sequence[Axes]]:
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    figure = Figure((PANEL * columns, (PANEL + 0.25) * rows + extra), layout="constrained")
    FigureCanvasAgg(figure)
    panels: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flatten())
    for panel in panels[count:]:
        panel.remove()
    for panel in panels[:count]:
        panel.set_xticks([])
        panel.set_yticks([])
        panel.set_box_aspect(1)
        panel.set_aspect("equal", adjustable="datalim")
    return figure, panels[:count]


def _trace(panel: Axes, points: np.ndarray) -> None:
    """Draw the path of a sentence in a square that its longer extent fills."""
    low, high = points.min(axis=0), points.max(axis=0)
    half = 0.54 * max(float((high - low).max()), 1e-3)
    middle = (low + high) / 2
    panel.set_xlim(middle[0] - half, middle[0] + half)
    panel.set_ylim(middle[1] - half, middle[1] + half)
    panel.plot(points[:, 0], points[:, 1], color="0.85", linewidth=0.6, zorder=1)


def _save(figure: Figure, title: str, path: Path) -> None:
    figure.suptitle(textwrap.fill(title, width=max(24, round(figure.get_figwidth() * TITLE_LETTERS))), fontsize=9)
    save_figure(figure, path)
