"""Figures of the line between two networks, and of convergence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from asr_lightning.analysis.convergence import Backcast, PowerLaw, Prediction
from asr_lightning.report.figures import (
    COLORS,
    FINE_STEPS,
    MARKERS,
    PANEL,
    WIDE_RANGE,
    draw_legend,
    mark_epochs,
    mark_logarithmic,
    save_figure,
)


@dataclass(frozen=True)
class ConvergenceCurve:
    """Error rates of a run on a subset over epochs, with the power law fitted to them.

    Attributes:
        run: Name of the experiment, the same for all its seeds.
        subset: Part of the corpus.
        seeds: How many were trained.
        measured: Epoch and rate, as a fraction, of all measurements of all seeds from epoch 1 on.
        law: Fitted to all of these; None if no curve could be fitted, with the reason in `problem`.
        forecast: Of `law`, from the first epoch beyond the last one.
        backcast: Fitted to the first epochs, and held against the later ones; None where these are too few.
        early: What that curve predicts for the epochs of `forecast`.
        problem: Why there is no curve; empty where there is one.
    """

    run: str
    subset: str
    seeds: int
    measured: list[tuple[int, float]]
    law: PowerLaw | None = None
    forecast: Prediction | None = None
    backcast: Backcast | None = None
    early: Prediction | None = None
    problem: str = ""


def plot_lines(panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], path: Path) -> None:
    """Draw what was measured on lines between networks, one panel for each measure, and write a PNG and an SVG.

    Args:
        panels: By the label of the measure with its unit, by the name of the line: α and value, in the order of α.
        path: PNG; an SVG is written beside it. An axis of widely differing values is logarithmic.
    """
    figure, axes = _figure(len(panels))
    for panel, (label, lines) in zip(axes, panels.items(), strict=True):
        for end in (0.0, 1.0):
            panel.axvline(end, color="0.6", linewidth=1.0, linestyle="--")
        for number, (name, points) in enumerate(lines.items()):
            alphas, values = zip(*points, strict=True)
            panel.plot(
                alphas, values, color=COLORS[number % len(COLORS)], marker=MARKERS[number % len(MARKERS)],
                linewidth=1.5, markersize=4.0, label=name,
            )  # fmt: skip
        panel.set_xlabel("α: first network at 0, second at 1", fontsize=10)
        panel.set_ylabel(
            label + _scale([value for points in lines.values() for _, value in points], panel), fontsize=10
        )
    _finish(figure, axes, path, columns=1)


def plot_convergence(curves: Sequence[ConvergenceCurve], label: str, level: float, path: Path) -> None:
    """Draw measured rates with the curves fitted to them, one panel for each subset, on shared axes.

    A PNG and an SVG are written.

    Args:
        curves: Of some runs on some subsets. Each is drawn as dots (all seeds), the curve fitted to all epochs with the
            band in which measurements are expected, and the curve of the first epochs, dotted.
        label: Of the vertical axes, with the unit: rates are drawn in per cent.
        level: Share of measurements that the band is to hold.
        path: PNG; an SVG is written beside it.
    """
    subsets = sorted({curve.subset for curve in curves})
    runs = list(dict.fromkeys(curve.run for curve in curves))
    figure, axes = _figure(len(subsets), shared=True)
    rates = [100 * rate for curve in curves for _, rate in curve.measured]
    axes[0].set_ylabel(label + _scale(rates, axes[0]), fontsize=10)
    for panel, subset in zip(axes, subsets, strict=True):
        subset_curves = [curve for curve in curves if curve.subset == subset]
        for curve in subset_curves:
            _draw(panel, curve, COLORS[runs.index(curve.run) % len(COLORS)])
        panel.set_title(subset, fontsize=11)
        panel.set_xlabel("epoch", fontsize=10)
        mark_epochs(panel)
        panel.grid(color="0.9")
        panel.tick_params(labelsize=9)
    positive = [rate for rate in rates if 0 < rate < np.inf]
    if positive:  # a band may be infinitely wide
        axes[0].set_ylim(min(positive) / 1.6 if axes[0].get_yscale() == "log" else 0, max(positive) * 1.15)
    if any(curve.forecast is not None for curve in curves):  # looks that all runs share, in the legend once
        axes[0].plot([], [], color="0.4", linewidth=1.5, label="fitted")
        axes[0].fill_between([], [], color="0.4", alpha=0.15, linewidth=0, label=f"{level:.0%} of measurements")
    if any(curve.early is not None for curve in curves):
        axes[0].plot([], [], ":", color="0.4", linewidth=1.5, label="from the first epochs")
    _finish(figure, axes, path, columns=6)


def _draw(panel: Axes, curve: ConvergenceCurve, color: str) -> None:
    epochs, rates = zip(*curve.measured, strict=True)
    panel.plot(epochs, [100 * rate for rate in rates], "o", color=color, markersize=3.5, label=curve.run)
    if curve.forecast is not None:
        forecast = curve.forecast
        panel.plot(forecast.epochs, 100 * forecast.rates, color=color, linewidth=1.5)
        panel.fill_between(
            forecast.epochs, 100 * forecast.lower, 100 * np.minimum(forecast.upper, 1e3), color=color, alpha=0.15,
            linewidth=0,
        )  # fmt: skip
    if curve.early is not None:
        panel.plot(curve.early.epochs, 100 * curve.early.rates, ":", color=color, linewidth=1.5)


def _figure(panels: int, shared: bool = False) -> tuple[Figure, list[Axes]]:
    figure = Figure((panels * PANEL[0], PANEL[1]), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, panels, squeeze=False, sharey=shared)[0])


def _scale(values: Sequence[float], panel: Axes) -> str:
    """Make the axis logarithmic where values differ widely; return what to add to its label."""
    positive = [value for value in values if 0 < value < np.inf]
    panel.grid(color="0.9")
    panel.tick_params(labelsize=9)
    if not positive or max(positive) / min(positive) < WIDE_RANGE:
        return ""
    panel.set_yscale("log", nonpositive="clip")
    mark_logarithmic(panel.yaxis, FINE_STEPS)
    return ", logarithmic"


def _finish(figure: Figure, axes: Sequence[Axes], path: Path, columns: int) -> None:
    draw_legend(figure, axes, columns, fontsize=8)
    save_figure(figure, path)
