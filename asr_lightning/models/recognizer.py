"""What every recogniser shares: steps, error rates, optimiser wiring, and how one comes back from a checkpoint."""

import os
import time
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import lightning
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils.rnn import pad_sequence
from torchmetrics import MeanMetric, SumMetric

from asr_lightning.audio.augment import SpecAugment
from asr_lightning.audio.features import Features, possible_audio
from asr_lightning.batch import Batch
from asr_lightning.decoding.hypothesis import Hypothesis
from asr_lightning.decoding.words import FrameTimes, Pooling, words_of
from asr_lightning.errors import InputError, printable
from asr_lightning.models.averaging import averaged_copies, save_averages
from asr_lightning.models.global_batch import GlobalBatch, step_with_global_batch
from asr_lightning.models.schedules import begin_schedules
from asr_lightning.models.sharding import make_shared, make_whole, share
from asr_lightning.models.useless_steps import REVIEW_STEPS, GradientGuard, clip_gradients
from asr_lightning.nn.ctc import CTCOutput
from asr_lightning.nn.encoder import Encoder
from asr_lightning.scoring.error_rates import ErrorRates
from asr_lightning.text.coverage import check_coverage
from asr_lightning.text.tokenizers import Tokenizer

Recognized = list[list[Hypothesis]]  # of each utterance, the best first

NOTHING_READ = "expected audio that can be read. The warnings above name the files and say what is wrong with them."
MEASURED_FRAMES = 480  # of features, to see how many times fewer come out of an encoder
LOST_BATCHES_IN_A_ROW = 100  # without one usable loss: training has diverged, or the corpus does not fit the model


class Recognizer(lightning.LightningModule, ABC):
    """Base class of all architectures, which give `decoder_loss` and `recognize`.

    Training minimises the mean loss of the usable utterances of the global batch, which are those of all ranks and of
    all batches that `accumulate_grad_batches` puts into a step: an utterance whose loss is not finite is left out,
    named and counted; a step without any leaves the weights untouched. All randomness of a step follows from the seed,
    the step and the rank, so a resumed run goes on exactly as an undisturbed one.

    Args:
        tokenizer: The vocabulary.
        features: From audio to what the encoder reads.
        encoder: `(features (B, T, F), lengths) -> (encoded (B, T', D), lengths)`, as the classes of
            `asr_lightning.nn.conformer`, `asr_lightning.nn.recurrent` and `asr_lightning.models.speech_transformer`.
        ctc_weight: Share in the loss of a CTC output on the encoder, from 0 to below 1; 0 leaves it out
            [Kim et al. 2017, "Joint CTC-attention", §3.1].
        optimizer: Makes an optimiser from parameters; AdamW if None.
        scheduler: Makes a learning rate schedule from an optimiser; it moves every step.
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
        # A class as the default would lend its own arguments, as weight decay, to whatever class an experiment names.
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
        self._evaluations: list[_Evaluation] = []
        self._pending: list[tuple[list[str], Tensor]] = []
        self._read: int | None = None  # utterances of this epoch and rank; unknown where one goes on in mid-epoch
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
    def recognize(self, batch: Batch) -> Recognized:
        """Return the hypotheses of each of the B utterances, at least one each, the best first."""

    def fingerprints(self) -> dict[str, str]:
        """Return by name what the outputs mean that neither the configuration nor the weights say: nothing.

        A checkpoint keeps them, and is refused beside a model that has others.
        """
        return {}

    def forward(self, audio: Tensor, audio_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode audio (B, S) as (B, T, D), and say how many frames of each row are real, (B,)."""
        return self.encoder(*self.featurize(audio, audio_lengths))

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss of each utterance, the decoder's mixed with that of CTC, (B,); infinite as that of either."""
        encoded, lengths = self(batch.audio, batch.audio_lengths)  # (B, T, D)
        targets, target_lengths = self.targets(batch)  # (B, U)
        losses = self.decoder_loss(encoded, lengths, targets, target_lengths)
        if self.ctc is None:
            return losses
        aligned = self.ctc.loss(encoded, lengths, targets, target_lengths)
        return (1.0 - self.ctc_weight) * losses + self.ctc_weight * aligned

    def _losses(self, batch: Batch) -> Tensor:
        """Return the loss of each utterance, (B,), as `loss`; infinite where the audio has impossible samples."""
        return self.loss(batch).masked_fill(~possible_audio(batch.audio, batch.audio_lengths), torch.inf)

    def transcribe(self, batch: Batch) -> list[str]:
        """Return what was said in each of the B utterances."""
        return [self.tokenizer.decode(hypotheses[0].tokens) for hypotheses in self.recognize(batch)]

    @torch.no_grad()
    def recognize_words(self, batch: Batch, pooling: Pooling = "product") -> Recognized:
        """Return the hypotheses of each of the B utterances with their texts, and words with times and confidence.

        Args:
            batch: B utterances; all words of one of them lie within its audio.
            pooling: How the confidence of a word follows from the probabilities of its tokens.
        """
        recognized = self._recognize(batch)
        if any(one.tokens and not one.frames and not one.words for hypotheses in recognized for one in hypotheses[:1]):
            self.locate(batch, recognized)
        times = self.frame_times()
        for hypotheses, samples in zip(recognized, batch.audio_lengths.tolist(), strict=True):
            for one in hypotheses:
                one.words = one.words or words_of(one, self.tokenizer, times, samples / batch.sample_rate, pooling)
        return recognized

    def locate(self, batch: Batch, recognized: Recognized) -> None:  # noqa: B027 - a search may know all there is
        """Find the frames of the tokens of the best hypotheses, which the search has not found: in no frames here."""

    def frame_times(self) -> FrameTimes:
        """Return when encoder frames are, from how many frames the encoder makes of many feature frames."""
        if self._frame_times is None:
            training = self.training
            self.eval()
            features = torch.zeros(1, MEASURED_FRAMES, self.features.dimension, device=self.device)
            encoded, _ = self.encoder(features.to(self.dtype), torch.full((1,), MEASURED_FRAMES, device=self.device))
            self.train(training)
            factor = round(MEASURED_FRAMES / encoded.shape[1])
            window = self.features.window_samples / self.features.sample_rate
            self._frame_times = FrameTimes(factor * self.features.hop_seconds, window)
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
        """Say what of the transcripts the vocabulary cannot write, where the data module counts their characters.

        Raises:
            InputError: That is so much that nothing could be learned or scored.
        """
        characters = getattr(self.trainer.datamodule, "characters", None)  # type: ignore[attr-defined]
        if characters is None:
            return
        for subset, counts in characters(stage).items():
            if message := check_coverage(self.tokenizer, counts, subset):
                rank_zero_warn(message)

    # Training.

    def configure_model(self) -> None:
        """Let processes share the weights, if the strategy says so.

        Raises:
            InputError: It would also split layers, or save what nothing here loads.
        """
        if self.device_mesh is None:
            return
        share(self, self.encoder, self.device_mesh)
        if getattr(self.trainer.strategy, "_save_distributed_checkpoint", False):
            raise InputError(
                "ModelParallelStrategy: expected checkpoints of one file, which `--ckpt_path last` and all tools load, "
                "got save_distributed_checkpoint: true. Set "
                "--trainer.strategy.init_args.save_distributed_checkpoint false"
            )

    on_train_start = begin_schedules

    def on_train_epoch_start(self) -> None:
        """Begin counting what is read."""
        self._read = 0

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the step, so that dropout and masks do not depend on where a run was resumed."""
        seed_step(self.trainer)
        if self.augment is not None:
            self.augment.epoch = self.trainer.current_epoch
        if batch_idx % self.trainer.accumulate_grad_batches == 0:  # where Lightning sets gradients to zero
            self.global_batch = GlobalBatch(self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return this rank's part of the mean loss of the step's usable utterances, before it is rescaled."""
        self._read = None if self._read is None else self._read + len(batch)
        if len(batch):
            self._check_rate(batch)
            losses = self._losses(batch)
            usable = losses.isfinite()
            total = losses.masked_fill(~usable, 0.0).sum()
        else:  # every rank takes part in every step, also one that has run out of utterances
            usable = torch.zeros(0, dtype=torch.bool, device=self.device)
            total = self._nothing()
        loss, count = self.global_batch.add(self, total, usable.sum(), batch.ids)
        self._lost_batches = torch.where(count == 0, self._lost_batches + 1, torch.zeros_like(self._lost_batches))
        self._pending.append((batch.ids, usable))
        self.log(
            "train/skipped_utterances", (~usable).sum().float(), on_step=False, on_epoch=True, reduce_fx="sum",
            batch_size=max(1, len(batch)), sync_dist=True,
        )  # fmt: skip
        return loss

    def _nothing(self) -> Tensor:
        """Return a zero that depends on every parameter, so that no rank waits for a gradient that never comes."""
        zero = torch.zeros((), device=self.device)
        if self.device_mesh is not None:  # other ranks wait in the forward pass too, for the weights they lack
            second = self.features.sample_rate
            encoded, _ = self(zero.expand(1, second), torch.full((1,), second, device=self.device))
            zero = encoded.sum()
        whole = (parameter for parameter in self.parameters() if not isinstance(parameter, DTensor))
        return sum((parameter.sum() for parameter in whole), start=zero) * 0

    optimizer_step = step_with_global_batch

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave the weights alone when no utterance was usable or the gradient is not finite."""
        self.log("train/loss", self.global_batch.mean(self), batch_size=1)
        self._guard.guard(self, optimizer, self.global_batch.count > 0, self.global_batch.ids, LOST_BATCHES_IN_A_ROW)
        many = len(self._pending) >= REVIEW_STEPS
        if many or (self.device.type == "cpu" and int(self._lost_batches) >= LOST_BATCHES_IN_A_ROW):
            self._review_pending()

    configure_gradient_clipping = clip_gradients
    configure_callbacks = averaged_copies
    on_save_checkpoint = save_averages

    def on_train_epoch_end(self) -> None:
        """Name what was skipped since the last look.

        Raises:
            InputError: No rank has read any utterance.
        """
        self._guard.review(LOST_BATCHES_IN_A_ROW)
        self._review_pending()
        read, self._read = self._read, None
        if read is not None and not self.trainer.strategy.reduce_boolean_decision(read > 0, all=False):
            raise InputError(
                f"epoch {self.trainer.current_epoch + 1} has read no utterance: {NOTHING_READ} Nothing was learned; "
                "the last checkpoint is whole."
            )

    def _review_pending(self) -> None:
        # Looked at in bulk, since asking for a value stalls an accelerator.
        skipped = [
            name for ids, usable in self._pending for name, use in zip(ids, usable.tolist(), strict=True) if not use
        ]
        self._pending.clear()
        if skipped:
            rank_zero_warn(
                f"{len(skipped)} utterances were skipped, their loss is not finite (more tokens than frames can carry, "
                "impossible samples, or numbers that overflowed): "
                f"{printable(', '.join(skipped[:20]))}{' …' if len(skipped) > 20 else ''}"
            )
        if (lost := int(self._lost_batches)) >= LOST_BATCHES_IN_A_ROW:
            raise InputError(
                f"no usable loss in {lost} batches in a row, last of utterances {', '.join(skipped[-5:])}. Expected "
                "finite losses. Lower the learning rate, or look at these utterances; the weights were left untouched "
                "since, and the last checkpoint is whole."
            )

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - Lightning's own union of eleven types
        """Make the optimiser and its schedule."""
        return optimizer_and_schedule(self.make_optimizer(self.parameters()), self.make_scheduler)

    # Evaluation.

    def on_validation_epoch_start(self) -> None:
        """Begin counting errors anew."""
        self._begin_evaluation(self.trainer.val_dataloaders, "val")

    def on_test_epoch_start(self) -> None:
        """Begin counting errors anew."""
        self._begin_evaluation(self.trainer.test_dataloaders, "test")

    def on_predict_epoch_start(self) -> None:
        """Let every rank recognise on its own."""
        make_whole(self)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Recognise a batch freely, without its transcripts, and count the errors.

        Returns:
            `hypotheses`, and the transcripts as they are scored, `references`.
        """
        references = [self.tokenizer.fold(text) for text in batch.texts]
        return {"hypotheses": self._evaluate(batch, references, dataloader_idx), "references": references}

    test_step = validation_step

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Recognized]:
        """Recognize a batch, with words, their times and confidence."""
        return {"hypotheses": self.recognize_words(batch)}

    def on_validation_epoch_end(self) -> None:
        """Log the error rates of every subset and of all together.

        Raises:
            InputError: No utterance of a subset could be read; looking at the first batches only is no evaluation.
        """
        self._log_evaluation()

    def on_test_epoch_end(self) -> None:
        """Log the error rates of every subset and of all together.

        Raises:
            InputError: No utterance of a subset could be read.
        """
        self._log_evaluation()

    def on_predict_epoch_end(self) -> None:
        """Go back to what ranks share."""
        make_shared(self)

    def _begin_evaluation(self, loaders: Any, stage: str) -> None:  # noqa: ANN401 - whatever a data module returns
        names = list(loaders) if isinstance(loaders, dict) else []
        self._evaluations = [_Evaluation(name, self.device) for name in [stage, *names]]
        make_whole(self)

    def _evaluate(self, batch: Batch, references: list[str], dataloader_idx: int) -> Recognized:
        before = time.perf_counter()
        recognized = self._recognize(batch)
        seconds = time.perf_counter() - before  # texts are on the CPU: nothing is left in a queue
        if len(batch):
            texts = [best.text for best, *_ in recognized]
            spelled = [self.tokenizer.decode(self.tokenizer.encode(text)) for text in references]
            losses = self._losses(batch)
            everything, *subsets = self._evaluations
            for evaluation in [everything, *subsets[dataloader_idx : dataloader_idx + 1]]:
                evaluation.update(references, texts, spelled, losses, seconds, batch.seconds)
        return recognized

    def _recognize(self, batch: Batch) -> Recognized:
        if not len(batch):
            return []
        self._check_rate(batch)
        return [
            [replace(one, text=self.tokenizer.decode(one.tokens)) for one in hypotheses]
            for hypotheses in self.recognize(batch)
        ]

    def _log_evaluation(self) -> None:
        make_shared(self)
        everything, *subsets = self._evaluations
        pooled = [] if everything.name in [subset.name for subset in subsets] else [everything]
        found = {evaluation.name: evaluation.compute() for evaluation in [*pooled, *subsets]}
        self._check_evaluation(found, [subset.name for subset in subsets] or [everything.name])
        for name, values in found.items():
            for key, value in values.items():
                shown = name == everything.name and key == "wer"
                self.log(f"{name}/{key}", value.float(), prog_bar=shown, sync_dist=True)

    def _check_evaluation(self, found: dict[str, dict[str, Tensor]], subsets: list[str]) -> None:
        """Stop, on all ranks, where a subset has no rate; say where no rate could be 0."""
        empty = [name for name in subsets if not found[name]["utterances"]]
        if empty and not self.trainer.sanity_checking:
            raise InputError(f"no utterance of {', '.join(empty)} was read, so there is no error rate: {NOTHING_READ}")
        for name in subsets:
            if (floor := float(found[name]["wer_floor"])) > 0:
                rank_zero_warn(
                    f"{name}: {floor:.2%} of WER is of words that the {type(self.tokenizer).__name__} cannot write; no "
                    "recogniser with it can do better"
                )

    def _check_rate(self, batch: Batch) -> None:
        if batch.sample_rate != self.features.sample_rate:
            raise InputError(
                f"the features are made for audio of {self.features.sample_rate} Hz, got {batch.sample_rate} Hz: set "
                "`sample_rate` of the features and of the data to the same number, or resample the audio"
            )


class _Evaluation:
    """Errors, losses and speed of one subset, summed over utterances and ranks."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self.error_rates = ErrorRates().to(device)
        self.floor = ErrorRates().to(device)  # of what the vocabulary makes of the references
        self.loss = MeanMetric(nan_strategy="disable").to(device)
        self.search_seconds = SumMetric().to(device)
        self.audio_seconds = SumMetric().to(device)
        self.update([], [], [], torch.zeros(0, device=device), 0.0, 0.0)  # else metrics warn that nothing came

    def update(
        self, references: list[str], texts: list[str], spelled: list[str], losses: Tensor, search: float, audio: float
    ) -> None:
        """Count a batch.

        Args:
            references: Transcripts as they are scored.
            texts: What was recognised.
            spelled: What the vocabulary makes of the references.
            losses: (B,).
            search: Seconds.
            audio: Seconds.
        """
        self.error_rates.update(references, texts)
        self.floor.update(references, spelled)
        self.loss.update(losses[losses.isfinite()])
        self.search_seconds.update(search)
        self.audio_seconds.update(audio)

    def compute(self) -> dict[str, Tensor]:
        """Return what is logged, of all ranks.

        The real time factor is seconds of search per second of audio; `wer_floor` is the error rate of a recogniser
        without any error, which is above 0 where the vocabulary cannot write a word.
        """
        factor = self.search_seconds.compute() / self.audio_seconds.compute()
        floor = self.floor.compute()["wer"]
        rates = {**self.error_rates.compute(), "wer_floor": floor}
        return {**rates, "loss": self.loss.compute(), "real_time_factor": factor}


def seed_step(trainer: lightning.Trainer) -> None:
    """Draw the random numbers of a training step from the seed, the step and the rank alone."""
    step = trainer.fit_loop.epoch_loop.total_batch_idx
    seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
    torch.manual_seed(((seed * 1_000_003 + step) * 1_009 + trainer.global_rank) % 2**63)


def optimizer_and_schedule(optimizer: torch.optim.Optimizer, scheduler: LRSchedulerCallable | None) -> Any:  # noqa: ANN401
    """Return what Lightning's `configure_optimizers` asks for: a schedule that moves every step, if there is one."""
    if scheduler is None:
        return optimizer
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler(optimizer), "interval": "step"}}
