import csv
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from PIL import Image

from asr_lightning.ablations import tuning
from asr_lightning.ablations.tuning import Tuning, read_space
from asr_lightning.asr import main
from asr_lightning.errors import InputError
from data_modules.spoken_korean import synthesize

RATE = "model.init_args.optimizer.init_args.lr"
HIDDEN = "model.init_args.encoder.init_args.hidden"


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def experiment(tmp_path: Path, config: dict[str, Any]) -> Path:
    """An experiment that trains on a little Korean in seconds."""
    synthesize(tmp_path / "speech", 0.1, 0.05, workers=1, progress=False)
    config["init_args"]["tokenizer"] = {"class_path": "asr_lightning.text.hangul.JamoTokenizer"}
    config["init_args"]["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.001}}
    data = {"root": str(tmp_path / "speech"), "train_subsets": ["train"], "validation_subsets": ["dev"], "workers": 0}
    transcripts = {"class_path": "asr_lightning.callbacks.transcripts.Transcripts", "init_args": {"examples": 0}}
    content = {
        "model": config,
        "data": {"class_path": "data_modules.ksponspeech.KsponSpeechDataModule", "init_args": data},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "callbacks": [transcripts], "enable_progress_bar": False},
    }
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def write_space(path: Path, space: Any) -> Path:
    path.write_text(yaml.safe_dump(space))
    return path


def test_trials_are_real_runs_and_a_search_goes_on(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = write_space(tmp_path / "space.yaml", {RATE: {"low": 1e-4, "high": 1e-2, "log": True}, HIDDEN: [4, 6]})
    arguments = ["--config", str(experiment), "--space", str(space), "--metric", "dev/cer", "--output", "out"]
    assert main(["tune", *arguments, "--trials", "2", "--workers", "2"]) == 0
    assert main(["tune", *arguments, "--trials", "3"]) == 0
    printed = capsys.readouterr().out
    assert "3 of 3 trials were finished" in printed and "The best, trial" in printed
    with Path("out/trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(int(row["trial"]) for row in rows) == [0, 1, 2]
    assert len({row["optimizer.lr"] for row in rows}) == 3, "the second call draws anew"
    for row in rows:
        config_file = next(Path(f"out/trial{row['trial']}").rglob("config.yaml"))
        arguments_of_run = yaml.safe_load(config_file.read_text())["model"]["init_args"]
        assert arguments_of_run["optimizer"]["init_args"]["lr"] == pytest.approx(float(row["optimizer.lr"]))
        assert arguments_of_run["encoder"]["init_args"]["hidden"] == int(row["encoder.hidden"])
    assert Image.open("out/trials.png").size[0] > 1000
    assert main(["tune", *arguments[:-4], "--metric", "dev/wer", "--output", "out", "--trials", "4"]) == 2
    assert "holds other trials" in capsys.readouterr().err


def made_up(monkeypatch: pytest.MonkeyPatch, rates: Any) -> None:
    """Replace training by processes that write the rates `rates(values)`, an epoch every 100 ms."""
    code = (
        "import sys, time; from pathlib import Path; folder = Path(sys.argv[1]); lines = ['run,seed,epoch,subset,"
        "wer,cer,ser,swer,unspaced_cer']\n"
        "for epoch, rate in enumerate(sys.argv[2].split(','), 1):\n"
        "    lines.append(f'x,1,{epoch},dev,1,{rate},1,1,1'); half = folder / 'half'\n"
        "    half.write_text('\\n'.join(lines) + '\\n'); half.rename(folder / 'error_rates.csv'); time.sleep(0.1)\n"
    )
    popen = subprocess.Popen

    def start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        values = dict(zip([option[2:] for option in command[6::2]], command[7::2], strict=True))
        folder = values.pop("trainer.default_root_dir")
        return popen([sys.executable, "-c", code, folder, ",".join(map(str, rates(values)))], **options)

    monkeypatch.setattr(tuning.subprocess, "Popen", start)
    monkeypatch.setattr(tuning, "POLL_SECONDS", 0.02)


def run(folder: Path, space: dict[str, Any], trials: int, **options: Any) -> Tuning:
    folder.mkdir(exist_ok=True)
    (folder / "experiment.yaml").touch()
    search = Tuning(folder / "experiment.yaml", space, folder / "out", "dev/cer", **options)
    search.run(trials, 1)
    return search


def test_a_grid_is_gone_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(monkeypatch, lambda values: [float(values["a"]) + len(values["b"])])
    space = {"a": [1, 2, 3], "b": [[1], [1, 2]]}
    grid = run(tmp_path, space, 100, sampler="grid")
    trials = sorted((trial.params["a"], trial.params["b"], trial.value) for trial in grid.study.trials)
    assert trials == [(a, b, a + len(b)) for a in (1, 2, 3) for b in ("[1, 2]", "[1]")]
    assert grid.study.best_params == {"a": 1, "b": "[1]"}


def test_the_best_values_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(monkeypatch, lambda values: [0.2 + abs(float(values["x"]) - 0.3)])
    for sampler in ("tpe", "random"):
        study = run(tmp_path / sampler, {"x": {"low": 0.0, "high": 1.0}}, 15, sampler=sampler).study
        assert study.best_value < 0.35
        assert len(study.trials) == 15


def test_hopeless_trials_are_ended_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = itertools.count()
    made_up(monkeypatch, lambda values: [0.2] * 3 if next(begun) < 5 else [0.9] * 50)
    search = run(tmp_path, {"x": {"low": 0.0, "high": 1.0}}, 6, sampler="random")
    *good, bad = search.study.trials
    assert [trial.value for trial in good] == [0.2] * 5
    assert bad.state == optuna.trial.TrialState.PRUNED
    assert 1 <= len(bad.intermediate_values) < 40
    assert "pruned" in search.report()
    begun = itertools.count()
    finished = run(tmp_path / "again", {"x": {"low": 0.0, "high": 1.0}}, 6, sampler="random", prune=False)
    assert [trial.value for trial in finished.study.trials] == [0.2] * 5 + [0.9]


def test_a_run_that_fails_is_shown_with_its_values_and_what_it_said(experiment: Path, tmp_path: Path) -> None:
    space = {HIDDEN: ["many"]}
    with pytest.raises(InputError, match=r"(?s)trial 0 failed with status .*'many'.*hidden"):
        Tuning(experiment, space, tmp_path / "out", "dev/cer").run(1, 1)


def test_an_interrupted_search_ends_its_runs_and_can_go_on(experiment: Path, tmp_path: Path) -> None:
    space = write_space(tmp_path / "space.yaml", {HIDDEN: [4, 6]})
    command = [
        sys.executable, "-m", "asr_lightning.tools.tune", "--config", str(experiment), "--space", str(space),
        "--metric", "dev/cer", "--output", "out", "--trials", "1", "--", "--trainer.max_epochs", "500",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # background jobs ignore it
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not Path("out/trial0/error_rates.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 130, output
    assert "0 of 1 trials were finished" in output
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # no run is left behind


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ([1], "expected a space, keys"),
        ({}, "expected a space, keys"),
        ({"a": 3}, "a: expected a list of values, or a range"),
        ({"a": {"low": 1}}, "a: expected a list of values, or a range"),
        ({"a": {"low": 2, "high": 1}}, "expected low < high"),
        ({"a": []}, "a: expected a list"),
    ],
)
def test_spaces_that_say_nothing_are_refused(tmp_path: Path, space: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_space(write_space(tmp_path / "space.yaml", space))


def test_other_input_that_cannot_be_used_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = str(write_space(tmp_path / "space.yaml", {"a": {"low": 0, "high": 1}}))
    base = ["--config", "no.yaml", "--space", space, "--metric", "dev/cer"]
    existing = ["--config", space, *base[2:]]
    for arguments, message in (
        (base, "no.yaml: No such file or directory"),
        ([*existing[:3], "no", *existing[4:]], "cannot read a space"),
        ([*existing[:5], "cer"], "--metric as dev/cer"),
        ([*base, "--sampler", "grid"], "No such file"),
    ):
        assert main(["tune", *arguments]) == 2
        assert message in capsys.readouterr().err
    Path("no.yaml").write_text("data: {validation_subsets: [dev]}")
    assert main(["tune", *base, "--sampler", "grid"]) == 2
    assert "a grid needs a list of values" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("metric", "subsets", "message"),
    [
        ("test-clean/wer", [], "found test-clean among its test_subsets"),
        ("test-clean/wer", ["test-clean"], "found test-clean among its test_subsets"),
        ("dev-clean/wer", [], "evaluated while training, one of test-clean, found dev-clean: give --subsets dev-clean"),
        ("dev-clean/wer", ["dev-other"], "one of dev-other, found dev-clean"),
    ],
)
def test_nothing_is_chosen_by_what_is_tested(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], metric: str, subsets: list[str], message: str
) -> None:
    data = {"init_args": {"validation_subsets": ["test-clean"], "test_subsets": ["test-clean", "test-other"]}}
    Path("experiment.yaml").write_text(yaml.safe_dump({"data": data}))
    space = str(write_space(tmp_path / "space.yaml", {"a": [1, 2]}))
    base = ["--config", "experiment.yaml", "--space", space, "--metric", metric]
    assert main(["tune", *base, *(["--subsets", *subsets] if subsets else [])]) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()


def test_trials_are_evaluated_on_the_given_subsets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"init_args": {"validation_subsets": ["test"], "test_subsets": ["test"]}}
    Path("experiment.yaml").write_text(yaml.safe_dump({"data": data}))
    space = str(write_space(tmp_path / "space.yaml", {"a": [1, 2]}))
    received: list[dict[str, str]] = []
    made_up(monkeypatch, lambda values: received.append(values) or [0.5])
    base = ["--config", "experiment.yaml", "--space", space, "--metric", "dev/cer", "--trials", "1"]
    assert main(["tune", *base, "--subsets", "dev", "dev-other"]) == 0
    assert received[0]["data.init_args.validation_subsets"] == "[dev, dev-other]"


def test_the_values_of_a_trial_come_behind_the_arguments_of_every_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[dict[str, str]] = []
    made_up(monkeypatch, lambda values: received.append(values) or [0.5])
    run(tmp_path, {"a": [1], "b": [2]}, 1, more=["--a", "9", "--c", "3"])
    assert received[0] == {"a": "1", "b": "2", "c": "3"}  # else a class among them would take the values away


def test_weights_of_the_search_are_tuned_with_a_checkpoint_and_no_weight_is_the_first(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load(experiment.read_text())
    content["model"]["init_args"]["search"]["init_args"] = {"beam": 2, "max_symbols": 1}
    experiment.write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "asr_lightning", "fit", "--config", str(experiment)]
    subprocess.run([*command, "--trainer.default_root_dir", "trained"], check=True, capture_output=True)
    [checkpoint] = Path("trained").rglob("last.ckpt")
    weight = "model.init_args.search.init_args.internal_language_model_weight"
    space = str(write_space(tmp_path / "space.yaml", {weight: {"low": 0.0, "high": 0.5}}))
    arguments = ["--config", str(experiment), "--space", space, "--metric", "dev/cer", "--output", "tuned"]
    assert main(["tune", *arguments, "--checkpoint", str(checkpoint), "--trials", "2"]) == 0
    assert "2 of 2 trials were finished" in capsys.readouterr().out
    with Path("tuned/trials.csv").open() as file:
        rates = {int(row["trial"]): row for row in csv.DictReader(file)}
    assert float(rates[0]["search.internal_language_model_weight"]) == 0.0
    assert float(rates[1]["search.internal_language_model_weight"]) > 0.0
    assert not list(Path("tuned").rglob("*.ckpt")), "nothing is trained"
    assert main(["tune", *arguments, "--checkpoint", "none.ckpt", "--trials", "2"]) == 2
    assert "no checkpoint at none.ckpt" in capsys.readouterr().err
    assert main(["tune", *arguments, "--trials", "3"]) == 2
    assert "holds other trials" in capsys.readouterr().err


def test_a_checkpoint_is_never_tuned_on_what_is_tested(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = {"init_args": {"validation_subsets": ["dev"], "test_subsets": ["test-clean"]}}
    Path("experiment.yaml").write_text(yaml.safe_dump({"data": data}))
    Path("last.ckpt").touch()
    space = str(write_space(tmp_path / "space.yaml", {"a": [1, 2]}))
    base = ["--config", "experiment.yaml", "--space", space, "--checkpoint", "last.ckpt"]
    assert main(["tune", *base, "--metric", "test-clean/wer", "--subsets", "test-clean"]) == 2
    assert "found test-clean among its test_subsets" in capsys.readouterr().err
