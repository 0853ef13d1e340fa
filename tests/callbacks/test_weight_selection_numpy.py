"""A second implementation of the selection, in NumPy from the papers' rules, against ours on random sizes.

Rules [Han et al. 2024, II.2; Xu et al. 2024]: evenly spread units, and a unit that is kept where it is written is kept
wherever it is read. Here each axis is opened by hand into what it is made of, `4 H` for the gates of H cells, and then
indexed part by part. `asr_lightning.nn.axes` is not used.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch import nn

from asr_lightning.callbacks.weight_selection import select_weights
from asr_lightning.errors import InputError
from asr_lightning.nn.attention import RelativeSelfAttention
from asr_lightning.nn.conformer import ConvolutionPart
from asr_lightning.nn.projected_lstm import RecurrentProjectionLSTM
from tests.support import sentences

Sizes = dict[str, int]
Kind = tuple[Callable[[Sizes], nn.Module], dict[str, str]]  # and the axes of its parameters; letters are sizes
KINDS: dict[str, Kind] = {
    "LSTM": (
        lambda size: nn.LSTM(size["I"], size["H"], num_layers=2, bidirectional=True),
        {
            f"{part}{layer}{end}": f"4 H, {read}" if part.startswith("weight") else "4 H"
            for end in ("", "_reverse")
            for layer in (0, 1)
            for part, read in {
                "weight_ih_l": "2 H" if layer else "I",
                "weight_hh_l": "H",
                "bias_ih_l": "",
                "bias_hh_l": "",
            }.items()
        },
    ),
    "GRU cell": (
        lambda size: nn.GRUCell(size["I"], size["H"]),
        {"weight_ih": "3 H, I", "weight_hh": "3 H, H", "bias_ih": "3 H", "bias_hh": "3 H"},
    ),
    "projected LSTM": (
        lambda size: RecurrentProjectionLSTM(size["I"], size["H"], size["R"], size["P"]),
        {"weight_ih": "4 H, I", "weight_hh": "4 H, R", "weight_hr": "R + P, H", "bias": "4 H"},
    ),
    "attention": (
        lambda size: RelativeSelfAttention(2 * size["D"], size["N"], size["K"]),
        {
            **{f"{name}.weight": "N K, D*" for name in ("query", "key", "value")},
            **{f"{name}.bias": "N K" for name in ("query", "key", "value")},
            "position.weight": "N K, D 2", "content_bias": "N, K", "position_bias": "N, K",
            "output.weight": "D*, N K", "output.bias": "D*",
        },
    ),
    "gated units": (
        lambda size: ConvolutionPart(size["H"], 2 * size["T"] + 1, 0.0),
        {
            "norm.weight": "H", "norm.bias": "H", "gated.weight": "2 H, H", "gated.bias": "2 H",
            "depthwise.filter.weight": "H, 1, taps", "depthwise.filter.bias": "H", "batch_norm.weight": "H",
            "batch_norm.bias": "H", "batch_norm.running_mean": "H", "batch_norm.running_variance": "H",
            "output.weight": "H, H", "output.bias": "H",
        },
    ),
    "grouped convolution": (
        lambda size: nn.Conv1d(size["N"] * size["I"], size["N"] * size["H"], 3, padding=1, groups=size["N"]),
        {"weight": "N H, I, 3", "bias": "N H"},
    ),
    "tied weights": (
        lambda size: sentences.make(hidden=size["H"], embedding_dimension=size["H"], layers=1, tied=True),
        {
            "embedding.weight": "all, H", "output.weight": "all, H", "output.bias": "all",
            "layers.0.weight_ih_l0": "4 H, H", "layers.0.weight_hh_l0": "4 H, H", "layers.0.bias_ih_l0": "4 H",
            "layers.0.bias_hh_l0": "4 H",
        },
    ),
}  # fmt: skip


def spread(large: int, small: int) -> np.ndarray:
    """Evenly spread units: every k-th where that is possible."""
    if large % small == 0:
        return np.arange(0, large, large // small)
    return np.array([round(unit * (large - 1) / (small - 1)) if small > 1 else 0 for unit in range(small)])


def selected_entries(axis: str, length: int, small: Sizes, large: Sizes) -> np.ndarray:
    """Which entries of a teacher's axis its student has."""
    if axis == "all":
        return np.arange(length)
    if axis == "taps":
        return np.arange(2 * small["T"] + 1) + large["T"] - small["T"]
    if axis == "D*":
        return spread(2 * large["D"], 2 * small["D"])
    parts, start = [], 0
    for part in axis.split(" + "):
        choices, shape = [], []
        for factor in part.split(" "):
            count = int(factor) if factor.isdigit() else large[factor]
            choices.append(np.arange(count) if factor.isdigit() else spread(count, small[factor]))
            shape.append(count)
        block = start + np.arange(np.prod(shape)).reshape(shape)
        parts.append(block[np.ix_(*choices)].ravel())
        start += block.size
    return np.concatenate(parts)


def sizes(seed: int, kind: str) -> tuple[Sizes, Sizes]:
    """Sizes of a student and a teacher: equal with seed 0, doubled with seed 1, else any."""
    random = np.random.default_rng([seed, len(kind)])
    small = {letter: int(random.integers(2, 7)) for letter in "IHRPDNKT"}
    if seed < 2:
        return small, {letter: count * (seed + 1) for letter, count in small.items()}
    return small, {letter: count + int(random.integers(0, 8)) for letter, count in small.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(6))
def test_selection_is_that_of_numpy(kind: str, seed: int) -> None:
    make, axes = KINDS[kind]
    small, large = sizes(seed, kind)
    student: Any
    student, teacher = make(small), make(large)
    weights, _ = select_weights(student, teacher)
    assert weights.keys() == student.state_dict().keys() == axes.keys()
    for name, weight in weights.items():
        source = teacher.state_dict()[name].numpy()
        picks = [
            selected_entries(axis, length, small, large)
            for axis, length in zip(axes[name].split(", "), source.shape, strict=True)
        ]
        np.testing.assert_array_equal(weight.numpy(), source[np.ix_(*picks)], err_msg=name)
    student.load_state_dict(weights)
    if kind == "tied weights":
        assert student.output.weight is student.embedding.weight


@pytest.mark.parametrize("kind", KINDS)
def test_a_larger_student_is_refused_by_the_name_of_what_is_too_small(kind: str) -> None:
    make, axes = KINDS[kind]
    small, large = sizes(1, kind)
    with pytest.raises(InputError, match=r"cannot be used: axis \d of (\S+) has \d+ entries, but only \d+") as refusal:
        select_weights(make(large), make(small))
    assert str(refusal.value).split(" of ")[1].split(" has ")[0] in axes
