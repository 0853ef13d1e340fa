"""Records of a training in W&B's files, read by W&B's own reader."""

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import wandb
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from wandb.util import get_core_path

from asr_lightning.callbacks.gradients import GradientNorms
from asr_lightning.callbacks.wandb_run import RunLogger, WandbConfiguration, corpus_hours, epochs_trained
from asr_lightning.files import source_commit
from asr_lightning.models.checkpoints import build_recognizer
from tests.support.tones import TEXTS, batch_of, loader, make_trainer, transducer

pytestmark = pytest.mark.usefixtures("outside_the_project")
ROOT = Path(__file__).parents[2]


@dataclass
class Start:
    """One file of W&B's: a start of a run."""

    id: str
    job_type: str
    config: dict[str, Any]
    history: list[dict[str, Any]]
    axes: dict[str, str]


def read(path: Path) -> Start:
    deadline = time.monotonic() + 60
    while True:  # a run that is finished is written to its end a moment later
        command = [get_core_path(), "leet", "inspect", "--json", "--run-file", str(path), str(path.parent)]
        text = subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout  # as `wandb leet inspect` does
        records = [json.loads(line) for line in text.splitlines()]
        if any(record["type"] == "exit" for record in records):
            break
        assert time.monotonic() < deadline, f"{path} was not written to its end"
    [run] = [record["run"] for record in records if record["type"] == "run"]
    config: dict[str, Any] = {}
    for record in records:
        if record["type"] == "config":
            config |= record["config"].get("update", {})
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    axes = {}
    for record in records:
        if record["type"] == "metric" and "step_metric" in record["metric"]:
            axes[record["metric"].get("glob_name") or record["metric"]["name"]] = record["metric"]["step_metric"]
    return Start(run["run_id"], run["job_type"], config, history, axes)


def start(folder: Path, command: str, config: dict[str, Any], **options: Any) -> None:
    """Train or test as the command line does, of which only W&B's part matters here."""
    logger = RunLogger(save_dir=str(folder), project="asr_lightning", job_type=command, name="a/b")
    configuration = WandbConfiguration(config)
    saving = ModelCheckpoint(folder / "checkpoints", filename="last", enable_version_counter=False)
    trainer = make_trainer(
        folder, logger=logger, callbacks=[configuration, saving, GradientNorms()], enable_checkpointing=True,
        log_every_n_steps=1, **options,
    )  # fmt: skip
    logger.trainer = trainer
    last = folder / "checkpoints/last.ckpt"
    path = last if last.exists() else None
    logger.keep_id(folder, goes_on=path is not None)
    model, batches = build_recognizer(transducer()), [batch_of(TEXTS[:2]), batch_of(TEXTS[2:4])]
    if command == "fit":
        trainer.fit(model, loader(batches), loader(batches[:1]), ckpt_path=path)
    else:
        trainer.test(model, loader(batches[:1]), ckpt_path=path, verbose=False)
    wandb.finish()


def test_a_training_is_one_run_with_its_configuration_over_epochs_from_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = {"seed_everything": 3, "model": {"class_path": "a.B", "init_args": {"sizes": [1, 2]}}}
    start(tmp_path, "fit", config)
    printed = capfd.readouterr()
    assert "anonymous" not in printed.out + printed.err, "W&B warns of a setting that Lightning makes"
    start(tmp_path, "fit", {**config, "trainer": {"max_epochs": 2}}, max_epochs=2)
    start(tmp_path, "test", {"seed_everything": 4})
    paths = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.parent.name)
    first, second, tested = (read(path) for path in paths)
    assert {run.id for run in (first, second, tested)} == {(tmp_path / "wandb/id.txt").read_text().strip()}
    assert {run.job_type for run in (first, second, tested)} == {"fit"}

    assert first.config["model"] == config["model"] and first.config["seed_everything"] == 3
    assert second.config["trainer"] == {"max_epochs": 2}
    parameters = sum(parameter.numel() for parameter in build_recognizer(transducer()).parameters())
    for run in (first, second):
        assert run.config["parameters"] == parameters and run.config["commit"] == source_commit()
    assert "seed_everything" not in tested.config, "a test leaves the configuration of the training"

    assert {run.axes["*"] for run in (first, second, tested)} == {"epoch"}
    assert [line["epoch"] for line in first.history if "val/wer" in line] == [1.0]
    assert [line["epoch"] for line in second.history if "val/wer" in line] == [2.0]
    assert [line["epoch"] for line in first.history if "grad_norm/total" in line] == [0.5, 1.0]
    assert [line["epoch"] for line in second.history if "grad_norm/total" in line] == [1.5, 2.0]
    [line] = [line for line in tested.history if any(name.endswith("/wer") for name in line)]
    assert line["epoch"] == 2.0 and "test/test/wer" in line

    (tmp_path / "checkpoints/last.ckpt").unlink()
    start(tmp_path, "fit", config)
    assert (tmp_path / "wandb/id.txt").read_text().strip() != first.id, "another training is another run"


def test_hours_of_the_corpus_are_those_at_its_own_speed() -> None:
    plan = SimpleNamespace(units=("s of audio", "utterances"), durations=np.array([3600.0, 1800.0]) / 0.9)
    trainer: Any = SimpleNamespace(train_dataloader=plan, datamodule=SimpleNamespace(speed_factors=[0.9, 1.0, 1.1]))
    assert corpus_hours(trainer) == pytest.approx(1.5)
    trainer.train_dataloader = SimpleNamespace(units=("characters", "lines"), durations=np.array([10]))
    assert corpus_hours(trainer) is None


def test_an_agent_of_a_sweep_names_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "of-a-sweep")
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb/id.txt").write_text("earlier\n")
    logger = RunLogger(save_dir=tmp_path)
    logger.keep_id(tmp_path, goes_on=True)
    assert logger.version == "of-a-sweep"
    monkeypatch.delenv("WANDB_RUN_ID")
    ids = []
    for goes_on in (True, False, False):
        logger.keep_id(tmp_path, goes_on)
        ids.append(logger.version)
    assert ids[0] == "earlier" and len(set(ids)) == 3


@pytest.mark.parametrize(
    ("epoch", "done", "batches", "expected"), [(0, 4, 4, 1.0), (1, 1, 4, 1.25), (2, 3, float("inf"), 2.0)]
)
def test_epochs_are_counted_with_the_share_of_the_one_that_goes_on(
    epoch: int, done: int, batches: float, expected: float
) -> None:
    progress = SimpleNamespace(current=SimpleNamespace(completed=done))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    state = SimpleNamespace(fn=TrainerFn.FITTING)
    trainer: Any = SimpleNamespace(state=state, current_epoch=epoch, num_training_batches=batches, fit_loop=loop)
    assert epochs_trained(trainer) == expected


def test_the_commit_is_that_of_this_source() -> None:
    result = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    assert source_commit().removesuffix("-changed") == result.stdout.strip() or source_commit().startswith("version ")
