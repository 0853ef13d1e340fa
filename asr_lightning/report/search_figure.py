"""Figure of a hyper-parameter search: the error rate of each trial, and over each searched value."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial

from asr_lightning.report.figures import COLORS, mark_logarithmic, save_figure

COLUMNS = 3
PANEL = (3.6, 2.8)  # inches


def plot_search(trials: Sequence[FrozenTrial], keys: Sequence[str], label: str, path: Path) -> None:
    """Draw one panel of the trials in their order with the best so far, and one for each key; write a PNG and an SVG.

    Args:
        trials: Finished ones, with their values as fractions.
        keys: Searched keys.
        label: Label of the vertical axes.
        path: PNG; an SVG is written beside it.
    """
    ordered = sorted(trials, key=lambda trial: trial.number)
    rates = 100.0 * np.array([trial.value for trial in ordered], dtype=float)
    count = 1 + len(keys)
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    numbers = [trial.number for trial in ordered]
    panels[0].plot(numbers, rates, "o", color=COLORS[0], label="a trial")
    panels[0].step(numbers, np.minimum.accumulate(rates), where="post", color=COLORS[1], label="best so far")
    panels[0].set_xlabel("trial")
    panels[0].xaxis.get_major_locator().set_params(integer=True)
    panels[0].legend(frameon=False)
    for panel, key in zip(panels[1:], keys, strict=False):
        _draw(panel, ordered, rates, key)
    for panel in panels[:count:columns]:
        panel.set_ylabel(label)
    for panel in panels[count:]:
        panel.remove()
    for panel in panels[:count]:
        panel.grid(alpha=0.3)
    save_figure(figure, path)


def _draw(panel: Axes, trials: Sequence[FrozenTrial], rates: np.ndarray, key: str) -> None:
    with_key = [(trial, rate) for trial, rate in zip(trials, rates, strict=True) if key in trial.params]
    distributions = [trial.distributions[key] for trial, _ in with_key]
    values = [trial.params[key] for trial, _ in with_key]
    if any(isinstance(distribution, CategoricalDistribution) for distribution in distributions):
        values = [str(value) for value in values]
    elif any(getattr(distribution, "log", False) for distribution in distributions):
        panel.set_xscale("log")
        mark_logarithmic(panel.xaxis)
    panel.plot(values, [rate for _, rate in with_key], "o", color=COLORS[0])
    panel.set_xlabel(short_name(key))


def short_name(key: str) -> str:
    """Return the last two parts of a dotted key, without `init_args`."""
    return ".".join([part for part in key.split(".") if part != "init_args"][-2:])
