"""Report on weight selection from a teacher: the weights of each student part, and the similarity of the layers."""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asr_lightning.analysis.similarity import layer_similarities
from asr_lightning.batch import Batch
from asr_lightning.callbacks.teacher_similarity import layer_list, layer_outputs
from asr_lightning.callbacks.weight_selection import Selected, check_features, select_weights, teacher_modules
from asr_lightning.files import read_experiment, write_atomically
from asr_lightning.models.checkpoints import build_recognizer
from asr_lightning.models.experiment import read_part
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.report.tables import Table, as_csv, as_text, number
from asr_lightning.tools.prepared_recognizer import prepare_recognizer
from asr_lightning.tools.weight_lines import read_batches

RULES = ("layers", "elements", "axis_aware", "seed")  # of `select_weights`, as the key `weight_selection` has them
LAYER = re.compile(r"\.\d+(?=\.|$)")  # the number of an entry of a list
PARAMETER_COLUMNS = ("parameter", "shape", "from", "teacher_shape", "axes", "share")
LAYER_COLUMNS = ("teacher_layer", "student_layer", "to_below", "kept_layer", "to_kept", "selected", "random")


@dataclass(frozen=True)
class LayerFit:
    """A layer of a teacher's encoder and its similarities, from 0 to 1; None where there is nothing to compare.

    Attributes:
        name: Of the teacher's layer.
        student: The layer of the student that is made from it; empty if it is skipped.
        to_below: To the layer below.
        kept: The most similar other layer that is kept; empty where no other is.
        to_kept: To this layer.
        selected: Of the student's layer with selected weights to it; None if it is skipped.
        random: Of the student's layer with random weights; None if it is skipped.
    """

    name: str
    student: str
    to_below: float | None
    kept: str
    to_kept: float | None
    selected: float | None
    random: float | None

    def row(self) -> list[str | float | None]:
        """Return the columns `LAYER_COLUMNS`."""
        return [self.name, self.student, self.to_below, self.kept, self.to_kept, self.selected, self.random]


def report(
    teacher_path: Path,
    config: Path,
    output: Path,
    rules: Mapping[str, str],
    subset: str | None,
    utterances: int,
    seed: int,
    device: str,
) -> str:
    """Write weights.csv and layers.csv, and return both tables as text.

    Args:
        teacher_path: Checkpoint of the teacher.
        config: Experiment of the student.
        output: Folder of the files.
        rules: Of `select_weights`, in place of those of the experiment.
        subset: Of its data; None for the first one of validation.
        utterances: Drawn at random.
        seed: Of this draw, and of the student's random weights.
        device: `cpu`, `cuda` or `auto`.

    Raises:
        InputError: The teacher cannot be used for this student, or the files cannot be read.
    """
    teacher = prepare_recognizer(teacher_path, device, None)
    torch.manual_seed(seed)
    student = build_recognizer(read_part(config)).eval()
    check_features(student.features, teacher.features)
    selection = read_experiment(config).get("weight_selection") or {}
    chosen: dict[str, Any] = {**{key: selection[key] for key in RULES if key in selection}, **rules}
    weights, received = select_weights(student, teacher, **chosen)
    selected = copy.deepcopy(student)
    selected.load_state_dict(weights)
    teacher_shapes = {name: tuple(tensor.shape) for name, tensor in teacher.state_dict().items()}
    student_shapes = {name: tuple(tensor.shape) for name, tensor in student.state_dict().items()}
    subset, batches = read_batches(config, subset, utterances, seed)
    modules = teacher_modules(student, teacher, chosen.get("layers", "first"))
    fits, frames = layer_fits(student, selected, teacher, modules, batches)
    rows = [
        (part.name, _shape(student_shapes[part.name]), part.source, _shape(teacher_shapes.get(part.source)),
         " | ".join(part.axes), part.share) for part in received
    ]  # fmt: skip
    write_atomically(output / "weights.csv", as_csv([PARAMETER_COLUMNS, *rows]))
    lines = [["" if value is None else value for value in fit.row()] for fit in fits]
    write_atomically(output / "layers.csv", as_csv([LAYER_COLUMNS, *lines]))
    rule = ", ".join(f"{key} {value}" for key, value in {"layers": "first", "elements": "uniform", **chosen}.items())
    return "\n".join(
        [
            f"weights of {config} from {teacher_path} ({rule}):",
            as_text(module_table(received, student_shapes, teacher_shapes)),
            "",
            f"layers of the teacher's encoder over {frames} frames of {subset}, similarity by linear CKA:",
            as_text(layer_table(fits)),
            *_summary(fits),
            f"{output / 'weights.csv'} and {output / 'layers.csv'} have all numbers",
        ]
    )


def module_table(
    received: Sequence[Selected], own: Mapping[str, tuple[int, ...]], teacher: Mapping[str, tuple[int, ...]]
) -> Table:
    """Return a line for each part of the student, layer by layer: values, source, shares of its own and the teacher's.

    Args:
        received: As `select_weights` returns it.
        own: Shapes of the student's state_dict.
        teacher: Shapes of the teacher's.
    """
    rows: Table = [["student's module", "parameters", "teacher's module", "selected", "share of the teacher's"]]
    groups: dict[str, list[Selected]] = {}
    for part in received:
        groups.setdefault(_part(part.name), []).append(part)
    groups["all"] = list(received)
    for name, parts in groups.items():
        sizes = [int(np.prod(own[part.name])) for part in parts]
        selected = sum(part.share * size for part, size in zip(parts, sizes, strict=True))
        total = sum(int(np.prod(teacher[part.source])) for part in parts if part.source)
        if name == "all":
            total = sum(int(np.prod(shape)) for shape in teacher.values())
        sources = {_part(part.source) for part in parts if part.source} if name != "all" else {"the teacher"}
        rows.append([
            name, f"{sum(sizes):,}", ", ".join(sorted(sources)) or "–", f"{selected / max(1, sum(sizes)):.1%}",
            f"{selected / total:.1%}" if total else "–",
        ])  # fmt: skip
    return rows


def _part(name: str) -> str:
    """Return the name up to the first number of a layer, or that of the part and of its child."""
    numbered = LAYER.search(name)
    return name[: numbered.end()] if numbered else ".".join(name.split(".")[:-1][:2])


def _shape(shape: tuple[int, ...] | None) -> str:
    return "" if shape is None else " × ".join(map(str, shape)) or "1"


def layer_table(fits: Sequence[LayerFit]) -> Table:
    """Return a line for each layer of the teacher."""
    rows: Table = [[
        "teacher's layer", "student's layer", "CKA to the layer below", "to the nearest kept layer", "which is",
        "to the student's, selected", "random",
    ]]  # fmt: skip
    for fit in fits:
        numbers = [number(value, ".3f") for value in (fit.to_below, fit.to_kept, fit.selected, fit.random)]
        rows.append([fit.name, fit.student or "skipped", numbers[0], numbers[1], fit.kept or "–", *numbers[2:]])
    return rows


def _summary(fits: Sequence[LayerFit]) -> list[str]:
    skipped = [fit.to_kept for fit in fits if not fit.student and fit.to_kept is not None]
    lines = []
    if skipped:
        lines.append(
            f"{len(skipped)} of {len(fits)} layers are skipped; their similarity to the nearest kept one is "
            f"{np.mean(skipped):.3f} in the mean, {min(skipped):.3f} at least"
        )
    pairs = [(fit.selected, fit.random) for fit in fits if fit.selected is not None and fit.random is not None]
    if pairs:
        selected, at_random = (np.mean(values) for values in zip(*pairs, strict=True))
        lines.append(
            f"the student's layers are similar to theirs by {selected:.3f} as selected, {at_random:.3f} at random"
        )
    return lines


def layer_fits(
    student: Recognizer,
    selected: Recognizer,
    teacher: Recognizer,
    modules: Mapping[str, str],
    batches: Sequence[Batch],
) -> tuple[list[LayerFit], int]:
    """Measure the similarity of the layers of a teacher's encoder among themselves and to a student's.

    Args:
        student: With random weights, in evaluation mode.
        selected: The same with selected weights.
        teacher: In evaluation mode, on the device that computes.
        modules: The teacher's module of each of the student's, by name.
        batches: Speech.

    Returns:
        A line for each layer of the teacher, the lowest first; and the number of frames.

    Raises:
        InputError: The encoder has no list of layers, or too little speech was read.
    """
    path = layer_list(teacher.encoder)
    names = [[f"{path}.{index}" for index in range(len(net.encoder.get_submodule(path)))] for net in (teacher, student)]  # type: ignore[arg-type]
    of_teacher, of_random, of_selected = (
        layer_outputs(net.to(teacher.device), layers, batches)
        for net, layers in ((teacher, names[0]), (student, names[1]), (selected, names[1]))
    )
    made_of = {modules[f"encoder.{name}"].removeprefix("encoder."): name for name in names[1]}
    frames = len(of_teacher[0])
    similar = layer_similarities(of_teacher, of_teacher)
    fits = []
    for index, name in enumerate(names[0]):
        candidates = [other for other, label in enumerate(names[0]) if label in made_of and other != index]
        nearest = max(candidates, key=lambda other: similar[index, other], default=None)  # noqa: B023 - used at once
        layer = made_of.get(name, "")
        similarities = [
            None
            if not layer
            else float(layer_similarities([of_teacher[index]], [outputs[names[1].index(layer)]])[0, 0])
            for outputs in (of_selected, of_random)
        ]
        fits.append(
            LayerFit(
                f"encoder.{name}", f"encoder.{layer}" if layer else "",
                float(similar[index, index - 1]) if index else None,
                "" if nearest is None else f"encoder.{names[0][nearest]}",
                None if nearest is None else float(similar[index, nearest]), *similarities,
            )
        )  # fmt: skip
    return fits, frames
