"""The command line: `lightning fit|validate|test|predict --config experiments/….yaml`."""

import importlib
import inspect
import logging
import os
import pkgutil
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning
from jsonargparse import Namespace
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Checkpoint,
    DeviceStatsMonitor,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
)
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

import data_modules
from asr_lightning.ablations import end_with
from asr_lightning.callbacks.best_checkpoints import refuse_choice_by_tests, run_checkpoints, save_after_validation
from asr_lightning.callbacks.changed_optimizer import ChangedOptimizer
from asr_lightning.callbacks.distillation import Distillation, check_terms
from asr_lightning.callbacks.freezing import Freezing
from asr_lightning.callbacks.gradients import GradientNorms
from asr_lightning.callbacks.initialization import Initialization
from asr_lightning.callbacks.measurement import Measurement
from asr_lightning.callbacks.progress import ProgressBar
from asr_lightning.callbacks.results import RemoveResults, refuse_results, reserve_logs
from asr_lightning.callbacks.run_summary import RunSummary
from asr_lightning.callbacks.stopping import FinishEpoch, MovedFolder, OtherParts, SaveLastEpoch, SaveWhenStopped
from asr_lightning.callbacks.throughput import Throughput
from asr_lightning.callbacks.transcripts import Transcripts
from asr_lightning.callbacks.transfer import InitializeFrom
from asr_lightning.callbacks.wandb_run import (
    RunLogger,
    WandbConfiguration,
    keep_wandb_offline,
    leave_inherited_wandb,
    reach_wandb,
)
from asr_lightning.callbacks.weight_changes import DistanceFromStart, UpdateSizes
from asr_lightning.callbacks.weight_selection import WeightSelection
from asr_lightning.error_messages import TRACE, explain, trace_kept
from asr_lightning.errors import InputError, print_any_character
from asr_lightning.files import exclusive_lock
from asr_lightning.models.checkpoints import (
    CheckpointFiles,
    checkpoint_model,
    newest_readable_checkpoint,
    read_checkpoint,
    remember_configuration,
)
from asr_lightning.models.instantiation import within_memory
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.models.same_network import check_same_network, check_training_state
from asr_lightning.nn.sequences import Encoder
from asr_lightning.parser import CommandLineParser, experiments_first
from asr_lightning.renamed import current_names
from asr_lightning.report.tables import as_text, metrics_by_subset

CALLBACKS: dict[str, type[Callback]] = {  # of every run, by the key that holds their arguments
    "initialization": Initialization,
    "initialize_from": InitializeFrom,
    "weight_selection": WeightSelection,
    "distillation": Distillation,
    "freeze": Freezing,
    "transcripts": Transcripts,
    "gradient_norms": GradientNorms,
    "update_sizes": UpdateSizes,
    "distance_from_start": DistanceFromStart,
}
OF_CLASSES = ("text", "audio", "nn", "decoding", "hmm", "models", "callbacks")  # what an experiment may name
OF_SPEECH = (Transcripts, Throughput)  # callbacks that a language model has no use for


class CommandLine(LightningCLI):
    """LightningCLI over recognizers, language models and corpora.

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

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the keys of the callbacks that every run has."""
        for key, callback in CALLBACKS.items():
            parser.add_lightning_class_args(callback, key)
        parser.add_function_arguments(run_checkpoints, "checkpoints", skip={"subsets"})

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Let limits be numbers of batches or shares, and add `--overwrite` to training."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        for action in parser._actions:  # where a number may be both, 1 is a number of batches, and 1.0 all of them
            if action.dest.startswith("trainer.limit_"):
                action._typehint = int | float | None  # type: ignore[attr-defined] # jsonargparse's own
        if subcommand == "fit":
            parser.add_argument(
                "--overwrite",
                action="store_true",
                help="Begin anew in a folder that holds the results of an earlier run, and remove them: checkpoints, "
                "error rates, transcripts and logs. They are there until the corpus is read and training begins.",
            )
        return parser

    def before_instantiate_classes(self) -> None:
        """Take `--overwrite` out: an experiment that is saved, and used again, is not to overwrite anything."""
        config = self.config[self.subcommand]
        self.overwrite = bool(config.pop("overwrite", False))
        if self.overwrite and config.get("ckpt_path") == "last":
            raise InputError("--overwrite begins anew, and --ckpt_path last goes on: expected one of them")

    def instantiate_classes(self) -> None:
        """Instantiate all classes, and record the model's configuration for its checkpoints.

        Raises:
            InputError: A class refuses its arguments.
        """
        with within_memory():
            super().instantiate_classes()
        self._dump_config()
        remember_configuration(self.model, self.config_dump["model"])
        self.trainer.callbacks.append(WandbConfiguration(self.config_dump))  # type: ignore[attr-defined]
        self.trainer.strategy.checkpoint_io = CheckpointFiles()
        # Lightning would round audio to the precision of the weights; features are computed of it in float32.
        self.trainer.precision_plugin.convert_input = lambda data: data  # type: ignore[method-assign]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:  # noqa: ANN401
        """Make the trainer, which logs and saves into the run's folder unless the experiment names other places.

        The places are not written into the configuration, which is saved as it was given: used again with another
        `default_root_dir`, it writes there. Without loggers, callbacks that only write to them are left out; without
        checkpoints, those that save them. `fast_dev_run` leaves nothing behind. The progress bar waits for no GPU.
        """
        trainer = self.config_init[self.subcommand].trainer
        if trainer.fast_dev_run:
            self._rehearsal = TemporaryDirectory(prefix="fast_dev_run-")  # removed at the end of the process
            trainer.default_root_dir = self._rehearsal.name
        root = Path(trainer.default_root_dir or ".")
        callbacks = trainer.callbacks or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        callbacks = [*self._callbacks_of_every_run(callbacks), *callbacks]
        refuse_options(trainer, callbacks)
        subsets = getattr(self.datamodule, "subsets", {})
        refuse_choice_by_tests(callbacks, subsets)
        save_after_validation(callbacks, subsets)
        if trainer.logger is None:
            kwargs["logger"] = self._loggers(root)
        if trainer.logger is False:
            callbacks = [
                callback for callback in callbacks if not isinstance(callback, LearningRateMonitor | DeviceStatsMonitor)
            ]
        if trainer.enable_checkpointing is False:
            callbacks = [callback for callback in callbacks if not isinstance(callback, Checkpoint)]
        for callback in callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str((root / "checkpoints").resolve())  # as Lightning writes it into checkpoints
        # those that choose come first: the others hold their choice, which a resumed run goes on with
        callbacks.sort(key=lambda callback: isinstance(callback, ModelCheckpoint) and callback.monitor is None)
        if self.overwrite:
            callbacks.append(RemoveResults())
        bars = [callback for callback in callbacks if isinstance(callback, LightningProgressBar)]
        if trainer.enable_progress_bar is not False and not bars:
            callbacks.append(ProgressBar())
        trainer.callbacks = callbacks
        return self._instantiate_trainer({**trainer, **kwargs}, [])

    def _callbacks_of_every_run(self, listed: list[Callback]) -> list[Callback]:
        """Return the callbacks of every run but for those that the experiment lists itself, as older ones do.

        They come before the experiment's: a callback that ends a test with an error shall not cost the transcripts.

        Raises:
            InputError: The experiment lists one, and its key has other arguments than the defaults.
        """
        config, values = self.config_init[self.subcommand], self.config[self.subcommand]
        defaults = self._parser(self.subcommand).get_defaults()
        for key, kind in CALLBACKS.items():
            if values[key] != defaults[key] and any(isinstance(callback, kind) for callback in listed):
                raise InputError(
                    f"{kind.__name__} is listed in trainer.callbacks, and {key} has arguments for it too: expected one "
                    "of them. Take it out of trainer.callbacks"
                )
        callbacks = [
            config[key] for key in CALLBACKS if not any(isinstance(callback, CALLBACKS[key]) for callback in listed)
        ]
        for kind in (Throughput, LearningRateMonitor):
            callbacks += [] if any(isinstance(callback, kind) for callback in listed) else [kind()]
        listed_checkpoints = [callback for callback in listed if isinstance(callback, ModelCheckpoint)]
        savings = run_checkpoints(**config.checkpoints, subsets=getattr(self.datamodule, "subsets", {}))
        callbacks += [
            saving
            for saving in savings
            if not any(is_same_checkpoint(saving, checkpoint) for checkpoint in listed_checkpoints)
        ]
        unused = () if isinstance(self.model, Recognizer) else OF_SPEECH
        return [callback for callback in callbacks if not isinstance(callback, unused) and not is_off(callback)]

    def _loggers(self, root: Path) -> list[Logger]:
        """Make the loggers that a run has by default; its name at W&B is its folder below `runs`."""
        below = root.parts[::-1].index("runs") if "runs" in root.parts else 0
        names = root.parts[-below:] if below else root.parts[-3:]
        wandb_logger = RunLogger(
            save_dir=str(root),
            project="asr_lightning",
            name="/".join(names),
            group="/".join(names[:-1]) or None,
            job_type=self.subcommand,
        )
        return [CSVLogger(save_dir=str(root), name="logs"), wandb_logger]

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the command, in a folder that no other process writes the same files to.

        The first rank decides for all: under torchrun and SLURM the others are there already, and wait for it.
        Training and validation write the same files, as may a test and a prediction of their own each. So a checkpoint
        may be tested while training goes on.

        Raises:
            InputError: The folder is in use, or holds results that would be lost.
        """
        root, config = Path(self.trainer.default_root_dir), self.config_init[subcommand]
        if subcommand != "fit":  # training's callbacks are of no use to other commands
            warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks")
        lock = root / f".{'fit' if subcommand == 'validate' else subcommand}.lock"
        with exclusive_lock(lock, f"{root} is in use") if self.trainer.is_global_zero else nullcontext():
            if self.trainer.is_global_zero and subcommand == "fit":
                refuse_results(self.trainer, config.get("ckpt_path"), self.overwrite)
            if self.trainer.is_global_zero:
                reserve_logs(self.trainer.loggers)
            if config.get("ckpt_path") is not None:
                config.ckpt_path = self._compared_checkpoint(config.ckpt_path)
            elif subcommand != "fit":
                rank_zero_warn(
                    f"{subcommand} uses the weights that the experiment begins with, since no checkpoint is given: "
                    "--ckpt_path last uses those of the run, --ckpt_path PATH others"
                )
            self._join_wandb(root, goes_on=subcommand != "fit" or config.get("ckpt_path") is not None)
            reach_wandb(self.trainer.loggers)
            with trace_kept(root, self.trainer.global_rank):
                super()._run_subcommand(subcommand)

    def _join_wandb(self, root: Path, goes_on: bool) -> None:
        """Keep the training of a run folder one run at W&B."""
        for logger in self.trainer.loggers:
            if isinstance(logger, RunLogger):
                logger.trainer = self.trainer
                if self.trainer.is_global_zero:
                    logger.keep_id(root, goes_on)

    def validate(self, verbose: bool = True, **arguments: Any) -> None:
        """Validate, and print one table of all subsets instead of Lightning's."""
        self.trainer.validate(verbose=False, **arguments)
        self._print_metrics(verbose)

    def test(self, verbose: bool = True, **arguments: Any) -> None:
        """Test, and print likewise."""
        self.trainer.test(verbose=False, **arguments)
        self._print_metrics(verbose)

    def _print_metrics(self, verbose: bool) -> None:
        metrics = {key: float(value) for key, value in self.trainer.callback_metrics.items()}
        if not metrics:
            raise InputError(
                f"nothing was measured: expected subsets to {self.subcommand}, got none or no batches of them. Name "
                "some in data, and let limit_val_batches or limit_test_batches of the trainer be more than 0"
            )
        if verbose and self.trainer.is_global_zero:
            print(as_text(metrics_by_subset(metrics)))

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:  # noqa: ANN401
        """Read experiments first, wherever they stand, so that all other options go before what they say.

        `--initialize_from FILE` is short for `--initialize_from.checkpoint FILE`.
        """
        arguments = experiments_first(
            [current_names(argument) for argument in (sys.argv[1:] if args is None else args)]
        )
        if any(argument.partition("=")[0].endswith(".help") for argument in arguments):
            import_classes()
        if arguments[1:] == ["--model.help"]:
            print(known_models())
            sys.exit(0)
        short = re.compile(r"--initialize_from(?==|$)")
        super().parse_arguments(parser, [short.sub("--initialize_from.checkpoint", argument) for argument in arguments])

    def _set_seed(self) -> None:
        """Seed all generators; refuse a number that one of them does not accept."""
        seed = self._get(self.config, "seed_everything")
        if not isinstance(seed, bool) and not 0 <= seed < 2**32:
            raise InputError(f"seed_everything: expected a number from 0 to {2**32 - 1:,}, got {seed}")
        super()._set_seed()

    def _compared_checkpoint(self, path: str) -> str | None:
        """Return the path of the checkpoint to load, if it is of the experiment's network; None to begin anew."""
        if path in ("best", "hpc", "registry"):  # of Lightning
            raise InputError(
                f"--ckpt_path {path}: expected `last` or the path of a checkpoint, as "
                f"{Path(self.trainer.default_root_dir) / 'checkpoints' / 'best-….ckpt'}"
            )
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
            check_terms(self.trainer.callbacks, checkpoint, path)  # type: ignore[attr-defined]
            changed = check_training_state(self.model, checkpoint, path, self.trainer.max_epochs)
            self.trainer.callbacks[:0] = [ChangedOptimizer(changed)] if changed else []  # type: ignore[attr-defined]
        return path

    def _last_checkpoint(self) -> str | None:
        """Return the checkpoint that Lightning would load, or the one before if it is damaged; None without any."""
        savings = [
            callback
            for callback in self.trainer.checkpoint_callbacks
            if isinstance(callback, ModelCheckpoint) and callback.dirpath
        ]
        folders = {Path(str(saving.dirpath)) for saving in savings}
        path = newest_readable_checkpoint(path for folder in folders for path in folder.glob("last*.ckpt"))
        return str(path) if path else None


def is_off(callback: Callback) -> bool:
    """Whether a callback of every run has nothing to do, as a measurement at no step."""
    if isinstance(callback, WeightSelection | Distillation):
        return callback.teacher is None
    if isinstance(callback, InitializeFrom):
        return callback.checkpoint is None
    if isinstance(callback, Freezing):
        return not callback.until
    return isinstance(callback, Measurement) and callback.every_n_steps == 0


def is_same_checkpoint(own: ModelCheckpoint, listed: ModelCheckpoint) -> bool:
    """Whether a listed checkpoint callback does the same as one of every run: the same file, or the same choice."""
    if own.monitor is not None:
        return listed.monitor is not None
    return own.filename == listed.filename or (bool(listed.save_last) and own.filename == listed.CHECKPOINT_NAME_LAST)


def refuse_options(trainer: Namespace, callbacks: Iterable[Callback]) -> None:
    """Refuse options that Lightning accepts, but fails at later.

    Raises:
        InputError: An interval is not positive, or a callback looks for what these models do not have.
    """
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch", "limit_train_batches", "val_check_interval"):
        value = trainer.get(name)
        if isinstance(value, int | float) and not value > 0:
            raise InputError(f"trainer.{name}: expected more than 0, got {value}")
    if trainer.barebones:
        raise InputError(
            "trainer.barebones leaves out all metrics, also the loss and the error rates: use --trainer.logger false "
            "--trainer.enable_checkpointing false --trainer.limit_val_batches 0"
        )
    for callback in callbacks:
        if isinstance(callback, LearningRateFinder):
            raise InputError(
                "LearningRateFinder sets an attribute of the model, but the learning rate is that of "
                "model.init_args.optimizer, with its schedule: search it with `asr tune`"
            )
        if isinstance(callback, BatchSizeFinder):
            raise InputError(
                "BatchSizeFinder counts utterances, but batches are as long as data.init_args.batch_seconds says: the "
                "callback asr_lightning.callbacks.largest_batch.LargestBatch finds into how many parts they must be cut"
            )
        if isinstance(callback, GradientAccumulationScheduler):
            raise InputError(
                "GradientAccumulationScheduler makes steps larger in later epochs, but each has the seconds of "
                "data.init_args.batch_seconds, in as many parts as --trainer.accumulate_grad_batches says"
            )


def import_classes() -> None:
    """Import all modules whose classes an experiment may name, so that a help text lists every one of them."""
    packages = [data_modules, *(importlib.import_module(f"asr_lightning.{name}") for name in OF_CLASSES)]
    for package in packages:
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)


def known_models() -> str:
    """Return the models that an experiment may name, and the encoders that they read speech with."""
    lines = []
    for title, kind in (("models", lightning.LightningModule), ("encoders", Encoder)):
        classes = [subclass for subclass in _subclasses(kind) if subclass.__module__.startswith("asr_lightning.")]
        paths = sorted(
            f"{subclass.__module__}.{subclass.__name__}" for subclass in classes if not inspect.isabstract(subclass)
        )
        lines += [f"{title}:", *(f"  {path}" for path in paths)]
    return "\n".join(
        [*lines, "`lightning fit --model.help CLASS_PATH` has the arguments of a model, and what each may be."]
    )


def _subclasses(kind: type) -> set[type]:
    direct: list[type] = kind.__subclasses__()
    return {*direct, *(subclass for child in direct for subclass in _subclasses(child))}


def quieten() -> None:
    """Suppress warnings that a user can do nothing about."""
    # LightningCLI is given sys.argv itself.
    warnings.filterwarnings("ignore", message=r"LightningCLI's args parameter is intended")
    warnings.filterwarnings("ignore", message=r"The dirpath has changed from")  # as when a network is searched anew
    warnings.filterwarnings("ignore", message=r".*LeafSpec.* is deprecated")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_is_useful)


def _is_useful(record: logging.LogRecord) -> bool:
    """Whether a line of Lightning says something about this run; of Ctrl-C the command says itself."""
    return not re.search("litlogger|Detected KeyboardInterrupt", record.getMessage())


def main(arguments: list[str] | None = None) -> None:
    """Run one command; an error that the user can mend ends it with one message, without a stack trace."""
    print_any_character()
    keep_wandb_offline()
    leave_inherited_wandb()
    quieten()
    if os.environ.get("LOCAL_RANK", "0") != "0":
        # Lightning's first rank looks after the others; when it is killed itself, they would wait, and hold their GPUs
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
            trainer_defaults={
                "use_distributed_sampler": False,
                "num_sanity_val_steps": 0,  # a corpus is checked when it is read
                "callbacks": [
                    SaveWhenStopped(),
                    FinishEpoch(),
                    OtherParts(),
                    MovedFolder(),
                    SaveLastEpoch(),
                    RunSummary(),
                ],
            },
            parser_class=CommandLineParser,
            args=arguments,
        )
    except SIGTERMException:  # in validation or test: to Lightning this is no failure
        sys.exit(128 + signal.SIGTERM)
    except Exception as error:
        if os.environ.get(TRACE):
            raise
        sys.exit(f"error: {explain(error)}")
