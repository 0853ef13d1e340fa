"""Figures of finished runs, for print."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from asr_lightning.files import replacing
from asr_lightning.report.fonts import set_fonts
from asr_lightning.scoring import Metric

matplotlib.rcParams["text.parse_math"] = False  # a $ in the name of a run is a $
matplotlib.rcParams["svg.fonttype"] = "path"  # so that an SVG needs no fonts

# Okabe and Ito: told apart with every kind of color vision, and in gray by their markers
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8B8000")
MARKERS = "osD^vPX*"
PANEL = (4.0, 3.4)  # inches
DOTS = 300  # per inch, as journals ask for
LEGEND = 0.5  # inches of two lines
FEW_EPOCHS = 25  # up to which each epoch gets a marker
FINE_STEPS = (1.0, 2.0, 3.0, 5.0, 7.0)  # of a logarithmic axis
WIDE_RANGE = 4.0  # largest by smallest rate, from which the axis is logarithmic


@dataclass(frozen=True, order=True)
class ErrorRate:
    """One line of an `error_rates.csv`.

    Attributes:
        run: Name of the experiment, the same for all its seeds.
        seed: As the run gave it; empty where unknown.
        epoch: 1 is the first finished one, 0 is before training.
        subset: Part of the corpus, as `test-clean`.
        wer, cer, ser, swer, unspaced_cer: Of `asr_lightning.scoring.error_rates`. Fractions: 0.1 is 10 %.
        utterances: How many were scored; None in older files, which do not count them, as for `words`.
        words: How many their references have.
    """

    run: str
    seed: str
    epoch: int
    subset: str
    wer: float
    cer: float
    ser: float
    swer: float
    unspaced_cer: float
    utterances: int | None = None
    words: int | None = None


def rates_by_run(
    rows: Iterable[ErrorRate], metric: Metric = "wer"
) -> dict[str, dict[str, dict[str, dict[int, float]]]]:
    """Sort rates by run, subset, seed and epoch: `rates_by_run(rows)["random"]["test-clean"]["1"][5]`."""
    sorted_rates: dict[str, dict[str, dict[str, dict[int, float]]]] = {}
    for row in sorted(rows):
        seeds = sorted_rates.setdefault(row.run, {}).setdefault(row.subset, {})
        seeds.setdefault(row.seed, {})[row.epoch] = getattr(row, metric)
    return sorted_rates


def plot_error_rates(
    rows: Sequence[ErrorRate], path: str | Path, metric: Metric = "wer", reference_run: str | None = None
) -> None:
    """Draw error rates per epoch: one panel per subset, one color per run, with shared axes.

    With several seeds, a run is a thin line per seed, their mean, and a band from the least to the greatest of them.
    If rates differ widely (runs that start at 100 %), the axis is logarithmic; a rate of 0 is below it.

    Args:
        rows: Of one or more runs.
        path: The PNG file to write; an SVG is written beside it.
        metric: Which rate.
        reference_run: A run that is a dashed horizontal line, the rate of its last epoch: the teacher of the others.

    Raises:
        ValueError: There is nothing to draw.
    """
    by_run = rates_by_run(rows, metric)
    reference = by_run.pop(reference_run, {}) if reference_run else {}
    subsets = sorted({row.subset for row in rows if row.run != reference_run})
    if not subsets:
        raise ValueError(f"expected error rates of at least one run besides {reference_run!r}, got {len(rows)} rows")
    figure = Figure((max(2, len(subsets)) * PANEL[0], PANEL[1]), layout="constrained")
    FigureCanvasAgg(figure)
    rates = [getattr(row, metric) for row in rows if row.run != reference_run]
    panels = figure.subplots(1, len(subsets), sharex=True, sharey=True, squeeze=False)[0]
    for panel, subset in zip(panels, subsets, strict=True):
        for number, (run, by_subset) in enumerate(by_run.items()):
            _draw_run(panel, by_subset.get(subset, {}), run, number)
        if subset in reference:
            last_rate = float(np.mean([list(seed.values())[-1] for seed in reference[subset].values()]))
            panel.axhline(
                100 * last_rate, color="0.35", linestyle="--", linewidth=1.8, label=f"{reference_run} (last epoch)"
            )
            rates.append(last_rate)
        panel.set_title(subset, fontsize=11)
        panel.set_xlabel("epoch", fontsize=10)
        panel.tick_params(labelsize=9)
        mark_epochs(panel)
        panel.grid(color="0.9")
    _scale_rates(panels[0], [100 * rate for rate in rates], metric)
    draw_legend(figure, panels, 5, fontsize=9)
    save_figure(figure, Path(path))


def mark_epochs(panel: Axes) -> None:
    """Put marks at whole epochs only, also where a single one is drawn."""
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    low, high = panel.get_xlim()
    if high - low < 1:
        panel.set_xlim(low - 1, high + 1)


def mark_logarithmic(axis: Axis, steps: Sequence[float] = (1.0,)) -> None:
    """Put marks on a logarithmic axis, and write numbers as they are: matplotlib's are formulas, which are not parsed.

    Args:
        axis: Of a panel.
        steps: Multiples of each power of ten that are marked.
    """
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def draw_legend(figure: Figure, panels: Iterable[Axes], max_columns: int, **options: Any) -> None:  # noqa: ANN401 - matplotlib's
    """Draw one legend of all panels below them, with as many columns as the figure is wide for.

    The figure becomes higher by what is needed for more than two lines.

    Args:
        figure: Whose layout is constrained.
        panels: With lines that have labels; the same label is one entry.
        max_columns: Greatest number of columns.
        **options: Of matplotlib's `Figure.legend`.
    """
    entries = {label: line for panel in panels for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    for columns in range(max(1, min(len(entries), max_columns)), 0, -1):
        legend = figure.legend(
            entries.values(), entries.keys(), loc="outside lower center", ncols=columns, frameon=False, **options
        )
        set_fonts(figure)
        figure.draw_without_rendering()
        extent = legend.get_window_extent()
        if columns == 1 or extent.width <= figure.bbox.width:
            figure.set_figheight(figure.get_figheight() + max(0.0, extent.height / figure.dpi - LEGEND))
            return
        legend.remove()


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG with 300 dots per inch, and as SVG with the same name beside it."""
    set_fonts(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix in ("png", "svg"):
        with replacing(path.with_suffix(f".{suffix}")) as temporary:
            figure.savefig(temporary, format=suffix, dpi=DOTS)


def _draw_run(panel: Axes, seeds: dict[str, dict[int, float]], run: str, number: int) -> None:
    if not seeds:
        return
    color = COLORS[number % len(COLORS)]
    epochs = sorted({epoch for rates in seeds.values() for epoch in rates})
    rates = np.array(
        [[100 * seed.get(epoch, np.nan) for epoch in epochs] for seed in seeds.values()]
    )  # (seeds, epochs)
    rates[np.isinf(rates)] = np.nan  # errors in a subset without any words
    if len(seeds) > 1:
        for seed_rates in rates:
            panel.plot(epochs, seed_rates, color=color, linewidth=0.8, alpha=0.5)
        measured = ~np.isnan(rates).all(axis=0)
        low, high = np.nanmin(rates[:, measured], axis=0), np.nanmax(rates[:, measured], axis=0)
        panel.fill_between(np.array(epochs)[measured], low, high, color=color, alpha=0.15, linewidth=0)
    mean = np.array(
        [
            epoch_rates[~np.isnan(epoch_rates)].mean() if not np.isnan(epoch_rates).all() else np.nan
            for epoch_rates in rates.T
        ]
    )
    marker = MARKERS[number % len(MARKERS)] if len(epochs) <= FEW_EPOCHS else None
    style = "-" if number < len(COLORS) else "-."
    label = run if len(seeds) == 1 else f"{run} ({len(seeds)} seeds)"
    panel.plot(epochs, mean, color=color, linewidth=1.6, marker=marker, markersize=4, linestyle=style, label=label)


def _scale_rates(panel: Axes, rates: Sequence[float], metric: Metric) -> None:
    """Choose the axis of the rates, in per cent, so that the end of training is readable beside its start."""
    positive = [rate for rate in rates if 0 < rate < np.inf]
    label = f"{metric.upper().replace('_', ' ')} (%)"
    if positive and max(positive) / min(positive) >= WIDE_RANGE:
        panel.set_yscale("log", nonpositive="clip")
        panel.set_ylim(min(positive) / 1.15, max(positive) * 1.15)
        mark_logarithmic(panel.yaxis, FINE_STEPS)
        label += ", logarithmic"
    elif positive:
        panel.set_ylim(bottom=0)
    panel.set_ylabel(label, fontsize=10)
