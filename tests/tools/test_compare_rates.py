import csv
from pathlib import Path
from typing import Any

import pytest
import yaml

from asr_lightning.asr import main
from asr_lightning.models.checkpoints import build_recognizer

HEAD = "run,seed,epoch,subset,wer,cer,ser,swer,unspaced_cer\n"


def write_run(
    folder: Path, model: dict[str, Any], rates: dict[str, list[float]], metrics: list[list[dict[str, float]]], name: str
) -> None:
    """Write rates by subset and epoch to one file, and the logged metrics of each start."""
    folder.mkdir(parents=True)
    lines = [
        f"{folder.parent.name},{folder.name[-1]},{epoch},{subset},{rate},{rate / 3},{rate * 2},{rate / 2},{rate / 4}"
        for subset, values in rates.items()
        for epoch, rate in enumerate(values, 1)
    ]
    (folder / name).write_text(HEAD + "\n".join(lines) + "\n")
    for version, rows in enumerate(metrics):
        version_folder = folder / "logs" / f"version_{version}"
        version_folder.mkdir(parents=True)
        (version_folder / "config.yaml").write_text(yaml.safe_dump({"model": model}))
        with (version_folder / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, sorted({key for row in rows for key in row} | {"step"}))
            writer.writeheader()
            writer.writerows(rows)


@pytest.fixture
def runs(tmp_path: Path, config: dict[str, Any]) -> Path:
    folder = tmp_path / "runs"
    resumed = [
        [{"train/seconds": 10.0}, {"test-clean/real_time_factor": 0.9}],
        [{"train/seconds": 30.0}, {"test-clean/real_time_factor": 0.2, "test-other/real_time_factor": 0.4}],
    ]
    rates = {"test-clean": [0.4, 0.1], "test-other": [0.5, 0.3]}
    write_run(folder / "las" / "seed1", config, rates, resumed, "error_rates.csv")
    rates = {"test-clean": [0.4, 0.2], "test-other": [0.5, 0.3]}
    second = [[{"train/seconds": 50.0, "test-clean/real_time_factor": 0.4, "test-other/real_time_factor": 0.4}]]
    write_run(folder / "las" / "seed2", config, rates, second, "error_rates.csv")
    tested = [[{"test-clean/real_time_factor": 1.5}]]
    write_run(folder / "fusion" / "seed1", config, {"test-clean": [0.05]}, tested, "test_error_rates.csv")
    return folder


def cells(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_each_experiment_is_a_line_per_subset_over_its_seeds(
    runs: Path, tmp_path: Path, config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "report"
    folders = [str(runs / "las"), str(runs / "fusion")]
    assert main(["compare", "--rates", *folders, "--output", str(output), "--metrics", "wer", "ser"]) == 0
    size = f"{sum(parameter.numel() for parameter in build_recognizer(config).parameters()):,}"
    head = ["subset", "run", "seeds", "WER", "SER", "utterances", "words", "parameters", "training s", "training s/s"]
    assert cells(output / "final_rates.csv") == [
        [*head, "search s/s"],
        ["test-clean", "las", "2", "15.00 ± 7.07", "30.00 ± 14.14", "–", "–", size, "40", "–", "3.3"],
        ["test-clean", "fusion", "1", "5.00", "10.00", "–", "–", size, "–", "–", "0.7"],
        ["test-other", "las", "2", "30.00 ± 0.00", "60.00 ± 0.00", "–", "–", size, "40", "–", "2.5"],
    ]
    assert (output / "final_rates.md").read_text().startswith("| subset | run | seeds |")
    assert f"Written to {output}: final_rates.csv, final_rates.md" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "error_rates.csv").unlink(), "expected test_error_rates.csv or error_rates.csv"),
        (lambda run: (run / "error_rates.csv").write_text(HEAD), "got an empty file"),
        (lambda run: (run / "error_rates.csv").write_text("nonsense\n"), "line 1: expected the columns"),
    ],
)
def test_a_run_that_cannot_be_read_is_named(
    runs: Path, spoil: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(runs / "las" / "seed1")
    assert main(["compare", "--rates", str(runs / "las" / "seed1")]) == 2
    printed = capsys.readouterr().err
    assert message in printed and str(runs / "las" / "seed1") in printed


def test_runs_with_a_problem_are_named_and_the_others_compared(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "las" / "seed1" / "error_rates.csv").write_text("nonsense\n")
    (runs / "fusion" / "seed1" / "logs").rename(runs / "moved")
    assert main(["compare", "--rates", str(runs)]) == 0
    printed = capsys.readouterr().out
    assert f"Left out: {runs / 'las' / 'seed1' / 'error_rates.csv'}, line 1: expected the columns" in printed
    assert f"Left out: {runs / 'fusion' / 'seed1'}: expected logs/version_<n>/metrics.csv" in printed
    assert "20.00" in printed and "5.00" in printed
