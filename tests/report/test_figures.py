from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from asr_lightning.report.figures import (
    COLORS,
    ErrorRate,
    draw_legend,
    mark_epochs,
    mark_logarithmic,
    plot_error_rates,
    rates_by_run,
)
from tests.support.pictures import count, pixels


def rows_of(
    run: str,
    wer: Callable[[int], float],
    seeds: int = 1,
    epochs: int = 8,
    subsets: tuple[str, ...] = ("clean", "other"),
) -> list[ErrorRate]:
    """Rates that a function of the epoch gives, a little higher for each further seed and subset."""
    return [
        ErrorRate(run, str(seed), epoch, subset, wer(epoch) * (1 + 0.1 * seed + number), 0.1, 0.2, 0.1, 0.1)
        for seed in range(seeds)
        for epoch in range(1, epochs + 1)
        for number, subset in enumerate(subsets)
    ]


def test_two_panels_show_each_run_in_its_color(tmp_path: Path) -> None:
    rows = rows_of("random", lambda epoch: 1 / epoch, seeds=3) + rows_of("ws", lambda epoch: 0.5 / epoch)
    plot_error_rates(rows, tmp_path / "figures" / "wer.png")
    image = pixels(tmp_path / "figures" / "wer.png")
    assert image.shape == (1020, 2400, 3), "300 dots per inch"
    for half in (image[:900, :1200], image[:900, 1200:]):  # above the legend
        assert count(half, COLORS[0]) > 800
        assert count(half, COLORS[1]) > 800
        assert count(half, COLORS[2]) == 0
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert names == ["wer.png", "wer.svg"], "a temporary file was left"


def test_the_reference_is_a_dashed_line_and_no_curve(tmp_path: Path) -> None:
    rows = rows_of("ws", lambda epoch: 1 / epoch) + rows_of("a teacher", lambda epoch: 0.9 / epoch)
    plot_error_rates(rows, tmp_path / "with.png", reference_run="a teacher")
    image = pixels(tmp_path / "with.png")[90:850, 250:1180]
    assert count(image, COLORS[0]) > 200, "the first color is that of the first real run"
    assert count(image, COLORS[1]) == 0
    gray = (np.abs(image - 0.35).max(axis=2) < 0.05).sum(axis=1)  # by line of pixels
    assert 300 < gray.max() < 900, "a horizontal line with gaps"


def test_a_run_that_starts_at_100_per_cent_leaves_room_for_the_ends_of_the_others(tmp_path: Path) -> None:
    """Two ends of 4 and 5 % lie far apart in pixels, though one began at 100 %."""
    rows = rows_of("slow", lambda epoch: max(0.05, 1 - 0.2 * (epoch - 1)), subsets=("clean",))
    rows += rows_of("fast", lambda epoch: 0.04, subsets=("clean",))
    plot_error_rates(rows, tmp_path / "wer.png")
    column = pixels(tmp_path / "wer.png")[:900, 2250:2390]
    heights = [np.nonzero((np.abs(column - to_rgb(color)).max(axis=2) < 0.02).any(axis=1))[0] for color in COLORS[:2]]
    assert abs(heights[0].mean() - heights[1].mean()) > 20


def test_more_subsets_make_a_wider_figure_and_gaps_are_survived(tmp_path: Path) -> None:
    rows = rows_of("ws", lambda epoch: 0.0 if epoch > 4 else 1 / epoch, subsets=("a", "b", "c"), seeds=2)
    rows += [
        ErrorRate("short", "1", 1, "a", float("inf"), 0.0, 0.0, 0.0, 0.0),
        ErrorRate("short", "1", 2, "a", 0.3, 0.0, 0.0, 0.0, 0.0),
    ]
    plot_error_rates(rows, tmp_path / "wer.png")
    assert pixels(tmp_path / "wer.png").shape == (1020, 3600, 3)


def test_nothing_to_draw_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one run besides 'teacher', got 16 rows"):
        plot_error_rates(rows_of("teacher", lambda _: 0.1), tmp_path / "wer.png", reference_run="teacher")
    assert not list(tmp_path.iterdir())


def test_curves_are_sorted_by_epoch_and_metric() -> None:
    rows = [ErrorRate("ws", "1", epoch, "clean", epoch / 100, epoch / 200, 1.0, 1.0, 1.0) for epoch in (10, 2, 1)]
    assert list(rates_by_run(rows)["ws"]["clean"]["1"].items()) == [(1, 0.01), (2, 0.02), (10, 0.1)]
    assert rates_by_run(rows, "cer")["ws"]["clean"]["1"][10] == 0.05


@pytest.mark.parametrize("names", [1, 3, 12])
def test_a_legend_is_as_wide_as_its_figure_at_most(names: int) -> None:
    figure = Figure((5, 3), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    for panel in panels:
        for number in range(names):
            panel.plot([0, 1], label=f"a long name of a run, {number}")
    draw_legend(figure, panels, 5, fontsize=9)
    [legend] = figure.legends
    assert len(legend.get_texts()) == names
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0


def test_marks_are_numbers_that_a_reader_knows() -> None:
    """A logarithmic axis has no formulas, and a single epoch no fractions."""
    panel = Figure().subplots()
    panel.loglog([1], [1e-5])
    panel.set_ylim(1e-5, 1e-2)
    mark_logarithmic(panel.yaxis)
    labels = [panel.yaxis.get_major_formatter()(value) for value in panel.yaxis.get_majorticklocs()]
    assert {"1e-05", "0.001"} <= set(labels) and not any("$" in label for label in labels)
    panel.set_xscale("linear")
    panel.set_xlim(0.95, 1.05)
    mark_epochs(panel)
    assert 1 in panel.get_xticks() and all(tick % 1 == 0 for tick in panel.get_xticks())


def test_a_legend_of_many_runs_leaves_the_panel_its_size() -> None:
    heights = []
    for runs in (2, 30):
        figure = Figure((4.0, 3.4), layout="constrained")
        FigureCanvasAgg(figure)
        panel = figure.subplots()
        for number in range(runs):
            panel.plot([0, 1], label=f"a run with a long name, {number}")
        draw_legend(figure, [panel], 5)
        figure.draw_without_rendering()
        heights.append(panel.get_window_extent().height)
    assert heights[1] == pytest.approx(heights[0], rel=0.15)
