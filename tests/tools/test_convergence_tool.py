import csv
from dataclasses import astuple
from pathlib import Path

import pytest
from PIL import Image

from asr_lightning.asr import main
from asr_lightning.report.convergence import converge, convergence_table
from asr_lightning.report.figures import ErrorRate
from asr_lightning.report.run_folders import COLUMNS
from asr_lightning.report.tables import as_csv

NOISE = [1.03, 0.97, 1.02, 0.99, 1.01, 0.98, 1.0, 1.02]  # of single measurements


def rows_of(run: str, law: tuple[float, float, float], seeds: int = 2, epochs: int = 8) -> list[ErrorRate]:
    a, b, c = law
    return [
        ErrorRate(
            run, str(seed), epoch, "clean", rate := (c + a * max(epoch, 1) ** -b) * noise, rate / 2, 1.0, 0.1, 0.0
        )
        for seed in range(seeds)
        for epoch in range(epochs + 1)  # 0 is before training
        for noise in [NOISE[(3 * seed + epoch) % len(NOISE)]]
    ]


def write(folder: Path, rows: list[ErrorRate]) -> Path:
    folder.mkdir(parents=True)
    (folder / "error_rates.csv").write_text(as_csv([COLUMNS, *map(astuple, rows)]))
    return folder


def test_planted_runs_are_found_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slow, fast = (0.6, 0.5, 0.1), (0.3, 1.0, 0.2)
    folders = [write(tmp_path / "slow", rows_of("slow", slow)), write(tmp_path / "fast", rows_of("fast", fast))]
    output = tmp_path / "out"
    assert (
        main(
            ["compare", "--convergence", *map(str, folders), "--output", str(output), "--horizon", "20", "--early", "5"]
        )
        == 0
    )
    assert sorted(path.name for path in output.iterdir()) == [
        f"wer_convergence{ending}" for ending in (".csv", ".md", ".png", ".svg", "_curves.csv")
    ]
    table = {row["run"]: row for row in csv.DictReader((output / "wer_convergence.csv").open())}
    for run, (a, b, c) in (("slow", slow), ("fast", fast)):
        predicted = float(table[run]["predicted %"].split()[0])
        assert predicted == pytest.approx(100 * (c + a * 20**-b), rel=0.1)
        assert table[run]["at epoch"] == "20"
        assert table[run]["seen to epoch"] == "5"
        assert table[run]["coverage"].endswith("of 6"), "three later epochs of two seeds"
        assert float(table[run]["back-cast error %"]) < float(table[run]["carried-forward error %"])
    assert float(table["slow"]["b"].split()[0]) < float(table["fast"]["b"].split()[0])
    curve = [row for row in csv.DictReader((output / "wer_convergence_curves.csv").open()) if row["run"] == "slow"]
    assert (curve[0]["epoch"], curve[-1]["epoch"]) == ("1", "20")
    assert all(float(row["lower"]) < float(row["rate"]) < float(row["upper"]) for row in curve)
    width, height = Image.open(output / "wer_convergence.png").size
    assert width == 1200 and 1020 <= height < 1200
    assert "90% of single measurements" in capsys.readouterr().out


def test_half_of_the_epochs_are_seen_early_and_six_are_needed() -> None:
    for epochs, early in ((8, 4), (7, 4), (6, 3)):
        [curve] = converge(rows_of("run", (0.6, 0.5, 0.1), epochs=epochs))
        assert curve.backcast is not None
        assert curve.backcast.fitted_to == early
        assert curve.forecast is not None
        assert curve.forecast.epochs[-1] == -(-3 * epochs // 2)
    [short] = converge(rows_of("run", (0.6, 0.5, 0.1), epochs=5))
    assert short.law is None and short.problem == "expected at least 6 epochs, got 5"


def test_the_metric_is_that_which_was_asked_for() -> None:
    rows = rows_of("run", (0.6, 0.5, 0.1))
    [words], [characters] = converge(rows), converge(rows, "cer")
    assert [rate / 2 for _, rate in words.measured] == [rate for _, rate in characters.measured]


def test_a_run_without_a_curve_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    curves = converge([*rows_of("perfect", (0.0, 1.0, 0.0)), *rows_of("run", (0.6, 0.5, 0.1))])
    perfect, run = convergence_table(curves, 0.9)[1:]
    assert set(perfect[4:]) == {"–"}
    assert "–" not in run
    output = tmp_path / "out"
    folder = write(tmp_path / "both", [*rows_of("perfect", (0.0, 1.0, 0.0)), *rows_of("run", (0.6, 0.5, 0.1))])
    assert main(["compare", "--convergence", str(folder), "--output", str(output)]) == 0
    assert "perfect, clean: no curve; expected finite rates above 0" in (output / "wer_convergence.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--level", "1"], "--level: expected a share between 0 and 1, got 1.0"),
        ([], "epoch 1 or later"),
    ],
)
def test_what_cannot_be_used_is_named(
    tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "run", rows_of("run", (0.6, 0.5, 0.1), epochs=0))
    assert main(["compare", "--convergence", str(folder), "--output", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
