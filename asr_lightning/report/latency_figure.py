"""Figure of error rates against the delay of words."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from asr_lightning.report.figures import COLORS, MARKERS, PANEL, draw_legend, save_figure


class Point(NamedTuple):
    """A network with one look-ahead.

    Attributes:
        label: Written beside it.
        delay: Median delay of words, in seconds.
        late: Their 90th percentile.
        wer: Word error rate, as a fraction.
    """

    label: str
    delay: float
    late: float
    wer: float


def plot_latency(panels: Mapping[str, Mapping[str, Sequence[Point]]], path: Path) -> None:
    """Draw WER against the median delay of words, with a line to its 90th percentile, in a panel per subset.

    Args:
        panels: Points by subset and network. Points without a delay, since no word is right, are left out.
        path: Of the PNG; an SVG is written beside it.

    Raises:
        ValueError: There is no point with a delay.
    """
    measured = {
        subset: {name: [point for point in points if np.isfinite([point.delay, point.wer]).all()]
                 for name, points in networks.items()}
        for subset, networks in panels.items()
    }  # fmt: skip
    if not any(points for networks in measured.values() for points in networks.values()):
        raise ValueError("expected a network with a delay to draw, got none: no word is recognized right")
    figure = Figure((max(1.5, len(panels)) * PANEL[0], 1.1 * PANEL[1]), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for panel, (subset, networks) in zip(axes, measured.items(), strict=True):
        for number, (name, points) in enumerate(networks.items()):
            if not points:
                continue
            points = sorted(points, key=lambda point: point.delay)
            color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
            delays, late = (np.array([1000 * getattr(point, value) for point in points]) for value in ("delay", "late"))
            rates = [100 * point.wer for point in points]
            panel.hlines(rates, delays, late, color=color, linewidth=0.8, alpha=0.5)
            panel.plot(delays, rates, color=color, marker=marker, markersize=5, linewidth=1.4, label=name)
            for index, (point, delay, rate) in enumerate(zip(points, delays, rates, strict=True)):
                above = index % 2 == 0  # neighbours are near each other
                panel.annotate(
                    point.label, (delay, rate), (0, 5 if above else -5), textcoords="offset points", fontsize=7,
                    color=color, ha="center", va="bottom" if above else "top",
                )  # fmt: skip
        panel.margins(y=0.12)
        panel.set_title(subset, fontsize=11)
        panel.set_xlabel("delay of words, ms: median and 90 %", fontsize=10)
        panel.tick_params(labelsize=9)
        panel.grid(color="0.9")
    axes[0].set_ylabel("WER, %", fontsize=10)
    draw_legend(figure, axes, 4, fontsize=9)
    save_figure(figure, path)
