"""Similarity of a student's layers to its teacher's during training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from asr_lightning.analysis.similarity import linear_cka, stretched
from asr_lightning.batch import Batch, Utterance
from asr_lightning.callbacks.weight_selection import LayerRule, check_features, teacher_modules
from asr_lightning.errors import InputError
from asr_lightning.files import write_atomically
from asr_lightning.models.checkpoints import load_recognizer
from asr_lightning.models.evaluation import evaluating
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.report.similarity_figure import Similarity, as_csv, plot_similarities, read_similarities

TABLE, FIGURE = "similarity.csv", "similarity.png"  # in the run folder


class TeacherSimilarity(Callback):
    """Measures after each epoch how similar the student's encoder layers are to the teacher's that they are made from.

    The similarity is linear CKA [Kornblith et al. 2019] over the frames of the first utterances of the first validation
    subset, before training and after each epoch. `similarity/<layer>` is logged; the run folder gets `similarity.csv`
    and a figure. The teacher reads these utterances once, and is not kept.

    Args:
        teacher: Path of the teacher's checkpoint.
        layers: Which layers of the teacher are compared, as of weight selection: `first`, `uniform` or `last`.
        utterances: How many.

    Raises:
        InputError: The checkpoint is missing or no teacher of this student; there is no validation subset; or each
            process has only a part of the weights.
    """

    def __init__(self, teacher: str, layers: LayerRule = "first", utterances: int = 20) -> None:
        if utterances < 1:
            raise InputError(f"TeacherSimilarity: expected utterances from 1, got {utterances}")
        self.teacher = teacher
        self.layers: LayerRule = layers
        self.utterances = utterances
        self._speech: list[Batch] = []
        self._names: dict[str, str] = {}  # the teacher's layer by the student's, both below the encoder
        self._outputs: list[np.ndarray] = []  # of the teacher's layers
        self._measured: list[Similarity] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the outputs of the teacher's layers; measure the student before its first step.

        Raises:
            InputError: As of the class.
        """
        if not isinstance(pl_module, Recognizer):
            raise InputError(f"TeacherSimilarity: expected a recognizer to train, got {type(pl_module).__name__}")
        if isinstance(pl_module, FSDPModule):
            raise InputError("TeacherSimilarity: expected whole weights, got parts; train with --trainer.strategy ddp")
        if not trainer.is_global_zero:
            return
        self._speech = first_utterances(trainer, self.utterances)
        with torch.random.fork_rng(devices=[]):  # a run that is looked at draws the same numbers
            teacher = load_recognizer(self.teacher).to(pl_module.device).eval()
        check_features(pl_module.features, teacher.features)
        sources = teacher_modules(pl_module, teacher, self.layers)
        path = layer_list(pl_module.encoder)
        layers = [f"{path}.{index}" for index in range(len(pl_module.encoder.get_submodule(path)))]  # type: ignore[arg-type]
        self._names = {layer: sources[f"encoder.{layer}"].removeprefix("encoder.") for layer in layers}
        self._outputs = layer_outputs(teacher, list(self._names.values()), self._speech)
        table = Path(trainer.default_root_dir) / TABLE
        epoch = trainer.current_epoch  # how many are trained
        goes_on = trainer.global_step > 0 and table.is_file()
        self._measured = [value for value in read_similarities(table) if value.epoch <= epoch] if goes_on else []
        if trainer.global_step == 0:
            self._measure(trainer, pl_module, 0)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, log, and write table and figure."""
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, Recognizer)
        values = self._measure(trainer, pl_module, trainer.current_epoch + 1)
        logged = {f"similarity/encoder.{value.layer}": value.similarity for value in values}
        pl_module.log_dict(logged, rank_zero_only=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Free what the teacher has computed."""
        self._outputs, self._speech = [], []

    def _measure(self, trainer: Trainer, student: Recognizer, epoch: int) -> list[Similarity]:
        with evaluating(student):
            outputs = layer_outputs(student, list(self._names), self._speech)
        values = [
            Similarity(epoch, layer, source, linear_cka(of_student, of_teacher))
            for (layer, source), of_student, of_teacher in zip(self._names.items(), outputs, self._outputs, strict=True)
        ]
        self._measured += values
        folder = Path(trainer.default_root_dir)
        write_atomically(folder / TABLE, as_csv(self._measured))
        plot_similarities(self._measured, folder / FIGURE)
        return values


def first_utterances(trainer: Trainer, count: int) -> list[Batch]:
    """Return the first utterances of the first validation subset.

    Raises:
        InputError: There is no such subset, or it has no speech.
    """
    loaders: Any = trainer.datamodule.val_dataloader() if trainer.datamodule is not None else {}  # type: ignore[attr-defined]
    loader = next(iter(loaders.values()), ()) if isinstance(loaders, dict) else loaders
    speech: list[Batch] = []
    for batch in loader:
        if not isinstance(batch, Batch):
            break
        speech.append(batch)
        if sum(map(len, speech)) >= count:
            break
    if not sum(map(len, speech)):
        raise InputError("TeacherSimilarity: expected a validation subset with speech to compare layers on, found none")
    utterances = [
        Utterance(name, audio[:length], batch.sample_rate, text)
        for batch in speech
        for name, audio, length, text in zip(batch.ids, batch.audio, batch.audio_lengths, batch.texts, strict=True)
    ]
    return [Batch.collate(utterances[:count])]


def layer_list(encoder: nn.Module) -> str:
    """Return the path of the list of layers of an encoder: the outermost one with the most values.

    Raises:
        InputError: The encoder has none.
    """
    lists = {
        path: sum(tensor.numel() for tensor in module.state_dict().values())
        for path, module in encoder.named_modules()
        if isinstance(module, nn.ModuleList) and not any(char.isdigit() for char in path)
    }
    if not any(lists.values()):
        raise InputError(f"{type(encoder).__name__}: expected an encoder with a list of layers to compare, found none")
    return max(lists, key=lambda path: lists[path])


@torch.no_grad()
def layer_outputs(recognizer: Recognizer, layers: Sequence[str], batches: Sequence[Batch]) -> list[np.ndarray]:
    """Return the outputs (N, D) of layers of an encoder over all utterances, each of which is read alone.

    Layers with fewer frames are stretched to the number of the longest. Several outputs of a layer, as of two
    directions, are concatenated.

    Args:
        recognizer: In evaluation mode.
        layers: Paths below the encoder.
        batches: Speech.

    Raises:
        InputError: There are fewer than two frames, or a layer gives no frames.
    """
    calls: dict[str, Tensor] = {}
    handles = []
    for name in layers:

        def record_output(module: nn.Module, arguments: Any, output: Any, name: str = name) -> None:  # noqa: ANN401
            parts = output if isinstance(output, tuple | list) else (output,)
            frames = [part for part in parts if isinstance(part, Tensor) and part.dim() == 3]
            calls[name] = torch.cat([part for part in frames if part.shape[1] == frames[0].shape[1]], dim=2)

        handles.append(recognizer.encoder.get_submodule(name).register_forward_hook(record_output))
    outputs: list[list[np.ndarray]] = [[] for _ in layers]
    device = recognizer.device
    try:
        for batch in batches:
            for audio, length in zip(batch.audio, batch.audio_lengths, strict=True):
                recognizer(audio[None, :length].to(device), length[None].to(device))
                rows = [calls[name][0].float().cpu().numpy() for name in layers]
                longest = max(map(len, rows))
                if longest:
                    for collected, values in zip(outputs, rows, strict=True):
                        collected.append(stretched(values, longest))
    finally:
        for handle in handles:
            handle.remove()
    if sum(map(len, outputs[0])) < 2:
        raise InputError("expected speech of two frames or more to compare layers with, found less")
    return [np.concatenate(values) for values in outputs]
