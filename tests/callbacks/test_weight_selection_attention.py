"""A selection finds the listener and the speller that were planted in larger ones."""

import re
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asr_lightning.callbacks.weight_selection import select_weights
from asr_lightning.errors import InputError
from asr_lightning.nn.recurrent import ProjectedLSTMEncoder, PyramidalLSTMEncoder
from asr_lightning.nn.sequences import Encoder
from tests.support.planted_spellers import EVEN, LISTENERS, MECHANISMS, TILED, UNEVEN, Planting, Reordered, outputs
from tests.support.planted_teachers import MELS, same


def torn(planted: dict[str, Tensor], selected: dict[str, Tensor]) -> set[str]:
    """Names of the weights that differ from the planted ones."""
    return {
        name for name, weight in planted.items() if not torch.allclose(selected[name], weight, rtol=1e-5, atol=1e-6)
    }


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_what_is_compared_depends_on_every_weight(mechanism: str) -> None:
    student = Planting("projected", mechanism).recognizer(teacher=False)
    sum(output.square().sum() for output in outputs(student)).backward()  # type: ignore[union-attr]
    deaf = {
        name
        for name, parameter in student.named_parameters()
        if parameter.grad is None or parameter.grad.abs().max() < 1e-3
    }
    # What is added to all keys adds the same to the energies of all frames.
    added = {"dot": "psi.2", "multi-head": "key", "scaled dot": "key"}
    assert deaf == ({f"decoder.attention.{added[mechanism]}.bias"} if mechanism in added else set())


@torch.no_grad()
@pytest.mark.parametrize("elements", ["uniform", "consecutive"])
@pytest.mark.parametrize("cells", [1, 2])
@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("listener", LISTENERS)
def test_the_student_inside_a_teacher_is_found(listener: str, mechanism: str, cells: int, elements: Any) -> None:
    planting = Planting(listener, mechanism, TILED if elements == "consecutive" else UNEVEN, Reordered())
    student = planting.recognizer(teacher=False, cells=cells)
    teacher = planting.recognizer(teacher=True, cells=cells, seed=1)
    planting.plant(student, teacher)
    expected = outputs(student)
    copies = planting.copies(planting.listener.output)
    assert same(outputs(teacher), [expected[0][..., copies], *expected[1:]]), "the expansion is wrong"

    other = planting.recognizer(teacher=False, cells=cells, seed=2)
    assert not any(same([output], [reference]) for output, reference in zip(outputs(other), expected, strict=True))
    weights = planting.restored(select_weights(other, teacher, elements=elements)[0])
    assert torn(student.state_dict(), weights) == set()
    other.load_state_dict(weights)
    assert same(outputs(other), expected)


@torch.no_grad()
@pytest.mark.parametrize("cells", [1, 3])
@pytest.mark.parametrize("mechanism", ["location-aware", "multi-head"])
def test_a_decoder_whose_output_reads_no_context_is_found(mechanism: str, cells: int) -> None:
    planting = Planting("projected", mechanism, UNEVEN, Reordered(), query_state="previous")
    student = planting.recognizer(teacher=False, cells=cells)
    teacher = planting.recognizer(teacher=True, cells=cells, seed=1)
    planting.plant(student, teacher)
    expected = outputs(student)
    assert same(outputs(teacher)[1:], expected[1:]), "the expansion is wrong"
    other = planting.recognizer(teacher=False, cells=cells, seed=2)
    weights = planting.restored(select_weights(other, teacher)[0])
    assert torn(student.state_dict(), weights) == set()
    other.load_state_dict(weights)
    assert same(outputs(other), expected)


def test_a_teacher_of_the_other_order_is_refused() -> None:
    student = Planting("projected", query_state="previous").recognizer(teacher=False)
    teacher = Planting("projected").recognizer(teacher=True)
    with pytest.raises(InputError, match=r"axis 1 of decoder\.output\.weight joins 1 parts, but 2 in the checkpoint"):
        select_weights(student, teacher)


@torch.no_grad()
@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("listener", LISTENERS)
def test_selection_by_size_alone_tears_packed_and_joined_axes(listener: str, mechanism: str) -> None:
    planting = Planting(listener, mechanism)
    student, teacher = planting.recognizer(teacher=False), planting.recognizer(teacher=True, seed=1)
    planting.plant(student, teacher)
    planted, expected = student.state_dict(), outputs(student)
    weights = planting.restored(select_weights(student, teacher, axis_aware=False)[0])
    wrong = torn(planted, weights)
    several = {name for name in planted if re.search(" [x+] ", " | ".join(planting.axes(name)))}
    taps = {name for name in planted if "convolution" in name}
    assert wrong == several | taps
    for part in ("encoder", "decoder", "ctc"):
        mixed = deepcopy(student)
        mixed.load_state_dict({name: weight for name, weight in weights.items() if name.startswith(part)}, strict=False)
        assert same(outputs(mixed), expected) == (not any(name.startswith(part) for name in wrong)), part


@torch.no_grad()
@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("listener", LISTENERS)
def test_size_alone_is_enough_where_all_is_twice_as_large(listener: str, mechanism: str) -> None:
    planting = Planting(listener, mechanism, EVEN)
    student, teacher = planting.recognizer(teacher=False), planting.recognizer(teacher=True, seed=1)
    planting.plant(student, teacher)
    blind, aware = (planting.restored(select_weights(student, teacher, axis_aware=aware)[0]) for aware in (False, True))
    assert torn(student.state_dict(), aware) == set()
    # Twice as many heads, each twice as large, are four times as many places: every fourth is the first of a head.
    attention = [f"attention.{name}.{kind}" for name in ("query", "key", "value") for kind in ("weight", "bias")]
    headed = {f"decoder.{name}" for name in [*attention, "cells.0.weight_ih", "output.weight"]}
    assert torn(student.state_dict(), blind) == (headed if mechanism == "multi-head" else set())


KEPT, STATE = [0, 2, 4, 5, 7], [0, 2, 3, 4, 6]  # 5 of 8 and 5 of 7
BOTH = [8 * direction + unit for direction in range(2) for unit in KEPT]
HEADS = [3 * head + unit for head in (0, 2, 4) for unit in (0, 2)]  # 3 of 5, each 2 of 3


@torch.no_grad()
@pytest.mark.parametrize(
    ("listener", "mechanism", "name", "expected"),
    [
        ("pyramid", "additive", "encoder.pyramid.0.forward_lstm.weight_ih_l0", [*range(2 * MELS)]),
        (
            "pyramid",
            "additive",
            "encoder.pyramid.1.backward_lstm.weight_ih_l0",
            [*BOTH, *(16 + index for index in BOTH)],
        ),
        ("pyramid over plain layers", "dot", "encoder.plain.1.backward_lstm.weight_ih_l0", BOTH),
        ("pyramid over plain layers", "dot", "decoder.attention.psi.0.weight", BOTH),
        ("projected", "additive", "encoder.projections.2.weight", BOTH),
        ("projected", "dot", "decoder.output.weight", [*STATE, *(7 + index for index in range(0, 11, 2))]),
        ("pyramid", "additive", "decoder.cells.0.weight_ih", [*STATE, *(7 + index for index in BOTH)]),
        ("projected", "multi-head", "decoder.output.weight", [*STATE, *(7 + index for index in HEADS)]),
    ],
)
def test_columns_are_read_part_by_part(listener: str, mechanism: str, name: str, expected: list[int]) -> None:
    planting = Planting(listener, mechanism)
    student, teacher = planting.recognizer(teacher=False), planting.recognizer(teacher=True)
    column = teacher.state_dict()[name]
    column.copy_(torch.arange(float(column.shape[1])).expand_as(column))
    aware, blind = (select_weights(student, teacher, axis_aware=aware)[0][name] for aware in (True, False))
    assert aware[0].tolist() == aware[-1].tolist() == expected
    assert (blind[0].tolist() == expected) == (column.shape[1] == len(expected))


FIRST, UNIFORM, LAST = [0, 1, 2, 3], [0, 2, 4, 6], [4, 5, 6, 7]


@torch.no_grad()
@pytest.mark.parametrize(
    ("listener", "rule", "sources"),
    [
        ("projected", "first", {"layers": FIRST, "projections": FIRST, "cells": [0, 1]}),
        ("projected", "uniform", {"layers": UNIFORM, "projections": UNIFORM, "cells": [0, 2]}),
        ("pyramid", "first", {"pyramid": FIRST, "cells": [0, 1]}),
        ("pyramid", "uniform", {"pyramid": UNIFORM, "cells": [0, 2]}),
        ("pyramid over plain layers", "first", {"pyramid": FIRST, "cells": [0, 1]}),
        ("pyramid over plain layers", "uniform", {"pyramid": UNIFORM, "cells": [0, 2]}),
        # The first layer reads features and the first cell a context: `last` is for where there are no more of these.
        ("pyramid over plain layers", "last", {"pyramid": LAST}),
    ],
)
def test_four_layers_are_found_in_eight(listener: str, rule: Any, sources: dict[str, list[int]]) -> None:
    planting = Planting(listener, "location-aware")
    student = planting.recognizer(teacher=False, layers=4)
    teacher = planting.recognizer(teacher=True, layers=8, cells=3 if "cells" in sources else 2, seed=1)
    planting.plant(student, teacher, sources)
    expected = outputs(student)
    cut = deepcopy(teacher)
    for stack, indices in sources.items():
        part = cut.decoder if stack == "cells" else cut.encoder
        setattr(part, stack, nn.ModuleList(getattr(part, stack)[index] for index in indices))
    if isinstance(cut.encoder, ProjectedLSTMEncoder):
        cut.encoder.steps = cut.encoder.steps[:4]
    assert same(outputs(cut)[1:], expected[1:]), "the expansion is wrong"

    other = planting.recognizer(teacher=False, layers=4, seed=2)
    weights = planting.restored(select_weights(other, teacher, layers=rule)[0])
    assert torn(student.state_dict(), weights) == set()
    other.load_state_dict(weights)
    assert same(outputs(other), expected)


@pytest.mark.parametrize(
    ("listener", "layers", "cells", "message"),
    [
        ("projected", 5, 2, r"axis 1 of encoder\.layers\.0.*features.* in the checkpoint"),
        ("pyramid", 5, 2, r"axis 1 of encoder\.pyramid\.0.*features.* in the checkpoint"),
        ("projected", 3, 3, r"axis 1 of decoder\.cells\.0\.weight_ih joins 2 parts, but 1 in the checkpoint"),
    ],
)
def test_the_last_layers_cannot_be_the_first(listener: str, layers: int, cells: int, message: str) -> None:
    student = Planting(listener).recognizer(teacher=False)
    teacher = Planting(listener).recognizer(teacher=True, layers=layers, cells=cells)
    with pytest.raises(InputError, match=f"(?s)cannot be used: {message}"):
        select_weights(student, teacher, layers="last")


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        (PyramidalLSTMEncoder(8, 3), PyramidalLSTMEncoder(12, 3)),
        (PyramidalLSTMEncoder(8, 3, plain_layers=1), PyramidalLSTMEncoder(12, 3, plain_layers=1)),
        (ProjectedLSTMEncoder(8, 3, 3, 4), ProjectedLSTMEncoder(12, 3, 3, 4)),
    ],
)
def test_features_are_all_needed_and_those_of_another_teacher_are_refused(student: Encoder, teacher: Encoder) -> None:
    _, report = select_weights(student, student)
    directions = [entry.name.split(".")[2] for entry in report if "8 features" in entry.axes[-1]]
    assert directions == ["forward_lstm", "backward_lstm"]
    with pytest.raises(InputError, match="8 features, but 12 features in the checkpoint"):
        select_weights(student, teacher)
