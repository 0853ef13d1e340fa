"""A small ablation with real runs: stopped, killed, resumed, changed; and its table."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from asr_lightning.ablations.costs import read_costs
from asr_lightning.ablations.overrides import as_yaml, override
from asr_lightning.asr import main
from asr_lightning.files import exclusive_lock, read_experiment

PROJECT = Path(__file__).parents[2]
NETWORK = {
    "model.init_args.encoder.init_args.hidden": 8,
    "model.init_args.encoder.init_args.channels": 2,
    "model.init_args.encoder.init_args.layers": 1,
    "model.init_args.predictor.init_args.dimension": 8,
    "model.init_args.joint_dimension": 8,
    "data.init_args.minutes": 0.1,
    "data.init_args.evaluation_minutes": 0.05,
    "trainer.max_epochs": 2,
    "trainer.accelerator": "cpu",
    "trainer.enable_progress_bar": False,
}


@pytest.fixture
def folder(tmp_path: Path, seconds_of_speech: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with two experiments and an ablation of them."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(seconds_of_speech, "data/spoken_small")
    for name, units in (("rnnt_random", 8), ("rnnt_ws", 8), ("rnnt_teacher", 12)):
        experiment = read_experiment(PROJECT / f"experiments/demo/{name}.yaml")
        sizes = {key: units if value == 8 else value for key, value in NETWORK.items()}
        experiment["data"]["init_args"].pop("words_per_class")
        Path(f"{name}.yaml").write_text(as_yaml(override(experiment, sizes)), "utf-8")
    ablation = {
        "question": "Does it help?",
        "source": "Us 2026, Table 1",
        "base": "rnnt_random.yaml",
        "seeds": [1, 2],
        "needs": {"teacher": {"base": "rnnt_teacher.yaml"}},
        "reference": "teacher",
        "variants": {
            "random": {},
            "selected": {
                "base": "rnnt_ws.yaml",
                "values": {"weight_selection.teacher": "{teacher}/checkpoints/last.ckpt"},
                "note": "first layers",
            },
            "greedy": {"network": "random", "values": {"trainer.max_epochs": 1}},
        },
        "outputs": ["convergence {random} {selected} --output {output}/convergence"],
        "paper": {
            "test-clean WER": {"random": 3.5, "selected": 3.25},
            "test-clean WER, epoch 1": {"random": 8.5},
            "dev WER": {"random": 4.0},
        },
    }
    Path("small.yaml").write_text(yaml.safe_dump(ablation, sort_keys=False), "utf-8")
    return tmp_path


def ablate(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "asr_lightning.tools.ablate", "small.yaml", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], status: int = 0) -> tuple[str, str]:
    output, errors = process.communicate(timeout=400)
    assert process.returncode == status, output + errors
    return output, errors


@pytest.fixture
def run_in_process(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """The command in this process, its runs in processes of their own: faster where no run is killed."""

    def call(*arguments: str, status: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        code = main(["ablate", "small.yaml", *arguments])
        captured = capsys.readouterr()
        assert code == status, captured.out + captured.err
        return captured.out, captured.err

    return call


def wait_for(path: str, process: subprocess.Popen[str]) -> None:
    for _ in range(2400):
        if Path(path).exists():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError(f"{path} was not written")


@pytest.mark.timeout(900)  # several real runs after each other
def test_it_is_run_through_kills_and_gives_a_table(
    folder: Path, run_in_process: Callable[..., tuple[str, str]]
) -> None:
    runs = "runs/demo/small"
    output, _ = run_in_process("--dry-run")
    assert "7 runs, 7 of them not finished" in output and not Path("runs").exists()
    output, _ = run_in_process("--print-commands")
    assert [line[:7] if line.startswith("#") else line.split()[-1] for line in output.splitlines()] == [
        *("# level", f"{runs}/random/seed1", f"{runs}/random/seed2", f"{runs}/teacher/seed1"),
        *("# level", f"{runs}/selected/seed1", f"{runs}/selected/seed2"),
        *(f"{runs}/greedy/seed1", f"{runs}/greedy/seed2"),
    ]
    _, errors = run_in_process("--only", f"{runs}/selected/seed1", status=2)
    assert f"needs {runs}/teacher/seed1, expected to be finished" in errors

    process = ablate("--seeds", "1", "--jobs", "2")  # what is needed comes first, and is killed with its parent
    wait_for(f"{runs}/teacher/seed1/checkpoints/last.ckpt", process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    process = ablate("--seeds", "1", "--jobs", "2")
    wait_for(f"{runs}/selected/seed1/error_rates.csv", process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = finish(process, 130)
    assert "the same command goes on from here" in errors

    output, _ = run_in_process("--seeds", "1", "--jobs", "2")
    assert "random seed" not in output, "a finished run is left alone"
    assert "Does it help?" in output and "paper's test-clean WER %" in output
    finished = json.loads(Path(f"{runs}/selected/seed1/finished.json").read_text("utf-8"))
    assert [command[:3] for command in finished] == [["-m", "asr_lightning", "fit"]]
    check_results(Path(runs))
    costs = read_costs(Path(f"{runs}/selected/seed1"))
    assert costs[-1].command.startswith("lightning fit") and costs[-1].status == 0 and costs[-1].gigabytes > 0.1
    assert "lightning test" in Path(f"{runs}/costs.md").read_text("utf-8")
    output, _ = run_in_process("--dry-run")
    lines = {line.split()[1]: line.split() for line in output.splitlines() if "runs/demo" in line[:40]}
    assert lines[f"{runs}/random/seed2"][-2:] == [lines[f"{runs}/random/seed1"][-2], "new"], "as the other seed took"

    output, _ = run_in_process("--seeds", "1")
    assert "lightning fit" not in output, "nothing is left to do"
    change_epochs(3)
    _, errors = run_in_process("--seeds", "1", status=2)
    assert "trainer.max_epochs: 2 before, 3 now" in errors and "--overwrite" in errors
    output, _ = run_in_process("--seeds", "1", "--variants", "random", "--overwrite", "--only", f"{runs}/random/seed1")
    assert f"{runs}/random/seed1: finished" in output and "epoch 3 of 3" in output


def check_results(runs: Path) -> None:
    with (runs / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["teacher", "random", "selected", "greedy"]
    assert {name: row["paper's test-clean WER %"] for name, row in rows.items()} == {
        "teacher": "–", "random": "3.50", "selected": "3.25", "greedy": "–"
    }  # fmt: skip
    assert rows["random"]["paper's dev WER %"] == "4.0" and rows["random"]["seeds"] == "1"
    assert rows["random"]["test-clean WER %"] == rows["greedy"]["test-clean WER %"], "the same network, tested"
    assert rows["random"]["parameters"] == rows["selected"]["parameters"] < rows["teacher"]["parameters"]
    assert rows["selected"]["p test-clean"] and rows["random"]["p test-clean"] == "–"
    text = (runs / "table.md").read_text("utf-8")
    assert "| 1 |" in text and "8.5" in text and "selected: first layers" in text and "Us 2026, Table 1" in text
    for name in ("page.html", "wer_per_epoch.png", "convergence/wer_convergence.csv"):
        assert (runs / name).stat().st_size > 0, name


def change_epochs(epochs: int) -> None:
    experiment: dict[str, Any] = read_experiment(Path("rnnt_random.yaml"))
    Path("rnnt_random.yaml").write_text(as_yaml(override(experiment, {"trainer.max_epochs": epochs})), "utf-8")


def test_a_run_that_fails_is_told_and_what_needs_it_is_left_out(
    folder: Path, run_in_process: Callable[..., tuple[str, str]]
) -> None:
    experiment = read_experiment(Path("rnnt_teacher.yaml"))
    Path("rnnt_teacher.yaml").write_text(as_yaml(override(experiment, {"trainer.precision": "9-bit"})), "utf-8")
    _, errors = run_in_process("--seeds", "1", "--variants", "selected", status=1)
    assert "runs/demo/small/teacher/seed1: status" in errors and "9-bit" in errors
    assert "runs/demo/small/selected/seed1: it needs runs/demo/small/teacher/seed1" in errors


def test_two_comparisons_do_not_write_the_same_run(folder: Path) -> None:
    run = Path("runs/demo/small/teacher/seed1")
    with exclusive_lock(run / ".run.lock", "x"):
        _, errors = finish(ablate("--seeds", "1", "--only", str(run)), 1)
    assert f"{run} is in use: process {os.getpid()}" in errors and "another folder with --output" in errors
    assert not (run / "output.log").exists()


SBATCH = """#!/bin/bash
# Runs the jobs of an array at once, on this machine.
while [ $# -gt 1 ]; do
    case $1 in --array=1-*) runs=${1#--array=1-} ;; --dependency=*) echo "after ${1#*:}" >> queue.txt ;; esac
    shift
done
for ((task = 1; task <= ${runs:-1}; task++)); do
    SLURM_ARRAY_TASK_ID=$task bash -ec "$1" >> jobs.log 2>&1 || exit 1
done
echo $RANDOM | tee -a queue.txt
"""


@pytest.mark.timeout(900)
def test_the_script_for_slurm_rehearses_every_run_after_what_it_needs(folder: Path) -> None:
    Path("bin").mkdir()
    Path("bin/sbatch").write_text(SBATCH, "utf-8")
    Path("bin/sbatch").chmod(0o755)
    Path("bin/python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n', "utf-8")
    Path("bin/asr").write_text(f'#!/bin/sh\nexec {sys.executable} -m asr_lightning.asr "$@"\n', "utf-8")
    for name in ("python", "asr"):
        Path("bin", name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{Path('bin').absolute()}:{os.environ['PATH']}", "BIN": "bin"}
    command = ["bash", str(PROJECT / "experiments/cluster/ablation.sh"), "small.yaml", "--rehearse"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr + Path("jobs.log").read_text("utf-8")
    first, dependency, second, last = Path("queue.txt").read_text("utf-8").splitlines()[:4]
    assert dependency == f"after {first}" and last == f"after {second}", "a level after the other, then the results"
    runs = Path("runs/rehearsal/demo/small")
    assert sorted(str(path.parent.relative_to(runs)) for path in runs.glob("*/*/finished.json")) == [
        *("greedy/seed1", "random/seed1", "selected/seed1", "teacher/seed1"),
    ]
    assert (runs / "page.html").exists() and (runs / "convergence").is_dir() and "2 runs of runs/slurm/" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "trainer.max_epochs"], "--set: expected KEY=VALUE"),
        (["--set", "trainer.epochs.x=1"], "trainer.epochs.x: expected a key of the experiment"),
        (["--variants", "selcted"], "no variant selcted at the scale demo; expected some of random, selected, greedy"),
        (["--only", "runs/x"], "--only: expected one of runs/demo/small/random/seed1"),
        (["--results"], "no variant has error rates yet"),
        (
            ["small.yaml", "--only", "runs/x"],
            "--only and --print-commands: expected one ablation, found small.yaml, small",
        ),
        (
            ["small.yaml", "--print-commands"],
            "--only and --print-commands: expected one ablation, found small.yaml, small",
        ),
    ],
)
def test_wrong_options_are_told(
    folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ablate", "small.yaml", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_several_ablations_run_one_after_another(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = Path("other.yaml")
    other.write_text(Path("small.yaml").read_text("utf-8").replace("Does it help?", "Does it help again?"), "utf-8")
    assert main(["ablate", "small.yaml", str(other), "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert (
        output.index("Does it help?") < output.index("results: runs/demo/small") < output.index("Does it help again?")
    )
    other.unlink()
    assert main(["ablate", str(other), "small.yaml", "--dry-run"]) == 2, "it ends at the first that fails"
    assert "Does it help?" not in capsys.readouterr().out
