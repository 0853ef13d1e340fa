"""Pictures of layers: t-SNE by order and by phone [Lim et al. 2019, Figures 3 to 8], and numbers along the layers."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from asr_lightning.analysis.layers import LayerCurve, Projected
from asr_lightning.errors import InputError
from asr_lightning.files import replacing
from asr_lightning.report.figures import COLORS
from asr_lightning.text.phones import SILENCE

RED_TO_VIOLET = ("#e6194b", "#f58231", "#ffd700", "#3cb44b", "#00bcd4", "#3f51f5", "#8a2be2")
RAINBOW = LinearSegmentedColormap.from_list("rainbow", RED_TO_VIOLET)
PANEL = 4.6  # inches, at 100 dots per inch
LETTERS = 44  # that stand side by side below a panel
TITLE_LETTERS = 8  # capitals of a title that stand side by side on an inch
SPACE = "_"  # as the tokenizers write it
GREY = "0.55"
TITLES = {
    "purity": "phone purity of neighbours",
    "chance": "purity by chance",
    "order": "order correlation",
    "silence": "spread of silence",
    "probe": "linear phone probe",
}


def sentence_rows(projected: Projected, utterance: str) -> np.ndarray:
    """Return which frames are of an utterance, (N,), in the order of time."""
    return np.flatnonzero(projected.layer.utterances == utterance)


def plot_order(layers: Sequence[Projected], utterance: str, title: str, path: Path) -> None:
    """Draw a sentence's frames from red to violet in the order of time, with its characters along the color bar.

    Where nobody knows when its characters are said, as in a hybrid, its phones are there.

    Args:
        layers: One panel each.
        utterance: Which.
        title: What was said.
        path: PNG.
    """
    figure, panels = _panels(len(layers), extra=1.0)
    for panel, layer_points in zip(panels, layers, strict=True):
        rows = sentence_rows(layer_points, utterance)
        _trace(panel, layer_points.positions[rows])
        colors = np.linspace(0.0, 1.0, len(rows))
        panel.scatter(
            layer_points.positions[rows, 0], layer_points.positions[rows, 1], c=colors, cmap=RAINBOW, s=26, zorder=2
        )
        panel.set_title(layer_points.layer.name, fontsize=13)
    bar = figure.colorbar(
        matplotlib.cm.ScalarMappable(Normalize(0, 1), RAINBOW),
        ax=list(panels), orientation="horizontal", fraction=0.06, pad=0.02, aspect=60,
    )  # fmt: skip
    layer, rows, room = layers[0].layer, sentence_rows(layers[0], utterance), LETTERS * len(panels)
    if layer.characters[rows].astype(bool).any():
        positions, labels = _along(layer.characters[rows])
        if len(labels) > room:
            positions, labels = _apart(*_words(positions, labels), room)
    else:
        positions, labels = _apart(*_along(layer.phones[rows]), room)
    bar.set_ticks(positions, labels=labels)
    bar.ax.tick_params(labelsize=11, length=0)
    _save(figure, title, path)


def _along(labels: np.ndarray) -> tuple[list[float], list[str]]:
    """Return where along a sentence, 0 to 1, each label of its frames (N,) begins."""
    begins = [index for index in range(len(labels)) if labels[index] and (
        index == 0 or labels[index] != labels[index - 1]
    )]  # fmt: skip
    last = max(1, len(labels) - 1)
    return [index / last for index in begins], [str(labels[index]) for index in begins]


def _words(positions: Sequence[float], characters: Sequence[str]) -> tuple[list[float], list[str]]:
    """Return where the middle of each word is, and the word."""
    middles, words, start = [], [], 0
    for stop in [*(index for index, character in enumerate(characters) if character == SPACE), len(characters)]:
        if word := "".join(characters[start:stop]):
            middles.append((positions[start] + positions[stop - 1]) / 2)
            words.append(word)
        start = stop + 1
    return middles, words


def _apart(positions: Sequence[float], labels: Sequence[str], room: int) -> tuple[list[float], list[str]]:
    """Return the labels that do not overlap those before them on a bar of so many letters."""
    kept: tuple[list[float], list[str]] = [], []
    end = -1.0
    for position, label in zip(positions, labels, strict=True):
        half = (len(label) + 1) / room / 2
        if position - half >= end:
            kept[0].append(position)
            kept[1].append(label)
            end = position + half
    return kept


def plot_phones(layers: Sequence[Projected], utterance: str, title: str, path: Path) -> None:
    """Draw a sentence's frames with a color for each of its phones, silence in grey.

    Args:
        layers: One panel each.
        utterance: Which.
        title: What was said.
        path: PNG.

    Raises:
        InputError: The sentence has no phones.
    """
    labels = [layers[0].layer.phones[row] for row in sentence_rows(layers[0], utterance)]
    phones = [phone for phone in dict.fromkeys(labels) if phone]
    if not phones:
        raise InputError(
            f"expected phones of the frames of {utterance}, found none: choose a sentence that was aligned"
        )
    figure, panels = _panels(len(layers), extra=0.9)
    colors = phone_colors(phones)
    for panel, layer_points in zip(panels, layers, strict=True):
        rows = sentence_rows(layer_points, utterance)
        _trace(panel, layer_points.positions[rows])
        for phone in phones:
            mine = rows[layer_points.layer.phones[rows] == phone]
            marker = "x" if phone == SILENCE else "o"
            panel.scatter(
                layer_points.positions[mine, 0],
                layer_points.positions[mine, 1],
                color=colors[phone],
                s=26,
                zorder=2,
                marker=marker,
                label=phone,
            )
        rest = rows[layer_points.layer.phones[rows] == ""]  # beyond the labels, as at an utterance's end
        panel.scatter(
            layer_points.positions[rest, 0],
            layer_points.positions[rest, 1],
            facecolors="none",
            edgecolors=GREY,
            s=18,
            zorder=2,
        )
        panel.set_title(layer_points.layer.name, fontsize=13)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(14, max(1, len(names))), fontsize=11,
                  frameon=False, handletextpad=0.2, columnspacing=1.0)  # fmt: skip
    _save(figure, title, path)


def phone_colors(phones: Sequence[str]) -> dict[str, str]:
    """Return a color for every phone: hues apart, light and dark in turn, and grey for silence."""
    others = [phone for phone in phones if phone != SILENCE]
    colors = {}
    for number, phone in enumerate(others):
        hue = number / max(1, len(others))
        red, green, blue = matplotlib.colors.hsv_to_rgb((hue, 0.95, 0.95 if number % 2 else 0.6))
        colors[phone] = matplotlib.colors.to_hex((red, green, blue))
    return {**colors, SILENCE: "#8c8c8c"}


def plot_curves(curves: Sequence[LayerCurve], path: Path) -> None:
    """Draw what was measured along the layers, in the original space and in two dimensions, with 95 % intervals.

    What is known of no layer, as the spread of silence where none was labeled, has no panel.

    Raises:
        InputError: Nothing is known of any layer.
    """
    names = [name for name in TITLES if name != "chance" and is_known(curves, name)]
    if not names:
        raise InputError(
            "expected layers of which something was measured, found none: their speakers have a single utterance each, "
            "or their values are not finite; look into more utterances"
        )
    figure = Figure((PANEL * len(names) * 0.9, 4.2), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    for panel, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        chance = next(curve for curve in curves if curve.figure == "chance")
        if name == "purity":
            panel.plot(chance.layers, chance.means, color=GREY, linestyle=":", label="chance")
        for number, curve in enumerate(curve for curve in curves if curve.figure == name):
            errors = np.abs(np.nan_to_num(curve.intervals - curve.means[:, None])).T
            panel.errorbar(
                curve.layers, curve.means, yerr=errors, color=COLORS[number], marker="os"[number % 2], capsize=3,
                label={"original": "original space", "tsne": "t-SNE, 2-D"}[curve.space],
            )  # fmt: skip
        panel.set_title(TITLES[name], fontsize=13)
        panel.tick_params(axis="x", rotation=30)
        panel.grid(color="0.9")
        panel.legend(frameon=False, fontsize=10)
    with replacing(path) as half:
        figure.savefig(half, format="png")


def is_known(curves: Sequence[LayerCurve], name: str) -> bool:
    """Whether a number is known of any layer."""
    return any(np.isfinite(curve.means).any() for curve in curves if curve.figure == name)


def _panels(count: int, extra: float) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure((PANEL * count, PANEL + extra), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, count, squeeze=False)[0]
    for panel in panels:
        panel.set_xticks([])
        panel.set_yticks([])
        panel.set_aspect("equal", adjustable="box")
    return figure, panels


def _trace(panel: Axes, points: np.ndarray) -> None:
    """Draw the path of a sentence, in the middle of a square."""
    low, high = points.min(axis=0), points.max(axis=0)
    half = 0.54 * max(float((high - low).max()), 1e-3)
    middle = (low + high) / 2
    panel.set_xlim(middle[0] - half, middle[0] + half)
    panel.set_ylim(middle[1] - half, middle[1] + half)
    panel.plot(points[:, 0], points[:, 1], color="0.85", linewidth=0.8, zorder=1)


def _save(figure: Figure, title: str, path: Path) -> None:
    figure.suptitle(textwrap.fill(title, width=round(figure.get_figwidth() * TITLE_LETTERS)), fontsize=12)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as half:
        figure.savefig(half, format="png")
