"""Figure of confidences: how often words of each confidence are right."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from asr_lightning.analysis.calibration import Reliability
from asr_lightning.report.figures import COLORS, MARKERS, mark_logarithmic, save_figure

SIZE = (5.0, 5.4)  # inches


def plot_reliability(lines: Mapping[str, Reliability], path: Path) -> None:
    """Draw accuracy against confidence, and below how many words are in each bin; write a PNG and an SVG.

    Args:
        lines: By name.
        path: Of the PNG; the SVG stands beside it.

    Raises:
        ValueError: There is no line.
    """
    if not lines:
        raise ValueError("expected at least one reliability to draw, got none")
    figure = Figure(figsize=SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    accuracy_panel, count_panel = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    accuracy_panel.plot([0, 1], [0, 1], color="0.6", linestyle="--", label="perfectly calibrated")
    for number, (name, line) in enumerate(lines.items()):
        style = {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)]}
        accuracy_panel.plot(line.confidence, line.accuracy, label=f"{name}, ECE {line.expected_error:.3f}", **style)
        count_panel.plot(line.confidence, line.counts, **style)
    accuracy_panel.set_ylabel("share of right words")
    accuracy_panel.set_ylim(-0.03, 1.03)
    accuracy_panel.legend(frameon=False)
    count_panel.set_ylabel("words")
    count_panel.set_yscale("log")
    mark_logarithmic(count_panel.yaxis)
    count_panel.set_xlabel("confidence")
    count_panel.set_xlim(-0.03, 1.03)
    for panel in (accuracy_panel, count_panel):
        panel.grid(alpha=0.3)
    save_figure(figure, path)
