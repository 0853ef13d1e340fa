"""Train a student to predict what its teacher predicts, beside its own loss [Hinton et al. 2015]."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from asr_lightning.batch import Batch
from asr_lightning.callbacks.distillation_terms import DistillationTerm, EncodedBatch, LatticeDistillation
from asr_lightning.errors import InputError
from asr_lightning.models.checkpoints import load_recognizer
from asr_lightning.models.evaluation import evaluating
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.nn.recurrent import weights_cast_once

PROBED_FRAMES = 100  # feature frames of the shortest probe that compares the frames of two encoders
PROBES = 16  # each a frame longer; more than the subsampling factor of any encoder here


class Distillation(Callback):
    """Adds terms to the student's training loss: distances of its predictions from those of a frozen teacher.

    The teacher reads the same audio in evaluation mode, without masks over its features. It is no part of the student:
    not of its `state_dict`, its checkpoints or its optimizer. What a term learns is trained by the student's optimizer,
    and kept in the state of this callback, so that a resumed run goes on exactly.

    `train/loss` includes the terms; `train/distillation/<term>` is each one's mean over a batch, without its weight.

    Args:
        teacher: Path of the teacher's checkpoint; None trains without one.
        made_by: The command that makes this checkpoint, for the message when it is missing.
        terms: What is compared; `LatticeDistillation` if None.

    Raises:
        InputError: The checkpoint is missing, or teacher and student cannot be compared.
    """

    def __init__(
        self, teacher: str | None = None, made_by: str = "", terms: list[DistillationTerm] | None = None
    ) -> None:
        self.teacher = teacher
        self.made_by = made_by
        self.terms = [LatticeDistillation()] if terms is None else list(terms)
        self._used = [term for term in self.terms if term.weight > 0]
        self._network: Recognizer | None = None
        self._resumed = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read the teacher, and add the terms' parameters to the student before its optimizer is made.

        Raises:
            InputError: As of the class.
        """
        if stage != "fit" or self.teacher is None or not self._used:
            return
        if not isinstance(pl_module, Recognizer):
            raise InputError(f"distillation: expected a recognizer to train, got {type(pl_module).__name__}")
        if not Path(self.teacher).is_file():
            advice = f"; make it with `{self.made_by}`" if self.made_by else ""
            raise InputError(f"no teacher's checkpoint at {self.teacher} ({Path(self.teacher).absolute()}){advice}")
        with torch.random.fork_rng(devices=[]):  # a run with a teacher draws the same numbers as one without
            self._network = load_recognizer(self.teacher).requires_grad_(False)
        for term in self._used:
            term.prepare(pl_module, self._network)
        learned = [term for term in self._used if any(True for _ in term.parameters())]
        if learned:
            pl_module.add_module("distillation", nn.ModuleList(learned))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the frames of both encoders, and add the terms to the student's loss.

        Raises:
            InputError: The numbers of frames differ; each process has only a part of the weights; or the resumed
                training did not have these terms.
        """
        if self._network is None:
            return
        if isinstance(pl_module, FSDPModule):
            raise InputError(
                f"distillation: expected whole weights, got those that processes share by "
                f"{type(trainer.strategy).__name__}. Train with --trainer.strategy ddp"
            )
        assert isinstance(pl_module, Recognizer)
        if trainer.ckpt_path is not None and not self._resumed and self._term_parameters():
            raise InputError(
                f"{trainer.ckpt_path} was trained without these distillation terms, so what they learn is not known: "
                "begin a new run, with initialize_from.checkpoint for its weights"
            )
        self._network.to(pl_module.device)
        check_frames(pl_module, self._network)
        pl_module.added_loss = self._added_loss(pl_module)
        terms = ", ".join(f"{term.weight:g} × {type(term).__name__}" for term in self._used)
        rank_zero_info(f"distillation from {self.teacher}: {terms}")

    def _added_loss(self, student: Recognizer) -> Any:  # noqa: ANN401 - an AddedLoss
        def added_loss(encoded: Tensor, lengths: Tensor, batch: Batch) -> Tensor:
            targets = student.targets(batch)
            student_batch = EncodedBatch(student, encoded, lengths, *targets)
            teacher_batch = self.encode(batch, lengths, targets)
            values = [term(student_batch, teacher_batch) for term in self._used]
            logged = {
                f"train/distillation/{term.name}": value.detach().nanmean()
                for term, value in zip(self._used, values, strict=True)
            }
            student.log_dict(logged, batch_size=len(batch))
            weighted = [term.weight * value for term, value in zip(self._used, values, strict=True)]
            return torch.stack(weighted).sum(dim=0)

        return added_loss

    @torch.no_grad()
    def encode(self, batch: Batch, lengths: Tensor, targets: tuple[Tensor, Tensor]) -> EncodedBatch:
        """Return a batch as the teacher encodes it.

        Args:
            batch: B utterances.
            lengths: (B,) real frames of the student.
            targets: Token ids (B, U) and their lengths (B,).

        Raises:
            InputError: The teacher makes another number of frames than the student.
        """
        assert self._network is not None
        with weights_cast_once(batch.audio.device):
            frames, teacher_lengths = self._network(batch.audio, batch.audio_lengths)
        # on a GPU, see `check_frames`
        if batch.audio.device.type == "cpu" and not torch.equal(teacher_lengths, lengths):
            raise InputError(_other_frames(teacher_lengths.tolist(), lengths.tolist()))
        return EncodedBatch(self._network, frames, lengths, *targets)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the terms from the student's loss."""
        if isinstance(pl_module, Recognizer) and self._network is not None:
            pl_module.added_loss = None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the terms from the student, and free the teacher."""
        if stage == "fit":
            self._network, self._resumed = None, False
            if isinstance(pl_module, Recognizer):
                pl_module.added_loss = None
                pl_module._modules.pop("distillation", None)

    def _term_parameters(self) -> dict[str, Tensor]:
        return {
            f"{number} {type(term).__name__} {name}": parameter
            for number, term in enumerate(self._used)
            for name, parameter in term.named_parameters()
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what the terms have learned."""
        return {name: parameter.detach().cpu().clone() for name, parameter in self._term_parameters().items()}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what the terms have learned.

        Raises:
            InputError: It is of other terms, or of another size.
        """
        parameters = self._term_parameters()
        saved = {name: tuple(value.shape) for name, value in state_dict.items()}
        if saved != {name: tuple(parameter.shape) for name, parameter in parameters.items()}:
            raise InputError(
                f"the checkpoint is of a training with other distillation terms: it has learned {saved or 'nothing'} "
                f"there, and {[*parameters] or 'nothing'} is expected here; keep the terms, or begin a new run"
            )
        for name, parameter in parameters.items():
            parameter.copy_(state_dict[name])
        self._resumed = True


def check_terms(callbacks: Iterable[Callback], checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Refuse to go on without distillation from a checkpoint whose optimizer also trains what its terms learn.

    Raises:
        InputError: No callback is a `Distillation`, and the checkpoint has the state of one.
    """
    has_terms = any(Distillation.__name__ in key and state for key, state in checkpoint.get("callbacks", {}).items())
    if has_terms and not any(isinstance(callback, Distillation) for callback in callbacks):
        raise InputError(
            f"{path} is of a training with distillation, whose terms are trained with the model: expected the key "
            "`distillation` with the same terms, found none. Add it, or begin a new run with the weights by "
            "initialize_from.checkpoint"
        )


def check_frames(student: Recognizer, teacher: Recognizer) -> None:
    """Refuse a teacher that makes another number of frames of the same audio than its student.

    Raises:
        InputError: It does, or it reads audio of another sampling rate.
    """
    rates = student.features.sample_rate, teacher.features.sample_rate
    if rates[0] != rates[1]:
        raise InputError(f"distillation: expected a teacher for audio of {rates[0]} Hz, found one for {rates[1]} Hz")
    hop = student.features.hop_samples
    samples = hop * torch.arange(PROBED_FRAMES, PROBED_FRAMES + PROBES, device=student.device)
    audio = torch.zeros(PROBES, int(samples[-1]), device=student.device)
    with evaluating(student), torch.no_grad():
        (_, student_lengths), (_, teacher_lengths) = student(audio, samples), teacher(audio, samples)
    if not torch.equal(student_lengths, teacher_lengths):
        raise InputError(_other_frames(teacher_lengths.tolist(), student_lengths.tolist()))


def _other_frames(teacher: list[int], student: list[int]) -> str:
    of_teacher, of_student = next((a, b) for a, b in zip(teacher, student, strict=True) if a != b)
    return (
        f"distillation: the teacher encodes an utterance as {of_teacher} frames and the student as {of_student}; "
        "expected as many, so make the hop of the features and the subsampling of the encoders the same"
    )
