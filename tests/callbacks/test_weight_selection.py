"""Which weights each rule selects, and which teachers are refused."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from asr_lightning.callbacks.weight_selection import select_weights, uniform_indices
from asr_lightning.errors import InputError
from asr_lightning.models.rnn_transducer import LSTMPredictor, RNNTransducer, StatelessPredictor
from asr_lightning.nn.axes import module_axes
from asr_lightning.nn.conformer import Conformer
from asr_lightning.nn.recurrent import LSTMEncoder
from asr_lightning.text.tokenizers import CharacterTokenizer, Tokenizer
from tests.support.planted_teachers import (
    ARCHITECTURES,
    MELS,
    PREDICTOR,
    conformer,
    lstm,
    lstm_predictor,
    pair,
    recognizer,
    size,
)


@pytest.mark.parametrize(("teacher", "student", "share"), [(1024, 320, 0.58), (512, 320, 0.20), (512, 256, 0.0)])
def test_rows_of_packed_gates_that_selection_by_size_alone_gets_wrong(teacher: int, student: int, share: float) -> None:
    large, small = nn.LSTM(1, teacher), nn.LSTM(1, student)
    with torch.no_grad():
        large.weight_ih_l0.copy_(torch.arange(4.0 * teacher).unsqueeze(1))  # each row holds its number
    aware, blind = (
        select_weights(small, large, axis_aware=aware)[0]["weight_ih_l0"].long().squeeze(1) for aware in (True, False)
    )
    expected = torch.cat([uniform_indices(teacher, student) + gate * teacher for gate in range(4)])
    assert torch.equal(aware, expected)
    assert float((aware != blind).float().mean()) == pytest.approx(share, abs=0.005)


def test_uniform_indices_are_those_of_the_public_code() -> None:
    for teacher in range(1, 70):
        for student in range(1, teacher + 1):
            indices = uniform_indices(teacher, student)
            if teacher % student == 0:
                expected = torch.arange(student) * (teacher // student)
            else:
                expected = torch.round(torch.linspace(0, teacher - 1, student)).long()
            assert torch.equal(indices, expected)
            assert bool((indices.diff() > 0).all())
            assert 0 <= int(indices[0]) <= int(indices[-1]) < teacher


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_parameter_says_its_axes_and_what_it_received(architecture: str) -> None:
    student, teacher = pair(architecture)
    for model in (student, teacher):
        assert module_axes(model).keys() == model.state_dict().keys()
    weights, report = select_weights(student, teacher)
    assert [entry.name for entry in report] == list(weights) == list(student.state_dict())
    assert all(entry.source == entry.name and len(entry.axes) == weights[entry.name].dim() for entry in report)


def test_neither_network_is_changed_and_no_memory_is_shared() -> None:
    student, teacher = pair("lstm, lstm predictor")
    copies = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in (student, teacher)]
    for layers in (teacher, student):  # a teacher of the student's own size, too
        for weight in select_weights(student, layers)[0].values():
            weight.fill_(7)
    for model, values in zip((student, teacher), copies, strict=True):
        assert all(torch.equal(tensor, values[name]) for name, tensor in model.state_dict().items())


class Stack(nn.Module):
    """Two blocks of layers, the inner ones within the outer; every layer's weights are its own number."""

    def __init__(self, outer: int, inner: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleList(nn.BatchNorm1d(1) for _ in range(inner)) for _ in range(outer))
        for index, block in enumerate(self.blocks):
            for layer, norm in enumerate(block):
                for tensor in norm.state_dict().values():
                    tensor.fill_(10 * index + layer)


@pytest.mark.parametrize(
    ("rule", "expected"), [("first", [0, 1, 10, 11]), ("uniform", [0, 4, 60, 64]), ("last", [53, 54, 63, 64])]
)
def test_layers_within_layers_are_chosen_by_the_layer_rule(rule: Any, expected: list[int]) -> None:
    weights, report = select_weights(Stack(2, 2), Stack(7, 5), layers=rule)
    for kind in ("weight", "running_mean", "running_var", "num_batches_tracked"):
        assert [int(weight) for name, weight in weights.items() if name.endswith(kind)] == expected
    assert weights["blocks.1.1.num_batches_tracked"].dtype == torch.int64
    entry = next(entry for entry in report if entry.name == "blocks.1.0.running_mean")
    assert entry.source == f"blocks.{expected[2] // 10}.{expected[2] % 10}.running_mean"
    assert entry.source in str(entry) or rule == "first"


def test_layers_of_an_encoder_keep_together() -> None:
    student = recognizer(lstm(False), lstm_predictor(False), False)
    teacher = recognizer(lstm(True, layers=5), lstm_predictor(True), True)
    for name, tensor in teacher.state_dict().items():
        if match := re.match(r"encoder\.(?:layers|norms)\.(\d)", name):
            tensor.fill_(int(match[1]))
    weights, _ = select_weights(student, teacher, layers="uniform")
    for layer, source in ((0, 0), (1, 4)):
        for name, weight in weights.items():
            if name.startswith((f"encoder.layers.{layer}.", f"encoder.norms.{layer}.")):
                assert bool((weight == source).all()), name


@pytest.mark.parametrize(("kernel", "expected"), [(15, range(8, 23)), (1, [15]), (31, range(31))])
def test_the_central_taps_of_a_kernel_are_taken(kernel: int, expected: Any) -> None:
    student, teacher = (nn.Conv1d(2, 2, taps, padding=taps // 2) for taps in (kernel, 31))
    with torch.no_grad():
        teacher.weight.copy_(torch.arange(31.0).expand(2, 2, 31))
    assert select_weights(student, teacher)[0]["weight"][1, 0].tolist() == list(expected)


class Letters(Tokenizer):
    """Any vocabulary."""

    def __init__(self, tokens: str) -> None:
        self.tokens = tuple(tokens.split())
        self.blank_id, self.unk_id, self.eos_id = (self.tokens.index(name) for name in ("<blank>", "<unk>", "<eos>"))

    def encode(self, text: str) -> list[int]:
        return [self.tokens.index(letter) for letter in text]

    def _decode(self, ids: list[int]) -> str:
        return "".join(self.tokens[number] for number in ids)

    def init_args(self) -> dict[str, Any]:
        return {"tokens": " ".join(self.tokens)}


def test_rows_of_a_vocabulary_are_matched_by_token() -> None:
    tokens = Letters("E <unk> new A <blank> er <eos>")
    student = recognizer(lstm(False), lstm_predictor(False), False, tokenizer=tokens)
    teacher = recognizer(lstm(False), lstm_predictor(False), False, seed=1)
    weights, report = select_weights(student, teacher)
    indices = {token: index for index, token in enumerate(CharacterTokenizer().tokens)}
    for name in ("prediction.embedding.weight", "joint.output.weight", "joint.output.bias", "ctc.weight", "ctc.bias"):
        initial, source = student.state_dict()[name], teacher.state_dict()[name]
        for row, token in enumerate(tokens.tokens):
            expected = source[indices[token]] if token in indices else initial[row]
            assert torch.equal(weights[name][row], expected), (name, token)
        assert "5 of 7 tokens by name" in str(next(entry for entry in report if entry.name == name))


def test_a_part_that_the_teacher_lacks_keeps_its_own_values_and_says_so() -> None:
    student = recognizer(lstm(False), lstm_predictor(False), False)
    teacher = recognizer(lstm(True), lstm_predictor(True), True, ctc=0.0)
    weights, report = select_weights(student, teacher)
    assert torch.equal(weights["ctc.weight"], student.state_dict()["ctc.weight"])
    without = [entry for entry in report if not entry.source]
    assert [entry.name for entry in without] == ["ctc.weight", "ctc.bias"]
    assert "its own values: the teacher has no such part" in str(without[-1])


def refusals() -> Iterator[Any]:
    def model(encoder: nn.Module, teacher: bool, tokenizer: Tokenizer | None = None, context: int = 0) -> RNNTransducer:
        width = size(PREDICTOR, teacher)
        predictor = StatelessPredictor(width, context) if context else LSTMPredictor(width)
        return recognizer(encoder, predictor, teacher, tokenizer=tokenizer)

    small = model(lstm(False), False)
    attending = model(conformer(False), False)
    yield "width", model(lstm(True), True), model(lstm(False), True), "8 entries, but only 4 in the teacher"
    heads = Conformer(MELS, 8, 1, heads=1, feed_forward=20, kernel=5, channels=4)
    yield (
        "heads",
        model(Conformer(MELS, 8, 1, 2, 5, 5, 4), False),
        model(heads, True),
        "attention.* 2 entries, but only 1",
    )
    yield "depth", small, model(lstm(True, layers=1), True), r"encoder\.layers has 2 layers, but only 1 in the teacher"
    coarse = LSTMEncoder(MELS, 6, 2, 8, subsampling=8)
    yield "frequencies", small, model(coarse, True), "2 frequencies, but 1 frequencies .*same features"
    yield "architecture", small, model(conformer(True), True), "encoder is of class LSTMEncoder, but Conformer in"
    yield "predictor", small, model(lstm(True), True, context=2), "LSTMPredictor, but StatelessPredictor"
    yield "recognizer", small, nn.Linear(2, 2), "the recognizer is of class RNNTransducer, but Linear"
    kernel = Conformer(MELS, 16, 2, 4, 8, 3, 8)
    yield "kernel", attending, model(kernel, True), "5 entries, but only 3 in the teacher"
    foreign = model(lstm(True), True, Letters("<blank> <unk> <eos> a b c"))
    yield "tokens", small, foreign, "31 tokens, 6 in the checkpoint, but the tokenizers share none"
    yield "context", model(lstm(False), False, context=2), model(lstm(True), True, context=4), "2 taps, but 4 taps"


@pytest.mark.parametrize(
    "name",
    "width heads depth frequencies architecture predictor recognizer kernel tokens context".split(),
)
def test_a_teacher_that_cannot_be_used_is_refused(name: str) -> None:
    _, student, teacher, message = next(case for case in refusals() if case[0] == name)
    with pytest.raises(InputError, match=f"(?s)this teacher cannot be used: .*({message})"):
        select_weights(student, teacher)


@pytest.mark.parametrize(
    ("student", "teacher", "layers", "message"),
    [
        (nn.Conv1d(1, 1, 3, padding=1), nn.Conv1d(1, 1, 6, padding="same"), "first", "6|both need to be odd"),
        (nn.LSTM(2, 2, num_layers=1), nn.LSTM(2, 2, num_layers=2), "last", "all its layers in one module"),
        (nn.LSTM(2, 2, num_layers=2), nn.LSTM(2, 2, num_layers=1), "first", "no part.weight_ih_l1 like the student's"),
        (nn.Conv1d(2, 2, 1), nn.Linear(2, 2), "first", "of class Conv1d, but Linear"),
    ],
)
def test_a_layer_that_cannot_be_selected_from_is_refused(
    student: nn.Module, teacher: nn.Module, layers: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        select_weights(nn.ModuleDict({"part": student}), nn.ModuleDict({"part": teacher}), layers=layers)


class Chain(nn.Module):
    """Two hidden axes of one size, and each written once and read once."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(width, width) for _ in range(3)))
        with torch.no_grad():
            for layer in self.layers:  # each entry holds its position
                layer.weight.copy_(torch.arange(width * width).view(width, width))
                layer.bias.copy_(torch.arange(width))


def chosen(rule: Any, seed: int = 0) -> list[list[int]]:
    """The index set of every axis."""
    weights, _ = select_weights(Chain(5), Chain(40), elements=rule, seed=seed)
    sets = []
    for weight in weights.values():
        sets.append((weight[:, 0] // 40 if weight.dim() == 2 else weight).long().tolist())
        if weight.dim() == 2:
            sets.append((weight[0] % 40).long().tolist())
    return sets


def test_consecutive_takes_the_first() -> None:
    assert all(indices == list(range(5)) for indices in chosen("consecutive"))


def test_consistent_randomness_is_the_same_on_axes_of_the_same_sizes() -> None:
    sets = chosen("random_consistent")
    assert len(sets) == 9
    assert all(indices == sets[0] for indices in sets)
    assert sets[0] == sorted(set(sets[0])) != list(range(5))
    assert chosen("random_consistent") == sets
    assert chosen("random_consistent", seed=1)[0] != sets[0]


def test_inconsistent_randomness_differs_from_axis_to_axis() -> None:
    sets = chosen("random_inconsistent")
    assert len({tuple(indices) for indices in sets}) == 9
    assert chosen("random_inconsistent") == sets
    assert chosen("random_inconsistent", seed=1) != sets
