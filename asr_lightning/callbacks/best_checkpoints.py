"""Checkpoints that are chosen by a development subset, and no choice by a subset that is tested on."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from asr_lightning.errors import InputError

POOLED = "val"  # of all validation subsets together


class BestCheckpoints(ModelCheckpoint):
    """Keeps the checkpoints with the lowest error rates on a development subset, for testing and averaging.

    They hold weights only, as `best-epoch=<epoch>-step=<step>.ckpt`. Ten are what public recipes average: ESPnet's
    `keep_nbest_models: 10` (egs2/librispeech/asr1/conf), SpeechBrain's `avg_checkpoints: 10`
    (recipes/LibriSpeech/ASR); `asr average` does.

    Args:
        keep: How many.
        metric: An error rate, as `wer` or `cer`.
        subset: Its subset; the first one that the data validate on and neither train nor test on if None.
    """

    def __init__(self, keep: int = 10, metric: str = "wer", subset: str | None = None) -> None:
        super().__init__(
            filename="best-{epoch}-{step}",
            monitor=metric,
            mode="min",
            save_top_k=keep,
            save_weights_only=True,
            save_on_train_epoch_end=False,  # where training ends within an epoch, its last metric is of earlier weights
            enable_version_counter=False,
        )
        self.metric = metric
        self.subset = subset

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the subset.

        Raises:
            InputError: There is none, or the data do not validate on it, or they test on it.
        """
        if stage == "fit":
            data = trainer.datamodule  # type: ignore[attr-defined]
            self.monitor = f"{self._chosen(getattr(data, 'subsets', {}))}/{self.metric}"
        super().setup(trainer, pl_module, stage)

    def _chosen(self, subsets: Mapping[str, Sequence[str]]) -> str:
        candidates = development_subsets(subsets)
        if self.subset is None and candidates:
            return candidates[0]
        if self.subset in candidates:
            return self.subset
        raise InputError(
            f"BestCheckpoints: expected {self.subset or 'a subset'} among data.init_args.validation_subsets that is "
            f"neither trained nor tested on, found {', '.join(subsets.get('validation', ())) or 'none'}: validate on a "
            "development subset, as dev-clean, or take BestCheckpoints out"
        )


def development_subsets(subsets: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the subsets that are validated on and neither trained nor tested on: those to choose by."""
    used = {*subsets.get("train", ()), *subsets.get("test", ())}
    return [subset for subset in subsets.get("validation", ()) if subset not in used]


def run_checkpoints(
    every_n_steps: int = 1000,
    best: int = 10,
    metric: str = "wer",
    subset: str | None = None,
    subsets: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> list[ModelCheckpoint]:
    """Return the callbacks that write the checkpoints of every run.

    Args:
        every_n_steps: Optimizer steps between two writings of `last-step.ckpt`; 0 writes none. `last.ckpt` is that of
            the last epoch.
        best: How many checkpoints with the lowest error rates on a development subset are kept, see `BestCheckpoints`;
            0 keeps none. Data without a development subset keep none.
        metric: The error rate that they are chosen by, as `wer` or `cer`.
        subset: The development subset; the first one if None.
        subsets: Of the data, by what they are for.

    Raises:
        InputError: A number is negative.
    """
    for name, number in (("every_n_steps", every_n_steps), ("best", best)):
        if number < 0:
            raise InputError(f"checkpoints.{name}: expected 0 or more, got {number}")
    callbacks = [ModelCheckpoint(filename="last", every_n_epochs=1, enable_version_counter=False)]
    if every_n_steps:
        step = ModelCheckpoint(filename="last-step", every_n_train_steps=every_n_steps, enable_version_counter=False)
        callbacks.append(step)
    if best and (subset is not None or development_subsets(subsets)):
        callbacks.append(BestCheckpoints(best, metric, subset))
    return callbacks


def refuse_choice_by_tests(callbacks: Iterable[Callback], subsets: Mapping[str, Sequence[str]]) -> None:
    """Refuse callbacks that keep checkpoints or end training by a subset that the experiment tests on.

    Args:
        callbacks: Of the trainer.
        subsets: Of the data, by what they are for: `validation` and `test`.

    Raises:
        InputError: A callback does; all checkpoints may be kept (`save_top_k: -1`), since nothing is chosen then.
    """
    tested, validated = list(subsets.get("test", ())), list(subsets.get("validation", ()))
    for callback in callbacks:
        monitor = _monitor(callback)
        subset = (monitor or "").rpartition("/")[0]
        pooled = subset == POOLED and POOLED not in validated
        overlap = [name for name in tested if (name in validated if pooled else name == subset)]
        if overlap:
            advice = [name for name in validated if name not in tested]
            raise InputError(
                f"{type(callback).__name__}: expected a metric of a subset that the experiment does not test on, got "
                f"{monitor}, which is of {', '.join(overlap)} among data.init_args.test_subsets: what is chosen by it "
                f"cannot be tested on it. Set monitor to one of {', '.join(advice) or 'a development subset'}, as "
                f"{(advice or ['dev-clean'])[0]}/wer"
            )


def save_after_validation(callbacks: Iterable[Callback], subsets: Mapping[str, Sequence[str]]) -> None:
    """Let callbacks that choose by a metric of a validation save after it, and at no other time.

    Lightning saves at the end of training too, maybe within an epoch, by the metric of earlier weights.

    Args:
        callbacks: Of the trainer.
        subsets: Of the data, by what they are for: `validation`.
    """
    validated = {POOLED, *subsets.get("validation", ())}
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint) and (callback.monitor or "").rpartition("/")[0] in validated:
            if callback._save_on_train_epoch_end is None:
                callback._save_on_train_epoch_end = False


def _monitor(callback: Callback) -> str | None:
    """Return the metric by which a callback chooses."""
    if isinstance(callback, ModelCheckpoint):
        return None if callback.save_top_k == -1 else callback.monitor
    return callback.monitor if isinstance(callback, EarlyStopping) else None
