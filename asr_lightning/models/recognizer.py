"""Base class of recognizers: training and evaluation steps, CTC output on the encoder, optimizer."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import lightning
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils.rnn import pad_sequence

from asr_lightning.audio.augment import SpecAugment
from asr_lightning.audio.features import Features, possible_audio
from asr_lightning.batch import Batch
from asr_lightning.decoding.hypothesis import Hypothesis
from asr_lightning.decoding.words import FrameTimes, with_texts
from asr_lightning.errors import InputError, printable
from asr_lightning.losses.ctc import ctc_loss
from asr_lightning.models.averaging import averaged_copies, save_averages
from asr_lightning.models.evaluation import READABLE_AUDIO, Evaluation, evaluating
from asr_lightning.models.fsdp import gather_weights, release_weights, share_weights
from asr_lightning.models.global_batch import GlobalBatch, seed_step, step_with_global_batch
from asr_lightning.models.schedules import begin_schedules, optimizer_and_schedule
from asr_lightning.models.skipped_steps import (
    LOST_BATCHES_IN_A_ROW,
    REVIEW_STEPS,
    GradientGuard,
    clip_gradients,
)
from asr_lightning.models.word_times import measure_frame_times, recognize_words
from asr_lightning.nn.axes import Axis, Tokens, axis, axis_size
from asr_lightning.nn.recurrent import weights_cast_once
from asr_lightning.nn.sequences import Encoder
from asr_lightning.text.tokenizers import Tokenizer, check_coverage

Recognized = list[list[Hypothesis]]  # for each utterance, the best first
AddedLoss = Callable[[Tensor, Tensor, Batch], Tensor]  # (encoded (B, T, D), lengths (B,), batch) -> (B,)


class Recognizer(lightning.LightningModule, ABC):
    """Base class of all architectures, which give `decoder_loss` and `decode`.

    Training minimizes the mean loss of the usable utterances of the global batch, which are those of all ranks and of
    all batches that `accumulate_grad_batches` puts into a step. An utterance whose loss is not finite is skipped, named
    and counted; a step without usable utterances leaves the weights unchanged. All randomness of a step follows from
    the seed, the step and the rank, so a resumed run continues exactly as an uninterrupted one.

    Args:
        tokenizer: The vocabulary.
        features: Compute the encoder's input from audio.
        encoder: `(features (B, T, F), lengths) -> (encoded (B, T', D), lengths)`, as the classes of
            `asr_lightning.nn.conformer`, `asr_lightning.nn.recurrent` and `asr_lightning.models.speech_transformer`.
        ctc_weight: Share in the loss of a CTC output on the encoder, from 0 to below 1; 0 leaves it out
            [Kim et al. 2017, "Joint CTC-attention", §3.1].
        optimizer: Makes an optimizer from parameters; AdamW if None.
        scheduler: Makes a learning rate schedule from an optimizer; it changes the rate in every step.
        augment: Masks over the features in training.

    Raises:
        InputError: The encoder does not fit the features, or `ctc_weight` is out of its range.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        features: Features,
        encoder: Encoder,
        ctc_weight: float = 0.0,
        # With a class as the default, its own arguments, as weight decay, would be kept for another class in a YAML.
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
        augment: SpecAugment | None = None,
    ) -> None:
        super().__init__()
        if not 0.0 <= ctc_weight < 1.0:
            raise InputError(f"{type(self).__name__} needs 0 <= ctc_weight < 1, got {ctc_weight}")
        if encoder.input_dimension != features.dimension:
            raise InputError(
                f"{type(features).__name__} gives {features.dimension} dimensions, but the encoder's input_dimension "
                f"is {encoder.input_dimension}: make them equal"
            )
        self.tokenizer = tokenizer
        self.features = features
        self.augment = augment
        self.encoder = encoder
        self.ctc_weight = ctc_weight
        self.ctc = CTCOutput(tokenizer.tokens, tokenizer.blank_id, encoder.output_axis()) if ctc_weight > 0 else None
        self.make_optimizer = optimizer or torch.optim.AdamW
        self.make_scheduler = scheduler
        self.added_loss: AddedLoss | None = None  # in training, as of the callback Distillation
        self._evaluation: Evaluation | None = None
        self._unreviewed: list[tuple[list[str], Tensor]] = []  # ids of batches, and which utterances were usable
        self._utterances_read: int | None = None  # in this epoch, by this rank; None in an epoch resumed in its middle
        self._frame_times: FrameTimes | None = None
        self._guard = GradientGuard()
        self.global_batch = GlobalBatch(self.device)
        self.register_buffer("_lost_batches", torch.zeros((), dtype=torch.int64), persistent=False)  # in a row
        self._lost_batches: Tensor

    @abstractmethod
    def decoder_loss(self, encoded: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor) -> Tensor:
        """Return the loss of each utterance, (B,); infinite where its tokens cannot be aligned to its frames.

        Args:
            encoded: (B, T, D).
            lengths: (B,) real frames.
            targets: (B, U) token ids, padded with blanks.
            target_lengths: (B,) real tokens.
        """

    @abstractmethod
    def decode(self, encoded: Tensor, lengths: Tensor) -> Recognized:
        """Return the hypotheses of each utterance, at least one each, the best first.

        Args:
            encoded: (B, T, D).
            lengths: (B,) real frames.
        """

    @classmethod
    def load_from_checkpoint(  # type: ignore[override] # Lightning's takes arguments that change the model
        cls, checkpoint_path: str | Path, map_location: torch.device | str = "cpu"
    ) -> Self:
        """Return the recognizer of a checkpoint in evaluation mode, as `asr_lightning.models.checkpoints.load_model`.

        Args:
            checkpoint_path: Path of the checkpoint.
            map_location: The device of the recognizer.

        Raises:
            InputError: As `load_model`.
        """
        from asr_lightning.models.checkpoints import load_model

        return load_model(checkpoint_path, cls).to(map_location)

    def fingerprints(self) -> dict[str, str]:
        """Return checksums, by name, of files that define the outputs, as the tied states of a hybrid: here none.

        A checkpoint keeps them, and is refused beside a model that has others.
        """
        return {}

    def forward(self, audio: Tensor, audio_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode audio (B, S) as (B, T, D), with the number of real frames of each row, (B,)."""
        return self.encoder(*self.featurize(audio, audio_lengths))

    @torch.no_grad()
    def recognize(self, batch: Batch) -> Recognized:
        """Return the hypotheses of each of the B utterances, at least one each, the best first.

        This is in evaluation mode, as after a training too, which leaves a network in training mode.
        """
        with evaluating(self):
            return self.decode(*self(batch.audio, batch.audio_lengths))

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss of each utterance, (B,), in training with `added_loss`.

        It is infinite where the tokens of an utterance cannot be aligned to its frames.
        """
        encoded, lengths = self(batch.audio, batch.audio_lengths)
        losses = self.encoded_loss(encoded, lengths, batch)
        if self.training and self.added_loss is not None:
            losses = losses + self.added_loss(encoded, lengths, batch)
        return losses

    def encoded_loss(self, encoded: Tensor, lengths: Tensor, batch: Batch) -> Tensor:
        """Return the loss of each utterance, the decoder's mixed with that of CTC, (B,); infinite where either is.

        Args:
            encoded: (B, T, D), the batch as `forward` encodes it.
            lengths: (B,) real frames.
            batch: Its transcripts are the targets.
        """
        targets, target_lengths = self.targets(batch)  # (B, U)
        losses = self.decoder_loss(encoded, lengths, targets, target_lengths)
        if self.ctc is None:
            return losses
        ctc_losses = self.ctc.loss(encoded, lengths, targets, target_lengths)
        return (1.0 - self.ctc_weight) * losses + self.ctc_weight * ctc_losses

    def transcribe(self, batch: Batch) -> list[str]:
        """Return the text of the best hypothesis of each of the B utterances."""
        return [self.tokenizer.decode(hypotheses[0].tokens) for hypotheses in self.recognize(batch)]

    recognize_words = recognize_words

    def token_frames(self, encoded: Tensor, lengths: Tensor, best: list[Hypothesis]) -> list[tuple[int, ...]]:
        """Return the frames of the tokens of the best hypothesis of each encoded utterance (B, T, D).

        Here they are those that the search has found, maybe none.
        """
        return [hypothesis.frames for hypothesis in best]

    def frame_times(self) -> FrameTimes:
        """Return the times of encoder frames, from the measured subsampling of the encoder."""
        if self._frame_times is None:
            self._frame_times = measure_frame_times(self)
        return self._frame_times

    def featurize(self, audio: Tensor, audio_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features (B, T, D) of audio (B, S), masked at random in training, and their lengths (B,)."""
        features, lengths = self.features(audio, audio_lengths)
        if self.augment is not None and self.training:
            features = self.augment(features, lengths)
        return features.to(self.dtype), lengths  # float32, unless the weights are in half or double precision

    def targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the token ids (B, U) of the transcripts, padded with blanks, and their lengths (B,)."""
        rows = [torch.tensor(self.tokenizer.encode(text), dtype=torch.int64) for text in batch.texts]
        lengths = torch.tensor([len(row) for row in rows])
        targets = pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.blank_id)
        return targets.to(self.device, non_blocking=True), lengths.to(self.device, non_blocking=True)

    def setup(self, stage: str) -> None:
        """Warn of characters of the transcripts that the vocabulary cannot write, if the data module counts them.

        Raises:
            InputError: They are so many that nothing could be learned or scored.
        """
        characters = getattr(self.trainer.datamodule, "characters", None)  # type: ignore[attr-defined]
        if characters is None:
            return
        for subset, counts in characters(stage).items():
            if message := check_coverage(self.tokenizer, counts, subset):
                rank_zero_warn(message)

    # Training.

    def configure_model(self) -> None:
        """Share the weights between processes, if the strategy does so.

        Raises:
            InputError: The strategy also splits layers, or saves checkpoints in another format than one file.
        """
        if self.device_mesh is None:
            return
        share_weights(self, self.encoder, self.device_mesh)
        if getattr(self.trainer.strategy, "_save_distributed_checkpoint", False):
            raise InputError(
                "ModelParallelStrategy: expected checkpoints of one file, which `--ckpt_path last` and all tools load, "
                "got save_distributed_checkpoint: true. Set "
                "--trainer.strategy.init_args.save_distributed_checkpoint false"
            )

    on_train_start = begin_schedules

    def on_train_epoch_start(self) -> None:
        """Start counting the utterances of the epoch."""
        self._utterances_read = 0

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the step, so that dropout and masks do not depend on the step at which a run was resumed."""
        seed_step(self.trainer)
        if self.augment is not None:
            self.augment.epoch = self.trainer.current_epoch
        if batch_idx % self.trainer.accumulate_grad_batches == 0:  # where Lightning sets gradients to zero
            self.global_batch = GlobalBatch(self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return this rank's part of the mean loss of the step's usable utterances, before it is rescaled."""
        self._utterances_read = None if self._utterances_read is None else self._utterances_read + len(batch)
        if len(batch):
            self.features.check_rate(batch.sample_rate)
            losses = infinite_without_audio(self.loss(batch), batch)
            usable = losses.isfinite()
            total = losses.masked_fill(~usable, 0.0).sum()
        else:  # every rank takes part in every step, also a rank that has no more utterances
            usable = torch.zeros(0, dtype=torch.bool, device=self.device)
            total = self._zero_loss()
        loss, count = self.global_batch.add(self, total, usable.sum(), batch.ids)
        self._lost_batches = torch.where(count == 0, self._lost_batches + 1, torch.zeros_like(self._lost_batches))
        self._unreviewed.append((batch.ids, usable))
        self.log(
            "train/skipped_utterances", (~usable).sum().float(), on_step=False, on_epoch=True, reduce_fx="sum",
            batch_size=max(1, len(batch)), sync_dist=True,
        )  # fmt: skip
        return loss

    def _zero_loss(self) -> Tensor:
        """Return a zero that depends on every parameter, since the other ranks wait for the gradients of this rank."""
        zero = torch.zeros((), device=self.device)
        if self.device_mesh is not None:  # the other ranks wait in the forward pass too, for the weights of this rank
            samples = self.features.sample_rate
            encoded, _ = self(zero.expand(1, samples), torch.full((1,), samples, device=self.device))
            zero = encoded.sum()
        unshared = (parameter for parameter in self.parameters() if not isinstance(parameter, DTensor))
        return sum((parameter.sum() for parameter in unshared), start=zero) * 0

    optimizer_step = step_with_global_batch

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Skip the step when no utterance was usable or the gradient is not finite."""
        self.log("train/loss", self.global_batch.mean(self), batch_size=1)
        self._guard.guard(self, optimizer, self.global_batch.count > 0, self.global_batch.ids, LOST_BATCHES_IN_A_ROW)
        many = len(self._unreviewed) >= REVIEW_STEPS
        if many or (self.device.type == "cpu" and int(self._lost_batches) >= LOST_BATCHES_IN_A_ROW):
            self._review_utterances()

    configure_gradient_clipping = clip_gradients
    configure_callbacks = averaged_copies
    on_save_checkpoint = save_averages

    def on_train_epoch_end(self) -> None:
        """Warn of steps and utterances that were skipped since the last review.

        Raises:
            InputError: No rank has read any utterance.
        """
        self._guard.review(self, LOST_BATCHES_IN_A_ROW)
        self._review_utterances()
        read, self._utterances_read = self._utterances_read, None
        if read is not None and not self.trainer.strategy.reduce_boolean_decision(read > 0, all=False):
            raise InputError(
                f"epoch {self.trainer.current_epoch + 1} has read no utterance: {READABLE_AUDIO} Nothing was learned; "
                "the last checkpoint is complete."
            )

    def _review_utterances(self) -> None:
        """Warn of utterances without a finite loss; for many batches at once, since reading a value stalls a GPU."""
        skipped = [
            id
            for ids, usable in self._unreviewed
            for id, was_usable in zip(ids, usable.tolist(), strict=True)
            if not was_usable
        ]
        self._unreviewed.clear()
        if skipped:
            rank_zero_warn(
                f"{len(skipped)} utterances were skipped, their loss is not finite (more tokens than frames can carry, "
                "impossible samples, or numbers that overflowed): "
                f"{printable(', '.join(skipped[:20]))}{' …' if len(skipped) > 20 else ''}"
            )
        if (lost := int(self._lost_batches)) >= LOST_BATCHES_IN_A_ROW:
            raise InputError(
                f"no usable loss in {lost} batches in a row, last of utterances {', '.join(skipped[-5:])}. Expected "
                "finite losses. Lower the learning rate, or check these utterances. The weights were not changed "
                "since, and the last checkpoint is complete."
            )

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - Lightning's own union of eleven types
        """Make the optimizer and its schedule."""
        return optimizer_and_schedule(self.make_optimizer(self.parameters()), self.make_scheduler)

    # Evaluation.

    def on_validation_epoch_start(self) -> None:
        """Reset the error counts."""
        self._begin_evaluation("val", self.trainer.val_dataloaders)

    def on_test_epoch_start(self) -> None:
        """Reset the error counts."""
        self._begin_evaluation("test", self.trainer.test_dataloaders)

    def on_predict_epoch_start(self) -> None:
        """Give every rank all weights: ranks recognize independently."""
        gather_weights(self)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Recognize a batch, without its transcripts, and count the errors.

        Returns:
            `hypotheses`, and `references`, the transcripts as they are scored.
        """
        references = [self.tokenizer.fold(text) for text in batch.texts]
        return {"hypotheses": self._evaluate(batch, references, dataloader_idx), "references": references}

    test_step = validation_step

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Recognized]:
        """Recognize a batch, with words, their times and confidence."""
        if not len(batch):
            return {"hypotheses": []}
        return {"hypotheses": self.recognize_words(batch)}

    def on_validation_epoch_end(self) -> None:
        """Log the error rates of every subset and of all together.

        Raises:
            InputError: No utterance of a subset could be read, unless this is Lightning's sanity check.
        """
        self._log_evaluation()

    def on_test_epoch_end(self) -> None:
        """Log the error rates of every subset and of all together.

        Raises:
            InputError: No utterance of a subset could be read.
        """
        self._log_evaluation()

    def on_predict_epoch_end(self) -> None:
        """Share the weights between ranks again."""
        release_weights(self)

    def _begin_evaluation(self, stage: str, loaders: Any) -> None:  # noqa: ANN401 - of any data module
        self._evaluation = Evaluation(stage, loaders, self.device)
        gather_weights(self)

    def _evaluate(self, batch: Batch, references: list[str], dataloader_idx: int) -> Recognized:
        """Encode a batch once, for its hypotheses and its losses, and count its errors."""
        if not len(batch):
            return []
        self.features.check_rate(batch.sample_rate)
        start = time.perf_counter()
        with weights_cast_once(self.device):
            encoded, lengths = self(batch.audio, batch.audio_lengths)
            recognized = with_texts(self.decode(encoded, lengths), self.tokenizer)
        seconds = time.perf_counter() - start  # the texts are on the CPU, so the GPU has finished
        losses = infinite_without_audio(self.encoded_loss(encoded, lengths, batch), batch)
        texts = [best.text for best, *_ in recognized]
        spelled = [self.tokenizer.decode(self.tokenizer.encode(text)) for text in references]
        assert self._evaluation is not None
        self._evaluation.update(dataloader_idx, references, texts, spelled, losses, seconds, batch.seconds)
        return recognized

    def _log_evaluation(self) -> None:
        release_weights(self)
        assert self._evaluation is not None
        self._evaluation.log(self, vocabulary=type(self.tokenizer).__name__)


class CTCOutput(nn.Linear):
    """Scores of all tokens for every frame of the encoder's output.

    Args:
        vocabulary: The V tokens.
        blank_id: The blank's token id.
        encoded: Axis of the encoder's output.
        bias: Whether every token has a bias.
    """

    def __init__(self, vocabulary: tuple[str, ...], blank_id: int, encoded: Axis, bias: bool = True) -> None:
        super().__init__(axis_size(encoded), len(vocabulary), bias)
        self.vocabulary = vocabulary
        self.blank_id = blank_id
        self.encoded = encoded

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of weight and bias, which have a row per token."""
        tokens = axis(Tokens(self.vocabulary))
        axes: dict[str, tuple[Axis, ...]] = {"weight": (tokens, self.encoded)}
        return axes if self.bias is None else {**axes, "bias": (tokens,)}

    def loss(self, encoded: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor) -> Tensor:
        """Return the CTC loss (B,) of token ids (B, U), given encoded utterances (B, T, D)."""
        return ctc_loss(self(encoded), targets, lengths, target_lengths, self.blank_id)


def infinite_without_audio(losses: Tensor, batch: Batch) -> Tensor:
    """Return losses (B,) of a batch with infinity where the audio of an utterance has impossible samples."""
    return losses.masked_fill(~possible_audio(batch.audio, batch.audio_lengths), torch.inf)
