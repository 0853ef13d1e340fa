"""Gradient norms of planted runs, as a table and a figure."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from asr_lightning.errors import InputError
from asr_lightning.report.gradient_figure import gradient_table, plot_gradients, read_gradient_norms


def plant(folder: Path, scale: float, steps: range = range(0, 400, 4), version: int = 0) -> Path:
    """Write a log whose norms double and halve at every logged step, with lines of losses in between."""
    path = folder / f"logs/version_{version}/metrics.csv"
    path.parent.mkdir(parents=True)
    lines = ["epoch,grad_norm/encoder,grad_norm/total,step,train/loss"]
    for number, step in enumerate(steps):
        lines.append(f"0,{scale * 2 ** (number % 2)},{scale * 3},{step},")
        lines.append(f"0,,,{step},0.5")
    path.write_text("\n".join(lines) + "\n")
    return folder


def test_a_table_has_a_line_for_each_module_and_run(tmp_path: Path) -> None:
    runs = {
        "random": [plant(tmp_path / f"random/{seed}", seed) for seed in (1, 3)],
        "selected": [plant(tmp_path / "selected/1", 0.5)],
    }
    head, *rows = gradient_table(runs)
    assert head[:5] == ["module", "run", "seeds", "early norm", "late norm"] and len(head) == 9
    cells = {(row[0], row[1]): row[2:] for row in rows}
    assert cells["encoder", "random"][:2] == ["2", "3.00 (1.50 to 4.50)"]
    assert cells["encoder", "selected"][:2] == ["1", "0.750"] and cells["encoder", "selected"][5:] == ["0.693"] * 2
    assert cells["total", "random"][5:] == ["0.00 (0.00 to 0.00)"] * 2
    plot_gradients(runs, tmp_path / "gradients.png")
    picture = matplotlib.image.imread(tmp_path / "gradients.png")
    assert picture.shape[:2] == (1140, 1740) and (tmp_path / "gradients.svg").exists()
    colored = [
        np.any(np.abs(picture[..., :3] - color).sum(-1) < 0.02)
        for color in ((0, 0x72 / 255, 0xB2 / 255), (0xD5 / 255, 0x5E / 255, 0))
    ]
    assert all(colored), "both runs are drawn"


def test_a_start_that_goes_on_replaces_what_it_repeats(tmp_path: Path) -> None:
    plant(tmp_path, 1.0)
    plant(tmp_path, 10.0, range(200, 600, 4), version=1)
    steps, norms = read_gradient_norms(tmp_path)["total"]
    assert steps.tolist() == list(range(0, 600, 4))
    assert norms[steps < 200].tolist() == [3.0] * 50 and set(norms[steps >= 200]) == {30.0}


def test_a_run_without_gradient_norms_is_named(tmp_path: Path) -> None:
    path = tmp_path / "logs/version_0/metrics.csv"
    path.parent.mkdir(parents=True)
    path.write_text("epoch,step,train/loss\n0,1,0.5\n")
    with pytest.raises(InputError, match=r"expected grad_norm/… in logs.*gradient_norms.every_n_steps is 0"):
        gradient_table({"random": [tmp_path]})
    path.write_text("epoch,step,grad_norm/total\n0,1,much\n")
    with pytest.raises(InputError, match="found '1' and 'much'"):
        gradient_table({"random": [tmp_path]})
