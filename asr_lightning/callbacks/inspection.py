"""Base class of callbacks that inspect a network in validation, test or prediction."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from asr_lightning.batch import Batch
from asr_lightning.decoding.hypothesis import Hypothesis
from asr_lightning.errors import InputError
from asr_lightning.models.recognizer import Recognizer

Stage = Literal["validate", "test", "predict"]
STAGES = ("validate", "test", "predict")


def wandb_loggers(trainer: Trainer) -> list[WandbLogger]:
    """Return the loggers that take pictures and tables."""
    return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]


def without_result(trainer: Trainer, message: str) -> None:
    """Refuse to end without a result; in a validation while training, only warn: early in training there may be none.

    Args:
        trainer: Of the test, prediction or validation that ends.
        message: What is missing, and what makes it.

    Raises:
        InputError: This is not a validation while training.
    """
    if trainer.state.fn != TrainerFn.FITTING:
        raise InputError(message)
    rank_zero_warn(message)


class Inspection(Callback):
    """Base class of callbacks that begin, process every batch and end, in the stages that are asked for.

    Args:
        stages: When: `validate`, `test`, `predict`.

    Raises:
        ValueError: There is no such stage.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        if unknown := [stage for stage in stages if stage not in STAGES]:
            raise ValueError(f"stages are {', '.join(STAGES)}, got {unknown}")
        self.stages = tuple(stages)
        self._stage: str | None = None  # the current one

    def begin(self, trainer: Trainer, recognizer: Recognizer, folder: Path) -> None:
        """Begin a stage; the folder is `<run folder>/<callback>/<stage>`."""

    def process(self, trainer: Trainer, recognizer: Recognizer, batch: Batch, best: list[Hypothesis]) -> None:
        """Process a batch of B utterances, one at least, and their best hypotheses."""

    def end(self, trainer: Trainer, recognizer: Recognizer, folder: Path) -> None:
        """Merge what was collected; called in all processes."""

    def _begin(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stage = stage if stage in self.stages and not trainer.sanity_checking else None
        if self._stage is not None:
            assert isinstance(pl_module, Recognizer)
            self.begin(trainer, pl_module, self._folder(trainer))

    def _end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._stage is not None:
            assert isinstance(pl_module, Recognizer)
            self.end(trainer, pl_module, self._folder(trainer))
        self._stage = None

    def _folder(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / type(self).__name__.lower() / str(self._stage)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, if validation is wanted."""
        self._begin(trainer, pl_module, "validate")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, if the test is wanted."""
        self._begin(trainer, pl_module, "test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, if prediction is wanted."""
        self._begin(trainer, pl_module, "predict")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Process a batch."""
        if self._stage is not None and len(batch):
            assert isinstance(pl_module, Recognizer)
            self.process(trainer, pl_module, batch, [hypotheses[0] for hypotheses in outputs["hypotheses"]])

    on_test_batch_end = on_validation_batch_end
    on_predict_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End."""
        self._end(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End."""
        self._end(trainer, pl_module)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End."""
        self._end(trainer, pl_module)
