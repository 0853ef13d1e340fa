"""Messages and files of `lightning …`, run in this process."""

import csv
import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import wandb
import yaml
from lightning.pytorch.loggers import WandbLogger

from asr_lightning import ablations, cli
from asr_lightning.callbacks.wandb_run import WANDB_HOSTS, reach_wandb
from asr_lightning.files import exclusive_lock
from tests.support.commands import exit_message

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


pytestmark = pytest.mark.usefixtures("outside_the_project")


@pytest.mark.parametrize("experiment", ["rnnt_teacher", "rnnt_random", "rnnt_ws", "rnnt_lstm_ws"])
def test_a_missing_corpus_is_named_with_the_ways_on(experiment: str, tmp_path: Path) -> None:
    message = exit_message("fit", "--config", str(EXPERIMENTS / f"{experiment}.yaml"), "--trainer.precision", "32-true")
    assert str(tmp_path / "data/LibriSpeech") in message
    for way in ("--data.init_args.root", "--data.init_args.download true", "experiments/demo/rnnt_ws.yaml"):
        assert way in message


@pytest.mark.parametrize(
    ("experiment", "way"),
    [("demo/lm_char", "lightning fit --config experiments/demo/las.yaml"), ("lm_char", "librispeech-lm-norm.txt.gz")],
)
def test_missing_text_is_named_with_the_command_that_makes_it(experiment: str, way: str, tmp_path: Path) -> None:
    message = exit_message("fit", "--config", str(EXPERIMENTS / f"{experiment}.yaml"), "--trainer.precision", "32-true")
    assert message.startswith("error: no text files at data/") and str(tmp_path / "data") in message
    assert way in message


def test_what_does_not_fit_is_said_without_a_stack_trace(tiny: Path) -> None:
    message = exit_message("fit", "-c", str(tiny), "--model.init_args.features.init_args.mels", "40")
    assert message.startswith("error: LogMel gives 40 dimensions, but the encoder's input_dimension is 80")


def test_a_misspelt_option_is_named(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_message("fit", "-c", str(tiny), "--trainer.max_epoch", "1") == "2"  # not taken for max_epochs
    assert "max_epoch" in capsys.readouterr().err
    tiny.write_text(tiny.read_text().replace("joint_dimension", "joint_dimensoin"))
    assert exit_message("fit", "-c", str(tiny)) == "2"
    assert "joint_dimensoin" in capsys.readouterr().err


@pytest.mark.parametrize("share", [None, 0.0, 0.5])
def test_a_checkpoint_that_is_not_whole_is_named(tiny: Path, tmp_path: Path, share: float | None) -> None:
    cli.main(["fit", "-c", str(tiny)])
    checkpoint = tmp_path / "runs/tiny/checkpoints/last.ckpt"
    if share is None:
        checkpoint.unlink()
    else:
        os.truncate(checkpoint, int(share * checkpoint.stat().st_size))
    for command in ("fit", "test"):
        assert str(checkpoint) in exit_message(command, "-c", str(tiny), "--ckpt_path", str(checkpoint))


def test_last_passes_over_a_damaged_checkpoint_and_names_it(tiny: Path, tmp_path: Path) -> None:
    cli.main(["fit", "-c", str(tiny)])
    folder = tmp_path / "runs/tiny/checkpoints"
    damaged = folder / "last-step.ckpt"  # newer than the epoch's, as after a power cut
    damaged.write_bytes((folder / "last.ckpt").read_bytes()[:50_000])
    resume = ["fit", "-c", str(tiny), "--trainer.max_epochs", "2", "--ckpt_path", "last"]
    with pytest.warns(UserWarning, match=f"(?s){damaged} is not a complete.*earlier one is used: {folder}/last.ckpt"):
        cli.main(resume)
    epochs = [line.split(",")[2] for line in (tmp_path / "runs/tiny/error_rates.csv").read_text().splitlines()[1:]]
    assert epochs == ["1", "1", "2", "2"]  # gone on with, not begun anew
    for path in folder.glob("last*.ckpt"):
        os.truncate(path, 1000)
    assert str(folder / "last.ckpt") in exit_message(*resume)


def test_a_run_without_validation_leaves_its_last_checkpoint(tiny: Path, tmp_path: Path) -> None:
    never = ["--trainer.limit_val_batches", "0", "--trainer.check_val_every_n_epoch", "5"]
    cli.main(["fit", "-c", str(tiny), *never])
    assert (tmp_path / "runs/tiny/checkpoints/last.ckpt").is_file()


def test_a_full_disk_is_said_and_leaves_the_last_checkpoint(tiny: Path, tmp_path: Path) -> None:
    logger = ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", "runs/tiny"]
    cli.main(["fit", "-c", str(tiny), *logger])
    checkpoint = tmp_path / "runs/tiny/checkpoints/last.ckpt"
    content, (soft, hard) = checkpoint.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) // 2, hard))
    try:
        message = exit_message("fit", "-c", str(tiny), *logger, "--trainer.max_epochs", "2", "--ckpt_path", "last")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert message.startswith(f"error: the checkpoint {checkpoint} cannot be written")
    assert checkpoint.read_bytes() == content


def test_a_rank_ends_with_the_one_that_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablations, "PARENT_SECONDS", 0.01)
    read_end, write_end = os.pipe()
    if (first := os.fork()) == 0:
        parent = os.getpid()
        if os.fork() == 0:  # holds the pipe open as long as it lives
            ablations.end_with(parent)
        time.sleep(60)
    os.close(write_end)
    assert not select.select([read_end], [], [], 0.5)[0]
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    assert select.select([read_end], [], [], 20)[0] and os.read(read_end, 1) == b""


def test_a_run_is_kept_offline_where_wandb_cannot_be_reached(tmp_path: Path) -> None:
    settings = wandb.Settings(
        mode="online", base_url="http://127.0.0.1:9", api_key="0" * 40, init_timeout=1, silent=True
    )
    logger = WandbLogger(project="test", save_dir=tmp_path, settings=settings)
    with pytest.warns(UserWarning, match="W&B cannot be reached: .*127[.]0[.].*`wandb sync`"):
        reach_wandb([logger])
    assert logger.experiment.offline
    logger.log_metrics({"loss": 1.0})
    wandb.finish()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


BESIDE_WANDB = """
import os, subprocess, sys, time, wandb
wandb.init(mode="offline", dir=".", project="notebook")
first = subprocess.Popen(sys.argv[1:])
while first.poll() is None and not os.path.exists("runs/tiny/checkpoints/last.ckpt"):
    time.sleep(0.05)
first.kill()
first.wait()
again = subprocess.run([*sys.argv[1:], "--trainer.max_epochs", "2"])
wandb.finish()
sys.exit(again.returncode)
"""


def test_a_run_that_was_killed_beside_a_notebook_of_wandb_goes_on(tiny: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "asr_lightning", "fit", "-c", str(tiny), "--ckpt_path", "last"]
    done = subprocess.run([sys.executable, "-c", BESIDE_WANDB, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs/tiny/error_rates.csv").read_text().splitlines()[-1].split(",")[2] == "2"


def test_a_run_is_trained_resumed_tested_and_nothing_is_overwritten(tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs/tiny"
    wandb.teardown()  # its service, which writes below the folder where it was started
    cli.main(["fit", "-c", str(tiny), "--ckpt_path", "last"])  # nothing to go on from yet
    first = (run / "logs/version_0/metrics.csv").read_text()
    assert "test-clean/wer" in first and "grad_norm/encoder" in first
    cli.main(["fit", "-c", str(tiny), "--trainer.max_epochs", "2", "--ckpt_path", "last"])
    cli.main(["test", "-c", str(tiny), "--ckpt_path", str(run / "checkpoints/last.ckpt")])
    epochs = [line.split(",")[2:4] for line in (run / "error_rates.csv").read_text().splitlines()[1:]]
    assert epochs == [["1", "test-clean"], ["1", "test-other"], ["2", "test-clean"], ["2", "test-other"]]
    assert (run / "logs/version_0/metrics.csv").read_text() == first
    assert (run / "test_error_rates.csv").is_file()
    wandb.finish()  # so that its files are whole
    ids = {
        path.name.removeprefix("run-").removesuffix(".wandb") for path in run.glob("wandb/offline-run-*/run-*.wandb")
    }
    assert ids == {(run / "wandb/id.txt").read_text().strip()}, "one run at W&B"


def test_a_language_model_is_trained_resumed_and_tested(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for subset in ("train-clean-100", "test-clean"):
        folder = tmp_path / "data/spoken" / subset / "1/2"  # as the embedded corpus has it
        folder.mkdir(parents=True)
        lines = "".join(f"1-2-{number:04} {'AB CD' * (1 + number % 7)}\n" for number in range(200))
        (folder / "1-2.trans.txt").write_text(lines)
    run, experiment = tmp_path / "runs/demo/lm_char/seed1", str(EXPERIMENTS / "demo/lm_char.yaml")
    short = ["--model.init_args.hidden", "8", "--trainer.enable_progress_bar", "false"]
    cli.main(["fit", "-c", experiment, *short, "--trainer.max_epochs", "1", "--ckpt_path", "last"])
    cli.main(["fit", "-c", experiment, *short, "--trainer.max_epochs", "2", "--ckpt_path", "last"])
    for command in ("validate", "test"):
        cli.main([command, "-c", experiment, *short, "--ckpt_path", str(run / "checkpoints/last.ckpt")])

    def perplexities(version: int, stage: str) -> list[float]:
        with (run / f"logs/version_{version}/metrics.csv").open() as file:
            return [float(value) for row in csv.DictReader(file) if (value := row.get(f"{stage}/perplexity"))]

    [first], [second] = perplexities(0, "val"), perplexities(1, "val")
    assert second < first and perplexities(2, "val") == perplexities(3, "test") == pytest.approx([second])
    assert "got predict: use `lightning test`" in exit_message("predict", "-c", experiment, *short)
    assert "holds the results of an earlier run" in exit_message("fit", "-c", experiment, *short)


def files(folder: Path) -> dict[str, bytes]:
    """The files of a folder with their content, without locks and logs of W&B, which change in between."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".lock", ".log"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_results_are_overwritten_only_when_told_so(tiny: Path, tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "runs/tiny", tmp_path / "elsewhere.ckpt"
    cli.main(["fit", "-c", str(tiny), "--trainer.max_steps", "1"])
    (run / "notes.txt").write_text("mine")
    (run / "transcripts/notes.txt").write_text("mine")
    elsewhere.write_bytes((run / "checkpoints/last.ckpt").read_bytes())
    old_files = files(run)
    for options in ([], ["--ckpt_path", str(elsewhere)]):
        message = exit_message("fit", "-c", str(tiny), *options)
        assert message.startswith("error: runs/tiny holds the results of an earlier run") and "last.ckpt" in message
        for way in ("--ckpt_path last", "--trainer.default_root_dir", "--overwrite"):
            assert way in message
    assert "expected one of them" in exit_message("fit", "-c", str(tiny), "--overwrite", "--ckpt_path", "last")
    last = str(run / "checkpoints/last.ckpt")
    assert "--overwrite would remove" in exit_message("fit", "-c", str(tiny), "--overwrite", "--ckpt_path", last)
    assert files(run) == old_files
    below_a_file = str(tiny / "no-such")
    assert "no-such" in exit_message("fit", "-c", str(tiny), "--overwrite", "--data.init_args.root", below_a_file)
    assert old_files.items() <= files(run).items(), "what cannot begin removes nothing"

    cli.main(
        ["fit", "-c", str(tiny), "--trainer.max_steps", "1", "--model.init_args.joint_dimension", "8", "--overwrite"]
    )
    new_files = files(run)
    [log] = (run / "logs").iterdir()
    assert (
        new_files["notes.txt"] == new_files["transcripts/notes.txt"] == b"mine"
        and len(list(run.glob("wandb/*run-*"))) == 1
    )
    assert len(new_files["checkpoints/last.ckpt"]) < len(old_files["checkpoints/last.ckpt"])
    assert old_files["logs/version_0/config.yaml"] not in new_files.values()

    # Its own configuration, used for another folder, is the same experiment and leaves the first folder alone.
    other = tmp_path / "other"
    cli.main(["fit", "-c", str(log / "config.yaml"), "--trainer.default_root_dir", str(other)])
    assert files(run) == new_files and {"checkpoints/last.ckpt", "error_rates.csv"} <= files(other).keys()
    saved = yaml.safe_load((log / "config.yaml").read_text())
    saved["trainer"]["default_root_dir"] = str(other)
    assert yaml.safe_load((other / "logs/version_0/config.yaml").read_text()) == saved
    assert re.sub(rb"(?m)^other,", b"tiny,", files(other)["error_rates.csv"]) == new_files["error_rates.csv"]


def test_two_runs_in_one_folder_are_refused(unread: Path, tmp_path: Path) -> None:
    lock = tmp_path / "runs/tiny/.fit.lock"
    read_end, write_end = os.pipe()
    if (holder := os.fork()) == 0:
        with exclusive_lock(lock, ""):
            os.write(write_end, b".")
            time.sleep(60)
    os.read(read_end, 1)
    for command in ("fit", "validate"):
        message = exit_message(command, "-c", str(unread))
        assert message.startswith(f"error: runs/tiny is in use: process {holder} on ") and "since 20" in message
        assert "--trainer.default_root_dir" in message
    assert not (tmp_path / "runs/tiny/logs").exists()
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    with exclusive_lock(lock, ""):
        pass


def test_a_rehearsal_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    cli.main(["fit", "-c", str(tiny), "--trainer.fast_dev_run", "true"])
    assert not (tmp_path / "runs").exists()


def test_only_models_of_ours_are_trained(tmp_path: Path) -> None:
    demos = "lightning.pytorch.demos.boring_classes"
    message = exit_message("fit", "--model", f"{demos}.BoringModel", "--data", f"{demos}.BoringDataModule")
    assert message.startswith("error: this is no configuration of a recognizer, nor of a language model")
    assert message.endswith(f"{demos}.BoringModel")


@pytest.mark.parametrize(
    ("key", "mode"), [("", "offline"), ("WANDB_API_KEY", None), *((host, None) for host in WANDB_HOSTS)]
)
def test_wandb_is_offline_unless_there_is_a_key(
    key: str, mode: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    if key == "WANDB_API_KEY":
        monkeypatch.setenv(key, "0" * 40)
    if key in WANDB_HOSTS:
        (tmp_path / ".netrc").write_text(f"machine {key} login user password {'0' * 40}\n")
        (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setattr(cli, "CommandLine", lambda *arguments, **options: None)
    cli.main(["fit"])
    assert os.environ.get("WANDB_MODE") == mode


def test_a_network_is_searched_as_the_experiment_at_hand_says(tiny: Path, tmp_path: Path) -> None:
    cli.main(["fit", "-c", str(tiny)])
    checkpoint = str(tmp_path / "runs/tiny/checkpoints/last.ckpt")
    search = ["--model.init_args.search.class_path", "asr_lightning.decoding.transducer.TransducerSearch"]
    wide = [*search, "--model.init_args.search.init_args.beam", "3"]
    for options, beams in (([], 1), (wide, 3)):
        cli.main(["test", "-c", str(tiny), "--ckpt_path", checkpoint, *options])
        [transcripts] = (tmp_path / "runs/tiny/transcripts").glob("test-*-test-clean.jsonl")
        lines = [json.loads(line) for line in transcripts.read_text().splitlines()]
        assert [len(line.get("n_best", [line])) for line in lines] == [beams] * len(lines)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("hidden", "hiden", ["'hiden' is not accepted"]),
        ("LSTMEncoder", "LSTMEncodr", ["there is no LSTMEncodr in asr_lightning.nn.recurrent; there are LSTMEncoder"]),
        ("max_epochs: 1", "max_epochs: many", ["max_epochs", "many"]),
        ("channels: 2", "channels: 2\n        subsampling: 3", ["subsampling factor must be 2, 4 or 8, got 3"]),
        ("ctc_weight: 0.3", "ctc_weight: 3.0", ["0 <= ctc_weight < 1, got 3.0"]),
        ("layers: 1", "layers: 999999999", ["more than 10,000 weights", "fewer layers"]),
    ],
)
def test_a_slip_in_an_experiment_is_named_in_a_few_lines(
    tiny: Path, old: str, new: str, expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = tiny.read_text()
    assert old in text
    tiny.write_text(text.replace(old, new, 1))
    code = exit_message("fit", "--config", str(tiny))
    message = capsys.readouterr().err + code
    for part in expected:
        assert part in message
    assert len(message.splitlines()) <= 12 and "NoneType" not in message, message


@pytest.mark.parametrize(
    ("content", "found"),
    [("", "nothing"), ("# later\n", "nothing"), ("- a\n", "only '- a'"), ("model", "only 'model'")],
)
def test_a_file_that_is_no_experiment_is_named(
    content: str, found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(content)
    assert exit_message("fit", "--config", str(path)) == "2"
    message = capsys.readouterr().err
    assert "experiment.yaml: expected an experiment" in message and f"found {found}" in message
