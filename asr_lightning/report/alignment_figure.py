"""Figures of the alignment of an utterance: attention weights, and posteriors with the emitted tokens."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from asr_lightning.report.figures import COLORS, save_figure

MOST = len(COLORS)  # tokens whose posteriors are drawn beside the blank: one color each
WIDTH = 7.5  # inches, at least, and
WIDEST = 14.0  # at most, so that the tokens above posteriors do not overlap
LETTER = 0.085  # inches of a letter there, of 8 points
TOKEN = 0.13  # inches of a row of attention weights
TITLE_LETTERS = 90  # in a line of the title
SPACE = "␣"
EMISSION = "emission"  # in place of an attention, what a transducer has: probabilities, which are no weights


@dataclass(frozen=True)
class UtteranceAlignment:
    """Alignment of one utterance with its recognized tokens.

    Attributes:
        utterance: Name.
        title: The recognized text.
        tokens: U names of the recognized tokens.
        seconds: Duration.
        attention: (U + 1, T) for every name of an attention; the last row is for the end of the sentence. Of a
            transducer (U, T) by the name `EMISSION`: how probable it is that each token is emitted at each frame.
        posteriors: (T, V) probabilities of the CTC output or, of a transducer, of passing each frame with each token.
        vocabulary: V names, if there are posteriors.
        onsets: U frames at which tokens were emitted, if known.
        blank_id: The blank's column.
    """

    utterance: str
    title: str
    tokens: Sequence[str]
    seconds: float
    attention: dict[str, np.ndarray]
    posteriors: np.ndarray | None
    vocabulary: Sequence[str]
    onsets: Sequence[int]
    blank_id: int


def display_token(token: str) -> str:
    """Return a token as it is drawn: matplotlib leaves names that begin with `_` out of legends."""
    return token.replace("_", SPACE).replace("▁", SPACE)


def plot_alignment(utterance: UtteranceAlignment, path: Path) -> None:
    """Draw attention weights, tokens over time, and posteriors with the emitted tokens; write a PNG and an SVG.

    Emitted tokens stand above their frames, word boundaries in a row of their own.
    """
    heights = [max(2.0, min(14.0, TOKEN * len(weights))) for weights in utterance.attention.values()]
    heights += [2.6] if utterance.posteriors is not None else []
    width = WIDTH
    if utterance.posteriors is not None:
        width = min(max(WIDTH, LETTER * sum(map(len, utterance.tokens)) + 1.0), WIDEST)
    figure = Figure((width, sum(heights) + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(heights), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for panel, (name, weights) in zip(panels, utterance.attention.items(), strict=False):
        image = panel.imshow(
            weights, aspect="auto", origin="upper", cmap="Blues", vmin=0.0, interpolation="nearest",
            extent=(0.0, utterance.seconds, len(weights) - 0.5, -0.5),
        )  # fmt: skip
        names = [*map(display_token, utterance.tokens), "end"][: len(weights)]
        panel.set_yticks(range(len(weights)), names, fontsize=7)
        panel.set_ylabel("token", fontsize=9)
        panel.set_title(name, fontsize=10)
        bar = figure.colorbar(image, ax=panel, pad=0.01, aspect=30)
        bar.set_label("probability" if name == EMISSION else "weight", fontsize=9)
        bar.ax.tick_params(labelsize=8)
    if utterance.posteriors is not None:
        _draw_posteriors(panels[-1], utterance, utterance.posteriors, width - 1.0)
    panels[-1].set_xlabel("time (s)", fontsize=9)
    for panel in panels:
        panel.tick_params(axis="x", labelsize=8)
    figure.suptitle(textwrap.fill(f"{utterance.utterance}: {utterance.title}", TITLE_LETTERS), fontsize=10)
    save_figure(figure, path)


def spread(middles: Sequence[float], widths: Sequence[float], end: float) -> list[float]:
    """Return middles (N,) moved to the right where they overlap, and back where they would reach beyond the end."""
    moved = list(middles)
    for index in range(1, len(moved)):
        moved[index] = max(moved[index], moved[index - 1] + (widths[index - 1] + widths[index]) / 2)
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], end - widths[index] / 2)
        end = moved[index] - widths[index] / 2
    return moved


def _draw_posteriors(panel: Axes, utterance: UtteranceAlignment, posteriors: np.ndarray, room: float) -> None:
    """Draw probabilities over time, and the emitted tokens above them, on a panel of `room` inches."""
    times = (np.arange(len(posteriors)) + 0.5) * utterance.seconds / len(posteriors)
    panel.plot(times, posteriors[:, utterance.blank_id], color="0.6", linewidth=1.0, label="blank")
    peaks = np.delete(posteriors.max(axis=0), utterance.blank_id)
    columns = np.delete(np.arange(posteriors.shape[1]), utterance.blank_id)
    for number, column in enumerate(columns[np.argsort(-peaks)[:MOST]]):
        panel.plot(times, posteriors[:, column], color=COLORS[number], linewidth=1.1,
                   label=display_token(utterance.vocabulary[column]))  # fmt: skip
    for height, is_space in ((1.04, False), (1.13, True)):
        emitted = [
            (float(times[onset]), display_token(token))
            for onset, token in zip(utterance.onsets, utterance.tokens, strict=False)
            if (display_token(token) == SPACE) == is_space
        ]
        widths = [LETTER * len(token) * utterance.seconds / room for _, token in emitted]
        shrink = min(1.0, utterance.seconds / max(sum(widths), 1e-9))
        middles = spread([time for time, _ in emitted], [shrink * width for width in widths], utterance.seconds)
        for middle, (_, token) in zip(middles, emitted, strict=True):
            panel.annotate(token, (middle, height), fontsize=8 * shrink, ha="center", annotation_clip=False)
    panel.set_xlim(0.0, utterance.seconds)
    panel.set_ylim(0.0, 1.22)
    panel.set_yticks(np.linspace(0.0, 1.0, 6))
    panel.tick_params(axis="y", labelsize=8)
    panel.set_ylabel("probability", fontsize=9)
    panel.legend(frameon=False, fontsize=8, ncols=MOST + 1, loc="upper center", bbox_to_anchor=(0.5, -0.16))
