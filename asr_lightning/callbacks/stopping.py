"""Stop a run by SIGTERM, Ctrl-C or SIGHUP, and resume it without loss."""

import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from asr_lightning.errors import discard_where_hung_up

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # of pre-emption, of Ctrl-C, of a terminal that is closed
NAME = "last-stopped.ckpt"  # found by `--ckpt_path last`
ONE_STOP_SECONDS = 1.0  # in which several signals are one: of a terminal or a cluster, and of `asr ablate` behind it


class SaveWhenStopped(Callback):
    """Writes a checkpoint after the optimizer step in which a signal came to any rank, and ends all ranks together.

    A signal that comes in validation waits for its end, so that no error rate is lost. Another one, more than a second
    later, ends the process at once. The exit status is 128 + the signal's number, as a shell has it, so that `make`
    does not take the run for finished.

    Lightning's own handler is replaced: it saves nothing, exits with status 0, and its broadcast from within the
    handler meets other ranks in the middle of other collective calls.
    """

    def __init__(self) -> None:
        self._received = 0  # the signal's number
        self._received_at = 0.0  # seconds, of a clock
        self._step = 0  # optimizer steps done before the batch at hand

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handlers: Lightning installs its own just before, and restores the old ones at the end.

        A signal that is ignored stays so: `nohup` lets a run outlive its terminal.
        """
        self._received, self._step = 0, trainer.global_step
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        discard_where_hung_up()
        if self._received:
            if time.monotonic() > self._received_at + ONE_STOP_SECONDS:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self._received, self._received_at = number, time.monotonic()
        rank_zero_info(
            f"{signal.Signals(number).name}: a checkpoint is written after this step, then the run ends; a second "
            "signal ends it at once"
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and end where all ranks have done the same steps.

        Raises:
            SystemExit: A rank has received a signal. All others exit with status 0, since Lightning
                kills the first rank at once when another one ends with an error.
        """
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        if not stepped:
            return  # a checkpoint does not hold accumulated gradients
        stop = bool(self._received)
        if trainer.world_size > 1:
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if not stop:
            return
        callback = trainer.checkpoint_callback
        path = Path(getattr(callback, "dirpath", None) or Path(trainer.default_root_dir) / "checkpoints") / NAME
        trainer.save_checkpoint(path, weights_only=False)
        rank_zero_info(f"Stopped after step {trainer.global_step}. The same command with --ckpt_path {path} goes on.")
        raise SystemExit(128 + (self._received or signal.SIGTERM) if trainer.is_global_zero else 0)


class FinishEpoch(Callback):
    """Lets a run that was stopped between the last step of an epoch and its end go on with the validation.

    Lightning takes a checkpoint that was written after an epoch's last step for the end of the epoch, and would leave
    out the validation and everything else at that point: error rates, and after the last epoch the last checkpoint.
    """

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Mark the step as done and the validation as begun, so that Lightning validates again."""
        loops = checkpoint.get("loops", {}).get("fit_loop", {})
        batches, epochs = loops.get("epoch_loop.batch_progress"), loops.get("epoch_progress")
        if not batches or not batches["is_last_batch"] or epochs["current"]["processed"] == epochs["current"]["ready"]:
            return
        if batches["current"]["completed"] == batches["current"]["processed"]:
            return  # written after the validation
        validation = loops["epoch_loop.val_loop.batch_progress"]
        for span in ("total", "current"):
            batches[span]["completed"] = batches[span]["processed"]
            validation[span] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}


class OtherParts(Callback):
    """Lets a run go on with another number of batches in an optimizer step.

    Data modules cut the same optimizer steps into the batches of any number of processes and of any
    `trainer.accumulate_grad_batches`, and checkpoints are written between steps. So a run may go on with others, at an
    epoch's start and within an epoch; only Lightning's count of the batches that are done must be that of the new ones.
    """

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count the batches that are done as the run cuts steps now, which Lightning restores afterwards."""
        loops = checkpoint.get("loops", {}).get("fit_loop", {})
        loaders = loops.get("state_dict", {}).get("combined_loader") or [{}]
        old_parts, new_parts = loaders[0].get("accumulate_grad_batches"), trainer.accumulate_grad_batches
        if not old_parts or old_parts == new_parts:
            return
        for counts in (loops["epoch_loop.batch_progress"][span] for span in ("total", "current")):
            processed = counts["processed"] // old_parts * new_parts
            # the batch after which a checkpoint is written is processed, and not completed yet
            counts.update({name: number - counts["processed"] + processed for name, number in counts.items()})


class MovedFolder(Callback):
    """Lets a run that was moved, with its folder, go on with the checkpoints that it has chosen.

    Checkpoints hold the absolute paths of those that a metric chose. In another folder Lightning forgets these: it
    would keep as many again, and never remove the old ones.
    """

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Change the paths to those in the folder of the checkpoint that is loaded, if the run saves there."""
        folder = Path(str(trainer.ckpt_path)).resolve().parent
        for callback in trainer.checkpoint_callbacks:
            state = checkpoint["callbacks"].get(callback.state_key, {})
            old = state.get("dirpath")
            if not old or not isinstance(callback, ModelCheckpoint) or Path(str(callback.dirpath)).resolve() != folder:
                continue

            def moved(path: str, old: str = old, new: str = str(callback.dirpath)) -> str:
                return str(Path(new) / Path(path).relative_to(old)) if Path(path).is_relative_to(old) else path

            paths = ("best_model_path", "kth_best_model_path", "last_model_path")
            state |= {name: moved(state[name]) for name in paths if state.get(name)}
            state["best_k_models"] = {moved(path): score for path, score in state.get("best_k_models", {}).items()}
            state["dirpath"] = callback.dirpath


class SaveLastEpoch(Callback):
    """Writes checkpoints of every epoch at its end too, not only after a validation.

    Lightning writes them after a validation wherever not every epoch ends with one: with `check_val_every_n_epoch`,
    `val_check_interval`, or where `max_steps` or `max_time` end training. What was trained since would be lost.

    Checkpoints that are chosen by a metric wait for it. Their `save_last` is written when training has ended.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the checkpoints that are due, and all after the last epoch; Lightning saves nothing twice at a step."""
        loop, epochs = trainer.fit_loop, trainer.current_epoch + 1
        ends = trainer.should_stop or epochs == loop.max_epochs or trainer.global_step == loop.max_steps
        for callback in _unsaved_checkpoints(trainer):
            if (
                callback.monitor is None
                and callback._every_n_epochs > 0
                and (ends or epochs % callback._every_n_epochs == 0)
            ):
                metrics = callback._monitor_candidates(trainer)  # maybe a part of the file's name
                callback._save_topk_checkpoint(trainer, metrics)
                if callback.save_last:
                    callback._save_last_checkpoint(trainer, metrics)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the `save_last` of callbacks that choose checkpoints by a metric."""
        for callback in _unsaved_checkpoints(trainer):
            if callback.save_last is True:
                callback._save_last_checkpoint(trainer, callback._monitor_candidates(trainer))


def _unsaved_checkpoints(trainer: Trainer) -> list[ModelCheckpoint]:
    """Return the callbacks that have not saved the last step."""
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    return [callback for callback in callbacks if not callback._should_skip_saving_checkpoint(trainer)]
