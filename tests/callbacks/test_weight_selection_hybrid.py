"""Selection for a hybrid: all states stay, and columns are (recurrent, other projection) of each direction."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from asr_lightning.callbacks.initialization import initialize
from asr_lightning.callbacks.weight_selection import select_weights, uniform_indices
from asr_lightning.errors import InputError
from asr_lightning.hmm.model import read_hmm
from asr_lightning.models.blstm_hmm import BLSTMHMM
from asr_lightning.models.checkpoints import build_recognizer
from tests.support.hybrids import hybrid, write_states
from tests.support.tones import TEXTS

OTHER_LETTERS = str.maketrans("ABCDEFGH", "IJKLMNOP")


def network(folder: Path, recurrent: int = 4, projection: int = 3, hidden: int = 6) -> Any:
    sizes = {"hidden": hidden, "layers": 1, "recurrent_projection": recurrent, "projection": projection}
    config = hybrid(folder)
    encoder = config["init_args"]["encoder"]
    encoder["init_args"] |= sizes
    return build_recognizer(config)


@pytest.fixture
def states(tmp_path: Path) -> Path:
    return write_states(tmp_path / "states")


def test_every_column_of_the_output_comes_from_its_own_part(states: Path) -> None:
    student, teacher = network(states), network(states, recurrent=7, projection=5, hidden=8)
    width, pdfs = 2 * (7 + 5), teacher.states.pdfs
    with torch.no_grad():
        teacher.output.weight.copy_(torch.arange(float(pdfs * width)).view(pdfs, width))  # each holds its position
        teacher.output.bias.copy_(torch.arange(float(pdfs)))
    weights, _ = select_weights(student, teacher)
    recurrent, other = uniform_indices(7, 4).numpy(), uniform_indices(5, 3).numpy()
    columns = np.concatenate([recurrent, 7 + other, 12 + recurrent, 19 + other])
    expected = np.arange(pdfs)[:, None] * width + columns
    assert weights["output.weight"].long().tolist() == expected.tolist()
    assert weights["output.bias"].tolist() == list(range(pdfs))
    assert torch.equal(weights["log_priors"], student.log_priors)


@pytest.mark.parametrize("kind", ["phones", "counts", "number"])
def test_a_teacher_of_other_states_is_refused(states: Path, tmp_path: Path, kind: str) -> None:
    other = tmp_path / "others"
    if kind == "phones":
        write_states(other, [text.translate(OTHER_LETTERS) for text in TEXTS], {})
    elif kind == "counts":
        write_states(other, spoken={"one": TEXTS[0]})
    else:
        write_states(other, TEXTS[:1], {})
    student, teacher = network(states), network(other)
    assert (student.states.pdfs == teacher.states.pdfs) == (kind != "number")
    with pytest.raises(
        InputError, match=r"this teacher cannot be used: axis 0 of \S+ has \d+ tied states .* checkpoint"
    ):
        select_weights(student, teacher)


def test_a_teacher_whose_folder_was_made_anew_is_refused(states: Path) -> None:
    weights = network(states).state_dict()
    write_states(states, spoken={"one": TEXTS[0]})
    teacher = network(states)
    teacher.load_state_dict(weights)
    with pytest.raises(InputError, match="changed after training"):
        select_weights(network(states), teacher)


def test_the_same_states_have_one_checksum(states: Path, tmp_path: Path) -> None:
    assert read_hmm(states).checksum() == read_hmm(write_states(tmp_path / "again")).checksum()


def test_the_rows_of_the_output_are_drawn_as_one_matrix(states: Path) -> None:
    model: BLSTMHMM = network(states)
    initialize(model, "xavier", torch.Generator().manual_seed(0))
    bound = (6 / sum(model.output.weight.shape)) ** 0.5
    assert 0.9 * bound < float(model.output.weight.detach().abs().max()) <= bound
