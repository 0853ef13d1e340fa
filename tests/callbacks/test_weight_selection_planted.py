"""A selection finds the student that was planted in a teacher."""

from typing import Any

import pytest
import torch

from asr_lightning.callbacks.weight_selection import select_weights
from tests.support.planted_teachers import ARCHITECTURES, POSITION, outputs, pair, plant, restored, same


@pytest.mark.parametrize("elements", ["uniform", "consecutive"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_student_inside_a_teacher_is_found(architecture: str, elements: Any) -> None:
    longer = {"kernel": 9} if "conformer" in architecture else {}
    student, teacher = pair(architecture, **longer)
    plant(student, teacher, tiled=elements == "consecutive")
    assert same(outputs(teacher), outputs(student)), "the expansion is wrong"
    other, _ = pair(architecture)
    for tensor in other.state_dict().values():
        tensor.fill_(3)
    assert not same(outputs(other), outputs(student))

    weights, _ = select_weights(other, teacher, elements=elements)
    selected = restored(student, weights)
    for name, weight in student.state_dict().items():
        if name.endswith(POSITION) and elements == "consecutive":  # the first wavelengths are not those of the student
            selected[name] = weight
        torch.testing.assert_close(selected[name], weight, msg=lambda message, name=name: f"{name}: {message}")
    other.load_state_dict(selected)
    assert same(outputs(other), outputs(student))


def test_positions_are_read_by_wavelength() -> None:
    student, teacher = pair("conformer, stateless predictor")
    plant(student, teacher)
    name = f"encoder.layers.1.{POSITION}"
    torch.testing.assert_close(select_weights(student, teacher)[0][name], student.state_dict()[name])


@pytest.mark.parametrize("architecture", ["conformer, lstm predictor", "lstm, lstm predictor"])
def test_selection_by_size_alone_tears_packed_and_flattened_axes(architecture: str) -> None:
    student, teacher = pair(architecture)
    plant(student, teacher)
    other, _ = pair(architecture)
    weights, _ = select_weights(other, teacher, axis_aware=False)
    selected = restored(student, weights)
    planted = student.state_dict()
    for name in ("encoder.subsampling.projection.weight", "prediction.predictor.layers.0.weight_hh_l0"):
        assert not torch.allclose(selected[name], planted[name], atol=1e-3), name
    torch.testing.assert_close(selected["joint.output.weight"], planted["joint.output.weight"])
    other.load_state_dict({**selected, **{name: planted[name] for name in planted if name.endswith(POSITION)}})
    assert not same(outputs(other), outputs(student))
