"""Gradient norms of runs and how much they change, early and late: a table and a figure [Han et al. 2024]."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from asr_lightning.analysis.training_curves import NormSpan, early_and_late
from asr_lightning.errors import InputError
from asr_lightning.report.figures import COLORS, draw_legend, mark_logarithmic, save_figure
from asr_lightning.report.run_folders import Experiment, read_metrics, versions
from asr_lightning.report.tables import Section, Table

PREFIX = "grad_norm/"
HEADER = ["module", "run", "seeds", *(f"{span} {quantity}" for quantity in ("norm", "change", "relative change")
                                      for span in ("early", "late"))]  # fmt: skip
POINTS = 100  # of a line in the figure
COLUMNS = 3  # modules side by side
PANEL = (2.9, 1.7)  # inches

Series = tuple[np.ndarray, np.ndarray]  # (N,) optimizer steps and (N,) gradient norms


def read_gradient_norms(folder: Path) -> dict[str, Series]:
    """Return the gradient norms of a run by module; a start that resumes replaces the steps that it repeats.

    Raises:
        InputError: The run has logged none, or a value is not a number.
    """
    norms: dict[str, dict[int, float]] = {}
    for path in versions(folder):
        start_norms: dict[str, dict[int, float]] = {}
        for row in read_metrics(path):
            for name, value in row.items():
                if value and (name or "").startswith(PREFIX):
                    step, norm = _numbers(path, row["step"], value)
                    start_norms.setdefault(name.removeprefix(PREFIX), {})[step] = norm
        for module, by_step in start_norms.items():
            earlier = {step: norm for step, norm in norms.get(module, {}).items() if step < min(by_step)}
            norms[module] = earlier | by_step
    if not norms:
        raise InputError(
            f"{folder}: expected {PREFIX}… in logs/version_<n>/metrics.csv, found none: every run logs them, unless "
            "gradient_norms.every_n_steps is 0"
        )
    return {module: (np.array(list(by_step)), np.array(list(by_step.values()))) for module, by_step in norms.items()}


def _numbers(path: Path, step: str, norm: str) -> tuple[int, float]:
    try:
        return int(step), float(norm)
    except ValueError as error:
        raise InputError(f"{path}: expected numbers as step and {PREFIX}…, found {step!r} and {norm!r}") from error


def gradient_table(runs: Mapping[str, Sequence[Path]], share: float = 0.1) -> Table:
    """Return a line for each module and run: its gradient norm, and how much this changes, early and late.

    Args:
        runs: Run folders of the seeds of each experiment, by its name, as `{"random": […], "selected": […]}`. Values
            are means over seeds, with the least and the greatest where there are several.
        share: Of the steps that are early, and of those that are late.

    Raises:
        InputError: A run has no gradient norms, or too few.
    """
    series = {name: [read_gradient_norms(folder) for folder in folders] for name, folders in runs.items()}
    rows: Table = [[*HEADER]]
    for module in _modules(series):
        for name, seeds in series.items():
            spans = [early_and_late(*seed[module], share) for seed in seeds if module in seed]
            if spans:
                rows.append([module, name, str(len(spans)), *_cells(spans)])
    return rows


def gradient_section(experiments: Sequence[Experiment], problems: list[str]) -> Section | None:
    """Return the section of gradient norms; None where no run has logged enough of them.

    Args:
        experiments: Over their seeds.
        problems: Receives the reasons why runs are left out.
    """
    runs: dict[str, list[Path]] = {}
    for experiment in experiments:
        for run in experiment.runs:
            try:
                gradient_table({experiment.name: [run.folder]})
                runs.setdefault(experiment.name, []).append(run.folder)
            except InputError as error:
                problems.append(f"gradients: {error}")
    if not runs:
        return None
    notes = [
        "Norms of a module's gradient before clipping. Early: the first tenth of the optimizer steps; late: the last.",
        "Change: the mean of |next - norm| from one logged step to the next; relative change: of |ln(next / norm)|. "
        "Means over seeds, with the least and the greatest.",
    ]  # fmt: skip
    return Section("gradients", gradient_table(runs), notes, files={
        "gradients.png": lambda path: plot_gradients(runs, path)
    })  # fmt: skip


def _modules(series: Mapping[str, Sequence[Mapping[str, Series]]]) -> list[str]:
    return list(dict.fromkeys(module for seeds in series.values() for seed in seeds for module in seed))


def _cells(spans: Sequence[tuple[NormSpan, NormSpan]]) -> list[str]:
    values = [[getattr(seed[span], quantity) for seed in spans]
              for quantity in ("norm", "change", "relative_change") for span in (0, 1)]  # fmt: skip
    return [
        _digits(statistics.fmean(row)) + (f" ({_digits(min(row))} to {_digits(max(row))})" if len(row) > 1 else "")
        for row in values
    ]


def _digits(value: float) -> str:
    """Write a number with three significant digits, zeros at its end included."""
    return f"{value:#.3g}".rstrip(".")


def plot_gradients(runs: Mapping[str, Sequence[Path]], path: Path) -> None:
    """Draw gradient norms, and their changes from one logged step to the next, and write a PNG and an SVG.

    Two panels for each module: its norms, and below the mean of |ln(next / norm)|. Lines are means over seeds in at
    most 100 spans of the training, with a band from the least to the greatest seed.

    Args:
        runs: As of `gradient_table`.
        path: Of the PNG; the SVG stands beside it.

    Raises:
        InputError: A run has no gradient norms.
    """
    series = {name: [read_gradient_norms(folder) for folder in folders] for name, folders in runs.items()}
    modules = _modules(series)
    columns = min(COLUMNS, len(modules))
    figure = Figure((PANEL[0] * columns, 2 * PANEL[1] * -(-len(modules) // columns) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 * -(-len(modules) // columns), columns, squeeze=False, sharex=True)
    for index, module in enumerate(modules):
        row, column = 2 * (index // columns), index % columns
        upper, lower = axes[row][column], axes[row + 1][column]
        for number, (name, seeds) in enumerate(series.items()):
            norms = [seed[module] for seed in seeds if module in seed]
            if not norms:
                continue
            color = COLORS[number % len(COLORS)]
            for panel, curves in ((upper, norms), (lower, [_changes(*curve) for curve in norms])):
                steps, low, mean, high = _band(curves)
                panel.plot(steps, mean, color=color, linewidth=1.2, label=name)
                panel.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
        upper.set_title(module, fontsize=10)
        upper.set_yscale("log")
        mark_logarithmic(upper.yaxis, (1.0, 2.0, 5.0))
        lower.set_ylim(bottom=0.0)
        if column == 0:
            upper.set_ylabel("gradient norm,\nbefore clipping", fontsize=9)
            lower.set_ylabel("change: mean\n|ln(next / norm)|", fontsize=9)
        if index + columns >= len(modules):  # nothing is below
            lower.set_xlabel("optimizer step", fontsize=9)
            lower.tick_params(axis="x", labelbottom=True)
        for panel in (upper, lower):
            panel.grid(color="0.9")
            panel.tick_params(labelsize=8)
    for panel in axes.reshape(-1, 2, columns).swapaxes(1, 2).reshape(-1, 2)[len(modules) :].flat:
        panel.remove()
    draw_legend(figure, figure.axes, len(series), fontsize=9)
    save_figure(figure, path)


def _changes(steps: np.ndarray, norms: np.ndarray) -> Series:
    nonzero = norms > 0  # norms of a frozen module are 0
    return steps[nonzero][1:], np.abs(np.diff(np.log(norms[nonzero])))


def _band(curves: Sequence[Series]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the middles of spans, and the least, the mean and the greatest seed's mean in each."""
    first_step = min((int(steps[0]) for steps, _ in curves if len(steps)), default=0)
    last_step = max((int(steps[-1]) for steps, _ in curves if len(steps)), default=1)
    longest = max((len(steps) for steps, _ in curves), default=1)
    edges = np.linspace(first_step, last_step + 1, min(POINTS, max(1, longest)) + 1)
    means = np.full((len(curves), len(edges) - 1), np.nan)
    for row, (steps, values) in enumerate(curves):
        spans = np.digitize(steps, edges) - 1
        counts = np.bincount(spans, minlength=means.shape[1])
        sums = np.bincount(spans, values, minlength=means.shape[1])
        means[row, counts > 0] = sums[counts > 0] / counts[counts > 0]
    filled = ~np.isnan(means).all(0)
    middles = ((edges[:-1] + edges[1:]) / 2)[filled]
    seed_means = means[:, filled]
    return middles, np.nanmin(seed_means, 0), np.nanmean(seed_means, 0), np.nanmax(seed_means, 0)
