"""Terms of distillation: what a student predicts, against what its teacher predicts.

| term                  | what is compared                                                                          |
|-----------------------|-------------------------------------------------------------------------------------------|
| `LatticeDistillation` | blank, next token and the rest at all nodes of the lattice [Panchapagesan et al. 2021]      |
| `PathDistillation`    | all tokens along the teacher's most probable alignment [Kurata and Saon 2020]               |
| `EncoderDistillation` | frames of the encoders, those of the student through a learned projection                   |
| `CTCDistillation`     | all tokens at every frame of the CTC outputs                                                |
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from asr_lightning.callbacks.observation import ctc_output
from asr_lightning.errors import InputError
from asr_lightning.losses.distillation import frame_divergence, frame_error
from asr_lightning.losses.transducer.distillation import JointInputs, lattice_divergence, path_divergence
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.models.rnn_transducer import RNNTransducer


@dataclass(frozen=True)
class EncodedBatch:
    """A batch as a recognizer has encoded it.

    Attributes:
        recognizer: The teacher, or the student.
        frames: (B, T, D).
        lengths: (B,) real frames.
        targets: (B, U) token ids, padded with blanks.
        target_lengths: (B,) real tokens.
    """

    recognizer: Recognizer
    frames: Tensor
    lengths: Tensor
    targets: Tensor
    target_lengths: Tensor

    def joint_inputs(self) -> JointInputs:
        """Return the inputs of a transducer's joint network."""
        transducer = self.recognizer
        assert isinstance(transducer, RNNTransducer)
        return JointInputs(transducer.joint, transducer.project(self.frames), transducer.predict(self.targets))


class DistillationTerm(nn.Module, ABC):
    """Base class: a term that is added to the student's loss of each utterance in training.

    Its parameters are trained with the student's. They are no part of the student's `state_dict`.

    Args:
        weight: Factor of the term; 0 leaves it out.

    Raises:
        ValueError: The weight is negative or not finite.
    """

    name = ""  # in logs, as `train/distillation/<name>`

    def __init__(self, weight: float) -> None:
        super().__init__()
        if not 0 <= weight < float("inf"):
            raise ValueError(f"{type(self).__name__}: expected a weight from 0, got {weight}")
        self.weight = weight

    @abstractmethod
    def prepare(self, student: Recognizer, teacher: Recognizer) -> None:
        """Make the parameters of the term, before training begins.

        Raises:
            InputError: The term cannot be computed of these two.
        """

    @abstractmethod
    def forward(self, student: EncodedBatch, teacher: EncodedBatch) -> Tensor:
        """Return the term of each utterance without its weight, (B,); it has a gradient for the student alone."""


class PosteriorTerm(DistillationTerm, ABC):
    """Base class of terms over the posteriors of tokens, for which both networks need the same tokens.

    Args:
        weight: Factor of the term; 0 leaves it out.
        temperature: Divides the logits of both; the term is multiplied by its square [Hinton et al. 2015, §2].

    Raises:
        ValueError: The weight is negative, or the temperature is not above 0.
    """

    def __init__(self, weight: float, temperature: float = 1.0) -> None:
        super().__init__(weight)
        if not 0 < temperature < float("inf"):
            raise ValueError(f"{type(self).__name__}: expected a temperature above 0, got {temperature}")
        self.temperature = temperature

    def prepare(self, student: Recognizer, teacher: Recognizer) -> None:
        """Compare the tokens.

        Raises:
            InputError: They differ.
        """
        tokenizer, teacher_tokenizer = student.tokenizer, teacher.tokenizer
        if tokenizer.tokens == teacher_tokenizer.tokens and tokenizer.blank_id == teacher_tokenizer.blank_id:
            return
        different = [
            f"{a!r} and {b!r}" for a, b in zip(tokenizer.tokens, teacher_tokenizer.tokens, strict=False) if a != b
        ]
        raise InputError(
            f"{type(self).__name__} compares the probabilities of tokens: expected the same ones in the same order, "
            f"found {len(tokenizer.tokens)} of the student and {len(teacher_tokenizer.tokens)} of the teacher"
            + (f", first {different[0]}" if different else "")
            + "; give the student the teacher's tokenizer, or use EncoderDistillation"
        )


class TransducerTerm(PosteriorTerm, ABC):
    """Base class of terms over the posteriors of transducers."""

    def prepare(self, student: Recognizer, teacher: Recognizer) -> None:
        """Check that both are transducers with the same tokens.

        Raises:
            InputError: They are not.
        """
        for role, recognizer in (("student", student), ("teacher", teacher)):
            if not isinstance(recognizer, RNNTransducer):
                raise InputError(
                    f"{type(self).__name__}: expected a transducer as the {role}, found {type(recognizer).__name__}; "
                    "use CTCDistillation or EncoderDistillation"
                )
        super().prepare(student, teacher)


class LatticeDistillation(TransducerTerm):
    """Divergence at all nodes of the lattice, with three classes: blank, next token, rest.

    It is summed over T · (U + 1) nodes, so its weight is much below 1: `losses.transducer.distillation` has it.

    Args:
        weight: Factor of the term; 0 leaves it out.
        temperature: Divides the logits of both.
    """

    name = "lattice"

    def __init__(self, weight: float = 0.01, temperature: float = 1.0) -> None:
        super().__init__(weight, temperature)

    def forward(self, student: EncodedBatch, teacher: EncodedBatch) -> Tensor:
        """Return the divergence of each utterance, (B,)."""
        return lattice_divergence(*_divergence_arguments(student, teacher), temperature=self.temperature)


class PathDistillation(TransducerTerm):
    """Divergence of all tokens at the T + U nodes of the teacher's most probable alignment.

    Args:
        weight: Factor of the term; 0 leaves it out.
        temperature: Divides the logits of both.
    """

    name = "path"

    def __init__(self, weight: float = 0.5, temperature: float = 1.0) -> None:
        super().__init__(weight, temperature)

    def forward(self, student: EncodedBatch, teacher: EncodedBatch) -> Tensor:
        """Return the divergence of each utterance, (B,)."""
        return path_divergence(*_divergence_arguments(student, teacher), temperature=self.temperature)


class CTCDistillation(PosteriorTerm):
    """Divergence of all tokens at every frame of the CTC outputs, of CTC models and of those with a `ctc_weight`.

    Args:
        weight: Factor of the term; 0 leaves it out.
        temperature: Divides the logits of both.
    """

    name = "ctc"

    def __init__(self, weight: float = 0.5, temperature: float = 1.0) -> None:
        super().__init__(weight, temperature)

    def prepare(self, student: Recognizer, teacher: Recognizer) -> None:
        """Check that both have a CTC output with the same tokens.

        Raises:
            InputError: One of them has none, or the tokens differ.
        """
        for role, recognizer in (("student", student), ("teacher", teacher)):
            if ctc_output(recognizer) is None:
                raise InputError(
                    f"CTCDistillation: expected a CTC output of the {role}, found none of {type(recognizer).__name__}; "
                    "set its ctc_weight above 0, or use EncoderDistillation"
                )
        super().prepare(student, teacher)

    def forward(self, student: EncodedBatch, teacher: EncodedBatch) -> Tensor:
        """Return the divergence of each utterance, (B,)."""
        student_output, teacher_output = (ctc_output(encoded.recognizer) for encoded in (student, teacher))
        assert student_output is not None and teacher_output is not None
        with torch.no_grad():
            expected = teacher_output(teacher.frames)
        return frame_divergence(student_output(student.frames), expected, student.lengths, self.temperature)


class EncoderDistillation(DistillationTerm):
    """Mean squared difference of encoded frames, over real frames and the teacher's units.

    The student's frames go through a learned linear projection, which begins as the identity where both encoders have
    the same size.

    Args:
        weight: Factor of the term; 0 leaves it out.
    """

    name = "encoder"

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.projection: Projection | None = None

    def prepare(self, student: Recognizer, teacher: Recognizer) -> None:
        """Make the projection, unless there is one already; the run's random numbers are not used.

        Raises:
            InputError: There is one for encoders of other sizes.
        """
        sizes = student.encoder.dimension, teacher.encoder.dimension
        if self.projection is not None:
            known_sizes = self.projection.in_features, self.projection.out_features
            if known_sizes != sizes:
                raise InputError(
                    "EncoderDistillation: expected a student and a teacher whose encoders have {} and {} units, as in "
                    "the training before, found {} and {}; make a new term for them".format(*known_sizes, *sizes)
                )
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.projection = Projection(*sizes)
        if sizes[0] == sizes[1]:
            nn.init.eye_(self.projection.weight)
            nn.init.zeros_(self.projection.bias)

    def forward(self, student: EncodedBatch, teacher: EncodedBatch) -> Tensor:
        """Return the mean squared difference of each utterance, (B,)."""
        assert self.projection is not None
        return frame_error(self.projection(student.frames), teacher.frames, student.lengths)


class Projection(nn.Linear):
    """A linear layer that is no part of the `state_dict` of the module around it; `Distillation` keeps its values."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:  # noqa: ANN401
        return

    def _load_from_state_dict(self, *_: Any) -> None:  # noqa: ANN401
        return


def _divergence_arguments(
    student: EncodedBatch, teacher: EncodedBatch
) -> tuple[JointInputs, JointInputs, Tensor, Tensor, Tensor, int]:
    """Return the arguments of the transducer divergences, without the temperature."""
    with torch.no_grad():
        teacher_inputs = teacher.joint_inputs()
    blank_id = student.recognizer.tokenizer.blank_id
    lengths = student.lengths, student.target_lengths
    return student.joint_inputs(), teacher_inputs, student.targets, *lengths, blank_id
