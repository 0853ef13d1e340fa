"""Results in the folder of a run: the list of them, and the check before they are overwritten."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from asr_lightning.errors import InputError

RATE_FILES = ("error_rates.csv", "test_error_rates.csv")
TRANSCRIPTS = ("transcripts/validation-epoch*.jsonl", "transcripts/test-epoch*.jsonl")
LOGS = ("logs/version_*", "wandb/run-*", "wandb/offline-run-*")  # a folder for every start
SHOWN = 4  # names of results in a message


def results(trainer: Trainer) -> list[Path]:
    """Return the checkpoints that `--ckpt_path last` finds, error rates and transcripts in the folder of a run."""
    root = Path(trainer.default_root_dir)
    checkpoints = [path for folder in checkpoint_folders(trainer) for path in sorted(folder.glob("last*.ckpt"))]
    return [*checkpoints, *_matching(root, RATE_FILES), *_matching(root, TRANSCRIPTS)]


def checkpoint_folders(trainer: Trainer) -> list[Path]:
    """Return the folders that checkpoints are written to, each once."""
    callbacks = [
        callback
        for callback in trainer.checkpoint_callbacks
        if isinstance(callback, ModelCheckpoint) and callback.dirpath
    ]
    return list(dict.fromkeys(Path(str(callback.dirpath)) for callback in callbacks))


def refuse_results(trainer: Trainer, checkpoint: str | None, overwrite: bool) -> None:
    """Refuse to train in a folder that holds results, unless the run goes on from them.

    Args:
        trainer: Of the run that begins.
        checkpoint: `--ckpt_path`: `last`, a file, or None. `hpc` is what Lightning itself goes on from in a job that
            SLURM has started again.
        overwrite: Whether the results may be removed.

    Raises:
        InputError: There are results; or the checkpoint to begin with is among those that would be removed.
    """
    root, paths = Path(trainer.default_root_dir), results(trainer)
    if checkpoint in ("last", "hpc") or any(root.glob("hpc_ckpt_*.ckpt")) or not paths:
        return
    folders = [root, *checkpoint_folders(trainer)]
    within = checkpoint is not None and any(
        Path(checkpoint).resolve().is_relative_to(folder.resolve()) for folder in folders
    )
    if within and overwrite:
        raise InputError(
            f"--overwrite would remove {checkpoint}, which training is to begin with: name another folder with "
            "--trainer.default_root_dir, or leave --overwrite out"
        )
    if within or overwrite:
        return
    names = ", ".join(str(path) for path in paths[:SHOWN]) + (" …" if len(paths) > SHOWN else "")
    raise InputError(
        f"{root} holds the results of an earlier run: {names}. Go on with it by --ckpt_path last, name another folder "
        "with --trainer.default_root_dir, or begin anew and remove its results with --overwrite"
    )


class RemoveResults(Callback):
    """Removes what an earlier run has left in the folder, when the corpus is read and training is about to begin.

    Removed are error rates and transcripts of validation and test, the logs of earlier starts, checkpoints in
    the run's folder, and `last*.ckpt` where checkpoints are written elsewhere. All other files stay.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove them, once for all processes; loggers of this start are open already, and keep their folders."""
        if not trainer.is_global_zero:
            return
        root, current_logs = Path(trainer.default_root_dir), _log_folders(trainer.loggers)
        paths = [*_matching(root, RATE_FILES), *_matching(root, TRANSCRIPTS), *root.glob("checkpoints/*.ckpt")]
        for folder in checkpoint_folders(trainer):
            paths += folder.glob("*.ckpt" if folder.is_relative_to(root.resolve()) else "last*.ckpt")
        for path in paths:
            path.unlink(missing_ok=True)
        for path in _matching(root, LOGS):
            if path.resolve() not in current_logs and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)


def reserve_logs(loggers: Iterable[Logger]) -> None:
    """Make the folder of each log; two processes that begin at the same time get two."""
    for logger in loggers:
        while isinstance(logger, CSVLogger):
            try:
                Path(logger.log_dir).mkdir(parents=True)
                break
            except FileExistsError:
                if not isinstance(logger.version, int):  # a version that the experiment names is continued
                    break
                logger._version = logger.version + 1


def _log_folders(loggers: Iterable[Logger]) -> set[Path]:
    """Return the folders that this start logs to."""
    csv = [logger.log_dir for logger in loggers if isinstance(logger, CSVLogger)]
    wandb = [str(Path(logger.experiment.dir).parent) for logger in loggers if isinstance(logger, WandbLogger)]
    return {Path(path).resolve() for path in (*csv, *wandb)}


def _matching(root: Path, patterns: Iterable[str]) -> list[Path]:
    return [path for pattern in patterns for path in sorted(root.glob(pattern))]
