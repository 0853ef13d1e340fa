from pathlib import Path

from asr_lightning.analysis.convergence import backcast, fit
from asr_lightning.report.figures import COLORS
from asr_lightning.report.path_figures import ConvergenceCurve, plot_convergence, plot_lines
from tests.support.pictures import count, pixels


def test_each_measure_has_a_panel_and_each_line_its_color(tmp_path: Path) -> None:
    points = [(-0.25, 3.0), (0.0, 2.0), (1.0, 2.5)]
    panels = {"loss (nats)": {"a to b": points, "a to c": [(position, 2 * loss) for position, loss in points]},
              "WER (%)": {"a to b": points}}  # fmt: skip
    plot_lines(panels, tmp_path / "path.png")
    image = pixels(tmp_path / "path.png")
    assert image.shape == (1020, 2400, 3)
    left, right = image[:880, :1200], image[:880, 1200:]  # above the legend
    assert [count(left, color) > 200 for color in COLORS[:3]] == [True, True, False]
    assert [count(right, color) > 200 for color in COLORS[:3]] == [True, False, False]


def convergence(run: str, rates: list[float], ahead: bool) -> ConvergenceCurve:
    curve = dict(enumerate(rates, start=1))
    law = fit(list(curve), rates)
    past = backcast([curve], 4)
    epochs = [1, 2, 4, 8, 12]
    return ConvergenceCurve(
        run, "clean", 1, list(curve.items()), law, law.predict(epochs) if ahead else None, past,
        past.curve.predict(epochs) if ahead else None,
    )  # fmt: skip


def test_curves_are_drawn_beyond_what_was_measured(tmp_path: Path) -> None:
    rates = [0.5, 0.36, 0.29, 0.27, 0.25, 0.23]
    reach = {}
    for ahead in (True, False):
        plot_convergence([convergence("run", rates, ahead)], "WER (%)", 0.9, tmp_path / "wer.png")
        image = pixels(tmp_path / "wer.png")[:850]
        blue = (abs(image - [0.0, 0x72 / 255, 0xB2 / 255]) < 0.02).all(axis=2)
        reach[ahead] = int(blue.sum())
    assert reach[True] > 2 * reach[False] > 0


def test_widely_differing_rates_and_infinite_bands_can_be_drawn(tmp_path: Path) -> None:
    short = fit([1, 2, 3], [0.9, 0.2, 0.05])
    curve = ConvergenceCurve("run", "clean", 1, [(1, 0.9), (2, 0.2), (3, 0.05)], short, short.predict([1, 2, 3, 4, 5]))
    plot_convergence([curve, ConvergenceCurve("none", "clean", 1, [(1, 0.0)])], "WER (%)", 0.9, tmp_path / "wer.png")
    assert count(pixels(tmp_path / "wer.png"), COLORS[1]) > 0, "dots without a curve"
