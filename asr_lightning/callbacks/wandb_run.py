"""A training at W&B: one run for all its starts and tests, with its configuration, over epochs counted from 1."""

import math
import netrc
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import wandb
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import Tensor

from asr_lightning.files import source_commit, write_atomically
from asr_lightning.models.instantiation import LONG

EPOCH = "epoch"
WANDB_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")  # under which `wandb login` has left a key, and now leaves it
ID_FILE = "wandb/id.txt"  # in the run folder
TRAINING = "fit"  # the job type of a training's run, whatever command goes on with it


class RunLogger(WandbLogger):
    """Logs to W&B over `epoch`: 1 is the end of the first epoch, 1.5 the middle of the second.

    Numbers of `lightning test` and `validate` have the command's name before theirs, as `test/test-clean/wer`, so that
    they are no points of the training's curves.

    Attributes:
        trainer: Whose epochs are counted; None logs Lightning's own, from 0.
    """

    trainer: Trainer | None = None

    @property
    def experiment(self) -> Any:  # noqa: ANN401 - W&B's run, or what stands for it in other processes
        """W&B's run, which begins when it is first asked for."""
        if getattr(rank_zero_only, "rank", 0) == 0 and self._experiment is None and wandb.run is None:
            self._wandb_init.pop("anonymous", None)  # W&B warns of it even where it is None, as Lightning sets it
            self._experiment = wandb.init(**self._wandb_init)
            self._experiment.define_metric(EPOCH)
            self._experiment.define_metric("*", step_metric=EPOCH, step_sync=True)
        return super().experiment

    def keep_id(self, folder: Path, goes_on: bool) -> None:
        """Take the id of the training in a run folder, or that of a new run, which is kept there when training begins.

        The environment variable WANDB_RUN_ID, which the agent of a sweep sets, has precedence.

        Args:
            folder: Of the run.
            goes_on: Whether the training of this folder goes on or is tested; another one begins otherwise.
        """
        path = folder / ID_FILE
        saved_id = path.read_text("utf-8").strip() if goes_on and path.is_file() else ""
        self._id = os.environ.get("WANDB_RUN_ID") or saved_id or secrets.token_hex(4)
        self._wandb_init |= {"id": self._id, "resume": "allow"}
        if saved_id:
            self._wandb_init["job_type"] = TRAINING

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:  # noqa: ANN401 - as Lightning gives them
        """Log numbers, pictures or tables of a step."""
        values = dict(metrics)
        if self.trainer is not None:
            function = self.trainer.state.fn
            stage = f"{function.value}/" if function and function != TrainerFn.FITTING else ""
            values = {
                f"{stage}{name}" if isinstance(value, int | float | Tensor) else name: value
                for name, value in values.items()
                if name != EPOCH
            }
            values[EPOCH] = epochs_trained(self.trainer)
        super().log_metrics(values, step)


def epochs_trained(trainer: Trainer) -> float:
    """Return how many epochs are trained so far, with the share of the current one."""
    if trainer.state.fn != TrainerFn.FITTING:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WandbConfiguration) and callback.epochs is not None:
                return callback.epochs
        return float(trainer.current_epoch)
    batches = float(trainer.num_training_batches)
    done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
    share = min(done / batches, 1.0) if 0 < batches < math.inf else 0.0
    return trainer.current_epoch + share


class WandbConfiguration(Callback):
    """Logs the configuration of a run to W&B, so that runs can be filtered and grouped by it.

    The config has the keys of the experiment, with all defaults, and `commit`, `parameters` (how many the model has)
    and `corpus_hours` (of the training data; of audio only).

    Args:
        config: The experiment.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.epochs: float | None = None  # of the checkpoint that is tested

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Read how long the network that is tested was trained; a trainer that tests does not restore it."""
        if trainer.state.fn != TrainerFn.FITTING and "loops" in checkpoint:
            fit = checkpoint["loops"]["fit_loop"]
            batches = fit["epoch_loop.batch_progress"]
            epochs, share = fit["epoch_progress"]["current"]["completed"], 0.0
            if batches["is_last_batch"] and epochs < fit["epoch_progress"]["current"]["started"]:
                share = 1.0  # saved at the end of an epoch, before it counts as finished
            self.epochs = epochs + share

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the configuration, after the corpus is read."""
        numbers: dict[str, Any] = {"parameters": sum(parameter.numel() for parameter in pl_module.parameters())}
        if (hours := corpus_hours(trainer)) is not None:
            numbers["corpus_hours"] = hours
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger) and trainer.is_global_zero:
                write_atomically(Path(trainer.default_root_dir) / ID_FILE, f"{logger.version}\n")
                logger.log_hyperparams({**self.config, "commit": source_commit(), **numbers})


def corpus_hours(trainer: Trainer) -> float | None:
    """Return the hours of audio that an epoch trains on, at the speed of the recordings; None for other data."""
    plan: Any = trainer.train_dataloader
    if getattr(plan, "units", ("",))[0] != "s of audio":
        return None
    factors = getattr(trainer.datamodule, "speed_factors", None) or [1.0]  # type: ignore[attr-defined]
    seconds = float(np.sum(plan.durations)) * min([1.0, *factors])  # planned as long as at the slowest speed
    return round(seconds / 3600, 4)


def keep_wandb_offline() -> None:
    """Send nothing to W&B unless the user has a key for it, or has set WANDB_MODE."""
    try:
        keys = netrc.netrc()
        has_key = any(keys.authenticators(host) is not None for host in WANDB_HOSTS)
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
        has_key = False
    if not has_key and "WANDB_API_KEY" not in os.environ:
        os.environ.setdefault("WANDB_MODE", "offline")
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_INIT_TIMEOUT", "30")  # seconds; W&B's own 90 became 184 where nothing answers


def leave_inherited_wandb() -> None:
    """Give this run a service process of W&B of its own, where it has inherited that of a notebook or another program.

    An inherited one writes below the folder where it was started, and refuses to go on with a run that was killed.
    """
    if os.environ.get("WANDB_SERVICE", "").split("-")[1:2] != [str(os.getpid())]:  # version, process, address
        os.environ.pop("WANDB_SERVICE", None)


def reach_wandb(loggers: Iterable[Logger]) -> None:
    """Begin the runs of W&B; those that it refuses stay offline, so that no training ends for want of a network."""
    for logger in loggers:
        if not isinstance(logger, WandbLogger):
            continue
        try:
            _ = logger.experiment
        except wandb.errors.Error as error:
            logger._wandb_init["mode"] = "offline"  # an environment variable is not looked at any more
            rank_zero_warn(
                f"W&B cannot be reached: {' '.join(str(error).split())[:LONG]}. The run is kept in "
                f"{Path(logger.save_dir or '.') / 'wandb'}; `wandb sync` sends it later."
            )
