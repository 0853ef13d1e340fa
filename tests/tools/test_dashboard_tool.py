"""Reading of genuine offline runs, and the output of the command about them; nothing leaves this machine."""

import contextlib
import json
import os
import pty
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
import yaml
from wandb.proto.wandb_internal_pb2 import Record

from asr_lightning import cli
from asr_lightning.asr import main
from asr_lightning.report.dashboard import make_sections, missing_names
from asr_lightning.report.wandb_runs import LoggedRun, find_wandb_runs, layers_of, read_wandb_run, records
from data_modules.spoken import synthesize

PROJECT = Path(__file__).parents[2]
EXPERIMENT = PROJECT / "experiments/demo/rnnt_random.yaml"
LAYER = "encoder.lstm.0"
OFFLINE = {**os.environ, "WANDB_MODE": "offline"}  # W&B's reader would tell that it was used
DAMAGED = b":W&B\xe1\xbe\x00" + b"\x00" * 4 + b"\x08\x00\x01" + b"\xff" * 8  # one record, which is none


def train_and_test(folder: Path) -> None:
    """A demo's experiment on seconds of speech, which leaves its two runs in `runs/demo/tiny/seed1`."""
    synthesize(folder / "speech", minutes=0.1, evaluation_minutes=0.05, workers=1, progress=False)
    experiment = yaml.safe_load(EXPERIMENT.read_text())
    experiment["data"]["init_args"] |= {
        "root": str(folder / "speech"), "minutes": 0.1, "evaluation_minutes": 0.05, "words_per_class": None,
        "workers": 0,
    }  # fmt: skip
    experiment["model"]["init_args"]["encoder"]["init_args"] |= {"hidden": 8, "layers": 1, "channels": 2}
    experiment["trainer"] |= {"max_epochs": 1, "log_every_n_steps": 1, "enable_progress_bar": False}
    experiment["trainer"]["default_root_dir"] = str(folder / "runs/demo/tiny/seed1")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(experiment))
    options = ["-c", str(folder / "tiny.yaml")]
    cli.main(["fit", *options])
    wandb.finish()  # a process has one run at a time
    cli.main(["test", *options, "--ckpt_path", str(folder / "runs/demo/tiny/seed1/checkpoints/last.ckpt")])
    wandb.finish()
    first, second = folder.glob("runs/demo/tiny/seed1/wandb/offline-run-*/run-*.wandb")
    wait_for_end(first)
    wait_for_end(second)


def log(folder: Path, values: list[dict[str, Any]], group: str = "demo/tiny") -> Path:
    """Leave one more run of the seed."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"mode": "offline", "project": "asr_lightning", "group": group, "name": f"{group}/seed1"}
    with wandb.init(dir=str(folder), job_type="fit", **settings) as run:
        for line in values:
            run.log(line)
    [path] = folder.glob(f"wandb/offline-run-*/run-{run.id}.wandb")
    wait_for_end(path)
    return path


def wait_for_end(path: Path) -> None:
    """A run that is finished is written to its end a moment later."""
    deadline = time.monotonic() + 60
    while not any(record.HasField("exit") for record in records(path.read_bytes())):
        assert time.monotonic() < deadline, f"{path} was not written to its end"
        time.sleep(0.05)


def inside() -> list[dict[str, Any]]:
    """Logged values of callbacks that look inside, with pictures in every form that W&B has."""
    picture = wandb.Image(np.zeros((8, 8, 3), np.uint8))
    table = wandb.Table(columns=["layer", "sentence"], data=[[LAYER, "the cat"]])
    return [
        {f"tsne/{LAYER}/order": [picture], "epoch": 0},
        {f"tsne/{LAYER}/phone": picture, "update_norm/encoder": 0.5},
        {"neighbours": table},
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A training, another start of it that looked inside, and a test of it; and a group of another experiment."""
    wandb.finish()  # of another test
    folder = tmp_path_factory.mktemp("dashboard")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HOME", str(folder))
        patch.setenv("ASR_LIGHTNING_CACHE", str(folder / "cache"))
        patch.delenv("WANDB_API_KEY", raising=False)
        patch.setenv("WANDB_MODE", "offline")
        patch.setattr("sys.argv", ["lightning"])
        train_and_test(folder)
        log(folder / "runs/demo/tiny/seed1", inside())
        log(folder / "runs/demo/poor/seed1", [{"eval_clean/wer": 0.5, "val/loss": 1.0}], group="demo/poor")
    yield folder


@pytest.fixture(scope="module")
def runs(folder: Path) -> list[LoggedRun]:
    return find_wandb_runs([folder / "runs/demo/tiny"])


def test_a_training_reaches_wandb_with_project_group_name_and_job_type(runs: list[LoggedRun]) -> None:
    described = [(run.project, run.group, run.name, run.job_type) for run in runs]
    start = ("asr_lightning", "demo/tiny", "demo/tiny/seed1")
    assert described == [(*start, "fit")] * 3, "a test joins the run of its training"


def test_a_real_training_logs_all_that_is_shown_but_what_is_optional(runs: list[LoggedRun]) -> None:
    [training] = [run for run in runs if "train/loss" in run.logged]
    all_panels = [panel for panels in make_sections(["test-clean", "test-other"], [LAYER]).values() for panel in panels]
    missing = {name for panel in all_panels for name in missing_names(panel, training.logged)}
    assert missing == {f"tsne/{LAYER}/order", f"tsne/{LAYER}/phone", "neighbours"}


def test_pictures_and_tables_are_told_from_numbers(runs: list[LoggedRun]) -> None:
    [analyzed] = [run for run in runs if "neighbours" in run.logged]
    logged = {name: kind for name, kind in analyzed.logged.items() if not name.startswith("_")}
    assert logged == {
        f"tsne/{LAYER}/order": "images/separated",
        f"tsne/{LAYER}/phone": "image-file",
        "neighbours": "table-file",
        "update_norm/encoder": "number",
        "epoch": "number",
    }
    assert layers_of(runs) == [LAYER]


def test_our_reading_is_that_of_wandb_itself(runs: list[LoggedRun]) -> None:
    for run in (run for run in runs if run.job_type == "fit"):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run.path)]
        read = subprocess.run(command, capture_output=True, text=True, check=True, env=OFFLINE)
        records = [json.loads(line) for line in read.stdout.splitlines()]
        [described] = [record["run"] for record in records if record["type"] == "run"]
        assert (described["run_group"], described["job_type"]) == (run.group, run.job_type)
        lines = [record["history"]["item"] for record in records if record["type"] == "history"]
        kinds = {
            name.removesuffix("._type"): value if name.endswith("._type") else "number"
            for line in lines
            for name, value in line.items()
        }
        pictures = tuple(f"{name}." for name, kind in kinds.items() if kind != "number")
        assert run.logged == {name: kind for name, kind in kinds.items() if not name.startswith(pictures)}


def test_files_of_many_blocks_are_read_whole_and_broken_ones_up_to_their_end(tmp_path: Path) -> None:
    # names that make records longer than what is left of a block of 32768 bytes, and than a block
    names = [f"number {line} {'n' * (997 * line)}" for line in range(60)]
    path = log(tmp_path, [{name: 1.0} for name in names])
    wandb.teardown()  # a run that is finished is not yet written to its end
    assert path.stat().st_size > 20 * 32768
    numbered = [name for name in read_wandb_run(path).logged if name.startswith("number")]
    assert numbered == names
    for share in (0.3, 0.6):
        short = tmp_path / f"run-{share}.wandb"
        short.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        read_names = [name for name in read_wandb_run(short).logged if name.startswith("number")]
        assert 0 < len(read_names) < 60 and read_names == names[: len(read_names)]


@pytest.mark.parametrize("left", range(9))
def test_a_header_is_not_looked_for_where_a_block_has_no_room_for_it(left: int, tmp_path: Path) -> None:
    first, second = Record(), Record()
    second.run.display_name = "after"
    length = 32768 - 7 - 7 - left  # of the first record, after the file's header and its own
    first.output_raw.line = "n" * (length - 100)
    first.output_raw.line += "n" * (length - first.ByteSize())
    assert first.ByteSize() == length
    content = b":W&B\xe1\xbe\x00" + struct.pack("<IHB", 0, length, 1) + first.SerializeToString()
    body = second.SerializeToString()
    if left == 7:  # room for a header and nothing else
        content += struct.pack("<IHB", 0, 0, 2) + struct.pack("<IHB", 0, len(body), 4) + body
    elif left > 7:
        content += struct.pack("<IHB", 0, left - 7, 2) + body[: left - 7]
        content += struct.pack("<IHB", 0, len(body) - left + 7, 4) + body[left - 7 :]
    else:
        content += bytes(left) + struct.pack("<IHB", 0, len(body), 1) + body
    path = tmp_path / "run-left.wandb"
    path.write_bytes(content)
    assert read_wandb_run(path).name == "after"


def test_starts_of_one_seed_are_looked_at_together(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dashboard", "--group", "demo/tiny", "--runs", str(folder / "runs")]) == 0
    printed = capsys.readouterr().out
    assert "  WER per epoch: test-clean/wer, test-other/wer over epoch\n" in printed
    assert f"  t-SNE of {LAYER}: tsne/{LAYER}/order, tsne/{LAYER}/phone\n" in printed
    assert "  demo/tiny/seed1: logged what is needed\n\nNothing was sent." in printed


def test_a_run_without_what_is_shown_is_named_with_what_it_lacks(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--group", "demo/poor", "demo/tiny", "--runs", str(folder / "runs"), "--save"]
    assert main(["dashboard", *options]) == 1
    printed = capsys.readouterr()
    [line] = [line for line in printed.out.splitlines() if line.startswith("  demo/poor/seed1")]
    for name in ("test-clean/wer", "test-other/cer", "train/loss", "grad_norm/.*", "epoch"):
        assert name in line
    assert "eval_clean/wer" not in line and "update_norm" not in line
    assert "without what is optional: update_norm/.*" in printed.out
    assert "error rates are of eval_clean: say so with --subsets" in printed.out
    assert "Nothing was sent" in printed.err


def test_a_group_without_runs_is_named_with_those_that_there_are(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dashboard", "--group", "demo/rich", "--runs", str(folder / "runs")]) == 2
    errors = capsys.readouterr().err
    assert "no run of group demo/rich with job type fit in project asr_lightning" in errors
    assert "asr_lightning: demo/poor (fit); asr_lightning: demo/tiny (fit)" in errors
    assert main(["dashboard", "--group", "demo/tiny", "--project", "other", "--runs", str(folder / "runs")]) == 2


@pytest.mark.parametrize("content", [b"", b"nonsense" * 100, b":W&B\xe1\xbe\x00", DAMAGED])
def test_a_file_that_is_none_of_wandbs_is_named(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run-abc.wandb"
    path.write_bytes(content)
    assert main(["dashboard", "--group", "demo/tiny", "--runs", str(tmp_path)]) == 2
    assert f"{path}: expected a run's file of W&B" in capsys.readouterr().err


def test_a_folder_without_runs_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dashboard", "--group", "demo/tiny", "--runs", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_without_save_and_runs_it_is_only_said_what_would_be_made(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dashboard", "--group", "a/b", "a/c", "--subsets", "eval_clean", "--layers", "joint"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Groups a/b, a/c of project asr_lightning\n\nError rates\n")
    assert "  WER per epoch: eval_clean/wer over epoch\n" in printed
    assert "  t-SNE of joint: tsne/joint/order, tsne/joint/phone\n" in printed
    assert "  Table: neighbours\n" in printed and "no pictures" not in printed


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "W&B needs a login"),
        ({"WANDB_MODE": "offline", "WANDB_API_KEY": "0" * 40}, "W&B needs a login"),
        ({"WANDB_API_KEY": "0" * 40}, "W&B refused the dashboard of you/asr_lightning"),
    ],
    ids=["no login", "offline", "no server"],
)
def test_without_a_login_or_a_server_nothing_is_asked_and_it_is_said(
    environment: dict[str, str], expected: str, tmp_path: Path
) -> None:
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "NETRC"))}
    variables |= {
        "HOME": str(tmp_path),
        "WANDB_BASE_URL": "http://127.0.0.1:9",
        "WANDB_HTTP_TIMEOUT": "1",
    } | environment
    command = [sys.executable, "-m", "asr_lightning.tools.dashboard", "--group", "a/b", "--save"]
    # with a terminal, since without one W&B never asks
    terminal, end = pty.openpty()
    done = subprocess.run(
        command, stdin=end, stdout=subprocess.DEVNULL, stderr=end, env=variables, cwd=PROJECT, timeout=120
    )
    os.close(end)
    output = read_terminal(terminal)
    assert done.returncode == 2 and expected in output, output


def read_terminal(terminal: int) -> str:
    content = b""
    with contextlib.suppress(OSError):  # Linux's way to say that there is no more
        while part := os.read(terminal, 65536):
            content += part
    os.close(terminal)
    return content.decode()


def test_both_are_saved_for_whoever_is_logged_in(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved: list[Any] = []
    monkeypatch.setattr(wandb, "login", lambda prompt: True)
    monkeypatch.setattr(wandb, "Api", lambda: type("Api", (), {"default_entity": "somebody"}))
    for kind in (wr.Report, ws.Workspace):
        monkeypatch.setattr(kind, "save", lambda dashboard: saved.append(dashboard) or dashboard)
        monkeypatch.setattr(kind, "url", f"https://wandb.example/{kind.__name__}")
    assert main(["dashboard", "--group", "a/b", "--save"]) == 0
    assert main(["dashboard", "--group", "a/b", "--save", "--entity", "team"]) == 0
    assert [(type(dashboard), dashboard.entity) for dashboard in saved] == [
        (wr.Report, "somebody"), (ws.Workspace, "somebody"), (wr.Report, "team"), (ws.Workspace, "team"),
    ]  # fmt: skip
    printed = capsys.readouterr().out
    assert "https://wandb.example/Report" in printed and "https://wandb.example/Workspace" in printed
