import math
import subprocess
import sys
from pathlib import Path

import pytest

from asr_lightning.asr import main
from asr_lightning.errors import InputError
from asr_lightning.report import epoch_rates

HEAD = "run,seed,epoch,subset,wer,cer,ser,swer,unspaced_cer"


def write(folder: Path, lines: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "error_rates.csv").write_text("\n".join([HEAD, *lines]) + "\n")
    return folder / "error_rates.csv"


def write_run(folder: Path, run: str, seed: int, rates: list[float]) -> None:
    """Rates of test-clean by epoch; test-other is twice as bad."""
    write(
        folder / run / f"seed{seed}",
        [
            f"{run},{seed},{epoch},{subset},{rate * factor:.6f},{rate / 2:.6f},1.000000,0.500000,0.500000"
            for epoch, rate in enumerate(rates, 1)
            for subset, factor in (("test-clean", 1), ("test-other", 2))
        ],
    )


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """At half its epochs random is at 20 % (seeds 22 and 18)."""
    folder = tmp_path / "runs"
    write_run(folder, "random", 1, [0.42, 0.22, 0.12, 0.09])
    write_run(folder, "random", 2, [0.38, 0.18, 0.12, 0.11])
    write_run(folder, "ws", 1, [0.30, 0.10, 0.10, 0.10])  # 20 % at epoch 1.5
    write_run(folder, "ws", 2, [0.22, 0.12, 0.11, 0.10])  # 20 % at epoch 1.2
    write_run(folder, "worse", 1, [0.90, 0.80, 0.70])
    write_run(folder, "teacher", 1, [0.08, 0.05])
    return folder


def test_the_baseline_catches_up_where_the_curves_of_means_cross(tmp_path: Path) -> None:
    write_run(tmp_path, "random", 1, [0.40, 0.20, 0.10, 0.05])
    write_run(tmp_path, "random", 2, [0.40, 0.24, 0.10, 0.05])
    for seed in (1, 2):
        write_run(tmp_path, "ws", seed, [0.30, 0.15, 0.12, 0.10])  # 7 points lower, then 2 higher
        write_run(tmp_path, "worse", seed, [0.50, 0.50, 0.50, 0.50])
    write_run(tmp_path, "short", 1, [0.10])
    rows = epoch_rates.merge(epoch_rates.find_files([tmp_path]))
    assert epoch_rates.crossing_table(rows, "wer", "random") == [
        ["run", "subset", "epoch at which random is as good", "95 % interval over seeds"],
        ["ws", "test-clean", "2.8", "2.7 to 2.8"],  # 2 + 7/9; 2 + 5/7 and 2 + 9/11 of one seed drawn twice
        ["ws", "test-other", "2.8", "2.7 to 2.8"],
    ]
    lines = epoch_rates.speed_lines(rows, "wer", "random", None)
    assert "random is as good as ws on test-clean at epoch 2.8 (95 % interval over seeds 2.7 to 2.8)." in lines


def test_the_command_writes_table_figure_and_rates(runs: Path, tmp_path: Path) -> None:
    output = tmp_path / "report"
    command = [sys.executable, "-m", "asr_lightning.tools.compare", str(runs), "--output", str(output)]
    result = subprocess.run(
        [*command, "--reference", "teacher", "--baseline", "random"], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines[0].startswith("epoch test-clean random test-clean worse test-clean ws test-other random")
    assert lines[1].startswith("1 40.00 ± 2.83 90.00 26.00 ± 5.66 80.00 ± 5.66 180.00")
    assert lines[4].startswith("4 10.00 ± 1.41 – 10.00 ± 0.00")
    assert "teacher: 1 seed (1), after its last epoch test-clean 5.00, test-other 10.00" in lines
    start = lines.index("Epochs to reach 20.00 % WER on test-clean (random after epoch 2):")
    assert lines[start + 1 : start + 3] == ["* worse: > 3 (0 of 1 seeds got there)", "* ws: 1.4"]  # 1.35
    files = [
        *(f"wer_per_epoch.{suffix}" for suffix in ("csv", "md", "png", "svg")),
        "final_rates.csv",
        "final_rates.md",
    ]
    assert lines[-1] == f"Written to {output}: {', '.join(files)}"
    assert {path.name for path in output.iterdir()} == set(files)
    assert "Left out: significance: no two runs have transcripts of their last epoch" in lines
    merged = (output / "wer_per_epoch.csv").read_text().splitlines()
    assert merged[:3] == [
        f"{HEAD},utterances,words",  # which old files are without
        "random,1,1,test-clean,0.420000,0.210000,1.000000,0.500000,0.500000,,",
        "random,1,1,test-other,0.840000,0.210000,1.000000,0.500000,0.500000,,",
    ]
    assert len(merged) == 1 + 2 * (4 * 4 + 3 + 2)
    table = (output / "wer_per_epoch.md").read_text().splitlines()
    assert table[0].count("|") == table[1].count("|") == table[2].count("|") == 8


def test_rates_of_other_utterances_are_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run, utterances in (("las", 3), ("rnnt", 5)):
        (tmp_path / run).mkdir()
        (tmp_path / run / "error_rates.csv").write_text(
            f"{HEAD},utterances,words\n{run},1,1,clean,0.1,0.1,0.1,0.1,0.1,{utterances},{4 * utterances}\n"
            f"{run},1,1,other,0.1,0.1,0.1,0.1,0.1,1000,20000\n"
        )
    assert main(["compare", str(tmp_path), "--output", str(tmp_path / "out"), "--curves"]) == 0
    text = capsys.readouterr().out
    assert "clean: NOT all on the same utterances" in text
    assert "3 utterances, 12 words in las, seed 1; 5 utterances, 20 words in rnnt, seed 1." in text
    assert "other: 1,000 utterances, 20,000 words." in text
    assert "NOT all on the same" in (tmp_path / "out" / "wer_per_epoch.md").read_text()


def test_other_rates_can_be_compared(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(runs / "ws"), "--output", str(tmp_path / "out"), "--metric", "cer", "wer"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[1].split() == ["1", *["13.00", "±", "2.83"] * 2]
    assert (tmp_path / "out" / "cer_per_epoch.png").exists()


def test_a_folder_given_twice_counts_once_and_seeds_are_sorted_as_numbers(tmp_path: Path) -> None:
    for seed in (10, 2):
        write_run(tmp_path, "ws", seed, [0.5])
    rows = epoch_rates.merge(epoch_rates.find_files([tmp_path, tmp_path / "ws"]))
    assert [(row.seed, row.subset) for row in rows] == [
        (seed, subset) for seed in ("2", "10") for subset in ("test-clean", "test-other")
    ]


def test_no_rates_say_where_was_looked_and_what_makes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert str(tmp_path) in message
    assert "error_rates.csv" in message
    assert "lightning fit --config" in message
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="that is no folder"):
        epoch_rates.find_files([tmp_path / "nothing"])


def test_doubled_rates_are_refused(tmp_path: Path) -> None:
    files = [write(tmp_path / name, ["ws,1,1,clean,0.1,0.1,0.1,0.1,0.1"]) for name in ("a", "b")]
    with pytest.raises(
        InputError, match="run 'ws', seed '1', epoch 1, clean is in .*a/error_rates.csv and again in .*b/"
    ):
        epoch_rates.merge(files)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--baseline", "rnd"], "--baseline: expected one of the runs found, random, teacher, worse, ws; got 'rnd'"),
        (["--reference", "techer"], "--reference: expected one of"),
        (["--reference", "ws", "--baseline", "ws"], "expected two runs, got 'ws' for both"),
        (["--level", "1"], "--level: expected a share between 0 and 1, got 1.0"),
    ],
)
@pytest.mark.parametrize("sections", [[], ["--rates"], ["--convergence"]])
def test_runs_that_are_not_there_are_refused_before_anything_is_written(
    runs: Path, tmp_path: Path, arguments: list[str], message: str, sections: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    output = tmp_path / "out"
    assert main(["compare", str(runs), "--output", str(output), *arguments, *sections]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_a_reference_alone_is_no_comparison(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(runs / "teacher"), "--reference", "teacher"]) == 2
    assert "to compare besides the reference" in capsys.readouterr().err


def test_nothing_is_written_without_a_folder(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert main(["compare", str(runs)]) == 0
    assert "40.00 ± 2.83" in capsys.readouterr().out
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("rates", "target", "expected"),
    [
        ({1: 0.3, 2: 0.1}, 0.2, 1.5),
        ({1: 0.3, 3: 0.1}, 0.15, 2.5),
        ({1: 0.3, 2: 0.1, 3: 0.4, 4: 0.1}, 0.1, 2.0),  # the first time
        ({0: 0.2, 1: 0.1}, 0.2, 0.0),
        ({1: math.inf, 2: 0.1}, 0.2, 2.0),
        ({1: 0.3, 2: 0.21}, 0.2, None),
    ],
)
def test_epochs_to_reach(rates: dict[int, float], target: float, expected: float | None) -> None:
    assert epoch_rates.epochs_to_reach(rates, target) == pytest.approx(expected)


def test_half_way_is_the_last_validated_epoch_before_the_middle() -> None:
    assert epoch_rates.half_way([{0: 1.0, 1: 0.8, 2: 0.6, 3: 0.4}, {1: 0.6}]) == (1, pytest.approx(0.7))
    assert epoch_rates.half_way([{5: 0.5, 10: 0.3, 15: 0.2}]) == (5, 0.5)
    assert epoch_rates.half_way([{10: 0.3}]) == (10, 0.3)
