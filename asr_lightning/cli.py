"""The command line: `lightning fit|validate|test|predict --config experiments/….yaml`."""

import errno
import logging
import netrc
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import lightning
import wandb
import yaml
from jsonargparse import Namespace
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from asr_lightning.callbacks.changed_optimizer import ChangedOptimizer
from asr_lightning.callbacks.progress import ProgressBar
from asr_lightning.callbacks.stopping import FinishEpoch, SaveWhenStopped
from asr_lightning.errors import InputError, reason
from asr_lightning.files import check_aliases, regular
from asr_lightning.models.checkpoint_files import CheckpointFiles
from asr_lightning.models.checkpoints import (
    checkpoint_model,
    newest_whole_checkpoint,
    read_checkpoint,
    remember_configuration,
)
from asr_lightning.models.instantiation import input_error, within_memory
from asr_lightning.models.same_network import check_same_network, check_training_state

WANDB_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")  # under which `wandb login` has left a key, and now leaves it
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PARENT_SECONDS = 5.0  # between looks at whether the first rank is alive
LONG = 200  # characters of a line in a message


class CommandLine(LightningCLI):
    """LightningCLI over recognisers, language models and corpora.

    All that a run writes lies below `trainer.default_root_dir`.
    """

    def _parse_ckpt_path(self) -> None:
        """Take the model of a checkpoint where the experiment has none; `models/checkpoints.py` has the rule.

        Lightning's own method would merge the two key by key, and import whatever the checkpoint names.
        """
        config = self.config[self.config.subcommand]
        if config.get("model") is not None:
            return
        path = config.get("ckpt_path")
        if path in (None, "last"):
            raise InputError(
                "expected a model, found none: give --config EXPERIMENT.yaml, or --ckpt_path with the path of a "
                "checkpoint, whose model is taken then"
            )
        config.model = checkpoint_model(path)

    def before_instantiate_classes(self) -> None:
        """Log and save into the run's folder, unless the experiment names other places.

        Every start has a `logs/version_<n>` of its own, so that nothing is overwritten by resuming or testing a run.
        """
        trainer = self.config[self.subcommand].trainer
        root = Path(trainer.default_root_dir or ".")
        if trainer.logger is None:
            trainer.logger = [
                _part("lightning.pytorch.loggers.CSVLogger", save_dir=str(root), name="logs"),
                _part(
                    "lightning.pytorch.loggers.WandbLogger",
                    save_dir=str(root),
                    project="asr_lightning",
                    name="/".join(root.parts[-3:]),
                    group="/".join(root.parts[-3:-1]) or None,
                    job_type=self.subcommand,  # a test is no point of the curves over epochs
                ),
            ]
        callbacks = trainer.callbacks or []
        for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
            if not callback.class_path.endswith(".ModelCheckpoint"):
                continue
            if callback.init_args.dirpath is None:
                callback.init_args.dirpath = str(root / "checkpoints")
            if trainer.limit_val_batches == 0 and callback.init_args.save_on_train_epoch_end is None:
                callback.init_args.save_on_train_epoch_end = True  # Lightning might wait for a validation
        if os.environ.get("LOCAL_RANK", "0") == "0":
            root.mkdir(parents=True, exist_ok=True)

    def instantiate_classes(self) -> None:
        """Make everything, and let checkpoints remember how the model was made.

        Raises:
            InputError: A class refuses its arguments.
        """
        try:
            with within_memory():
                super().instantiate_classes()
        except ValueError as error:
            raise input_error(error) or InputError(brief(str(error))) from error
        self._dump_config()
        remember_configuration(self.model, self.config_dump["model"])
        self.trainer.strategy.checkpoint_io = CheckpointFiles()
        config = self.config_init[self.subcommand]
        if config.get("ckpt_path") is not None:
            config.ckpt_path = self._compared_checkpoint(config.ckpt_path)
        reach_wandb(self.trainer.loggers)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:  # noqa: ANN401
        """Make the trainer, with a progress bar that no GPU is waited for unless the experiment says otherwise."""
        trainer = self.config_init[self.subcommand].trainer
        bars = [one for one in trainer.callbacks or [] if isinstance(one, LightningProgressBar)]
        if trainer.enable_progress_bar is not False and not bars:
            self.trainer_defaults["callbacks"] = [*self.trainer_defaults["callbacks"], ProgressBar()]
        return super().instantiate_trainer(**kwargs)

    def _compared_checkpoint(self, path: str) -> str | None:
        """Return the path of the checkpoint to load, if it is of the experiment's network; None to begin anew."""
        if path == "last":
            last = self._last_checkpoint()
            if last is None and self.subcommand != "fit":
                raise InputError(
                    f"--ckpt_path last: found no checkpoint of the run in {self.trainer.default_root_dir}: train it "
                    "with `lightning fit`, or give a path"
                )
            if last is None:
                return None
            path = last
        checkpoint = read_checkpoint(path)
        check_same_network(self.model, checkpoint, path)
        if self.subcommand == "fit":
            changed = check_training_state(self.model, checkpoint, path, self.trainer.max_epochs)
            self.trainer.callbacks[:0] = [ChangedOptimizer(changed)] if changed else []  # type: ignore[attr-defined]
        return path

    def _last_checkpoint(self) -> str | None:
        """Find what Lightning would take, or the one before where that is damaged; None to begin from nothing."""
        savings = [one for one in self.trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint) and one.dirpath]
        folders = {Path(str(saving.dirpath)) for saving in savings}
        path = newest_whole_checkpoint(path for folder in folders for path in folder.glob("last*.ckpt"))
        return str(path) if path else None


class CommandLineParser(LightningArgumentParser):
    """Says what is wrong with an experiment, and leaves out what else could have stood there."""

    def add_lightning_class_args(
        self,
        lightning_class: Any,
        nested_key: str,
        subclass_mode: bool = False,
        required: bool = True,  # noqa: ANN401
    ) -> list[str]:
        """Let a checkpoint stand in the place of an experiment's model, see `CommandLine._parse_ckpt_path`."""
        required = required and nested_key != "model"
        return super().add_lightning_class_args(lightning_class, nested_key, subclass_mode, required)

    def parse_path(self, path: str | os.PathLike, *arguments: Any, **named: Any) -> Namespace:
        """Read an experiment from a file; not from what might never end."""
        try:
            regular(Path(path))
        except OSError as error:
            self.error(f"{path}: {error.strerror}")
        return super().parse_path(path, *arguments, **named)

    def parse_string(self, content: str, path: str | os.PathLike = "", *arguments: Any, **named: Any) -> Namespace:
        """Read an experiment, unless it is none, or is small only because of its aliases."""
        try:
            check_aliases(content)
            top = yaml.compose(content, Loader=yaml.SafeLoader)
        except (yaml.YAMLError, RecursionError) as error:
            self.error(f"{path}: this is no YAML to be read: {reason(error)}")
        if not isinstance(top, yaml.MappingNode):
            found = "nothing" if top is None else f"only {content.strip()[:LONG]!r}"
            self.error(f"{path}: expected an experiment, with keys such as model, data and trainer, found {found}")
        return super().parse_string(content, path, *arguments, **named)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with the part of a message that helps."""
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        command = parser.prog.replace(" [options]", "")
        self.exit(2, f"error: {brief(message)}\n`{command} --help` says what there is.\n")


def brief(message: str) -> str:
    """Shorten what jsonargparse says of a value that is none of several types, of which only one was meant."""
    noise = (
        "Does not validate against any",
        "Subtypes: ",
        "Errors:",
        "- Expected a <class 'NoneType'>",
        "Given value type:",
    )
    lines = [
        line
        for line in message.splitlines()
        if not line.strip().startswith(noise) and not (line.strip().startswith("Given value:") and len(line) > LONG)
    ]
    return "\n".join(line[:LONG] for line in lines).strip(" -")


def _part(class_path: str, **arguments: str | None) -> Namespace:
    return Namespace(class_path=class_path, init_args=Namespace(**arguments))


def keep_wandb_offline() -> None:
    """Send nothing to W&B unless the user has a key for it, or has said how it is to be."""
    try:
        keys = netrc.netrc()
        known = any(keys.authenticators(host) is not None for host in WANDB_HOSTS)
    except (FileNotFoundError, netrc.NetrcParseError):
        known = False
    if not known and "WANDB_API_KEY" not in os.environ:
        os.environ.setdefault("WANDB_MODE", "offline")
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_INIT_TIMEOUT", "30")  # seconds; W&B's own 90 became 184 where nothing answers


def reach_wandb(loggers: Iterable[Logger]) -> None:
    """Begin the runs of W&B, and keep those offline that it does not take: no training ends for want of a network."""
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


def quieten() -> None:
    """Keep what a user can do nothing about off the screen."""
    warnings.filterwarnings("ignore", message=r"The dirpath has changed from")  # as when a network is searched anew
    warnings.filterwarnings("ignore", message=r".*LeafSpec.* is deprecated")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(lambda record: "litlogger" not in record.getMessage())


def end_with(parent: int) -> None:
    """End this process when the one that started it is gone; to be run in a thread.

    Lightning's first rank looks after the others. When it is killed itself, they would wait for it, and hold their
    GPUs.
    """
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os._exit(1)


def main(arguments: list[str] | None = None) -> None:
    """Run one command; what the user can mend is said in one message, without a stack trace."""
    keep_wandb_offline()
    quieten()
    if os.environ.get("LOCAL_RANK", "0") != "0":
        threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    try:
        CommandLine(
            lightning.LightningModule,  # a Recognizer or a language model
            lightning.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=1,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"use_distributed_sampler": False, "callbacks": [SaveWhenStopped(), FinishEpoch()]},
            parser_class=CommandLineParser,
            args=arguments,
        )
    except ValueError as error:
        said = input_error(error)
        if said is None:
            raise
        sys.exit(f"error: {said}")
    except SIGTERMException:  # in validation or test: to Lightning this is no failure
        sys.exit(128 + signal.SIGTERM)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        sys.exit(f"error: {error}. Make room on the disk, and go on with --ckpt_path last: checkpoints are whole.")
