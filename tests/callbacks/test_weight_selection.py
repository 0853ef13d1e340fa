"""Teachers here are students that were made larger by hand, by the names of their parameters, without `nn.axes`.

In a teacher each hidden unit of the student is there several times, and what reads it divides by their number, so that
it computes the same; a rule that keeps one copy of each unit must find the student in it.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn
from transcribing_run import loader, make_trainer

from asr_lightning.audio.features import LogMel
from asr_lightning.audio.normalization import GlobalNormalization
from asr_lightning.batch import Batch, Utterance
from asr_lightning.callbacks.initialization import Initialization
from asr_lightning.callbacks.weight_selection import WeightSelection, select_weights, uniform_indices
from asr_lightning.errors import InputError
from asr_lightning.models.checkpoints import build_recognizer
from asr_lightning.models.rnn_transducer import LSTMPredictor, RNNTransducer, StatelessPredictor
from asr_lightning.nn.axes import module_axes
from asr_lightning.nn.conformer import Conformer
from asr_lightning.nn.recurrent import LSTMEncoder
from asr_lightning.text.tokenizers import CharacterTokenizer, Tokenizer

RATE, MELS, FREQUENCIES = 8_000, 8, 2  # two convolutions leave 2 of 8 frequencies
# Units of the student, and for each unit of the teacher which of the student's it copies: such that evenly spread units
# of the teacher are one copy of each. What a LayerNorm sees must be copied equally often, the rest need not.
DIMENSION = 8, [unit for unit in range(8) for _ in range(2)]
HIDDEN = 3, [unit for unit in range(3) for _ in range(2)]
CHANNELS = 4, [unit for unit in range(4) for _ in range(2)]
HEADS = 2, [0, 0, 1, 1]
FEED_FORWARD = 5, [0, 0, 1, 1, 2, 3, 3, 4]
PREDICTOR = 6, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
JOINT = 5, [0, 0, 1, 1, 2, 3, 3, 4]


def conformer(teacher: bool, kernel: int = 5, layers: int = 2) -> Conformer:
    dimension, heads, hidden, channels = (size(one, teacher) for one in (DIMENSION, HEADS, FEED_FORWARD, CHANNELS))
    return Conformer(MELS, dimension, layers, heads, hidden, kernel, channels)


def lstm(teacher: bool, layers: int = 2) -> LSTMEncoder:
    return LSTMEncoder(MELS, size(HIDDEN, teacher), layers, size(CHANNELS, teacher))


def lstm_predictor(teacher: bool) -> LSTMPredictor:
    return LSTMPredictor(size(PREDICTOR, teacher), layers=2)


def stateless(teacher: bool) -> StatelessPredictor:
    return StatelessPredictor(size(PREDICTOR, teacher), context=3)


def size(units: tuple[int, list[int]], teacher: bool) -> int:
    return len(units[1]) if teacher else units[0]


# Add every new architecture here, and the hand-made copies of its parameters below.
ARCHITECTURES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "conformer, lstm predictor": (conformer, lstm_predictor),
    "conformer, stateless predictor": (conformer, stateless),
    "lstm, lstm predictor": (lstm, lstm_predictor),
    "lstm, stateless predictor": (lstm, stateless),
}


def recognizer(
    encoder: Any, predictor: Any, teacher: bool, seed: int = 0, tokenizer: Tokenizer | None = None, ctc: float = 0.3
) -> RNNTransducer:
    """A network of random weights, also where torch begins with zeros and ones."""
    features = LogMel(RATE, mels=MELS, normalization=GlobalNormalization())
    tokenizer = tokenizer or CharacterTokenizer()
    model = RNNTransducer(encoder, predictor, size(JOINT, teacher), ctc, tokenizer=tokenizer, features=features)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if name.endswith("count"):
            tensor.fill_(1_000 + seed)
        elif name.endswith(("running_variance", "squares")):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 1_000 + 500)
        else:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_variance"):
            tensor.div_(1_000)
    return model.eval()


def pair(architecture: str, **teacher: Any) -> tuple[RNNTransducer, RNNTransducer]:
    encoder, predictor = ARCHITECTURES[architecture]
    student = recognizer(encoder(False), predictor(False), False)
    return student, recognizer(encoder(True, **teacher), predictor(True), True, seed=1)


# Copies by hand.


def blocks(before: int, units: tuple[int, list[int]], behind: int = 1) -> list[int]:
    """Copies along a flattened axis of `before` x units x `behind` places."""
    count, copies = units
    rows = [block * count + unit for block in range(before) for unit in copies]
    return [row * behind + place for row in rows for place in range(behind)]


def arranged(units: tuple[int, list[int]], tiled: bool) -> tuple[int, list[int]]:
    """Copies side by side as above, or tiled: one of each, then the others, so that the first units are one of each."""
    count, copies = units
    turns = [copies[:place].count(unit) for place, unit in enumerate(copies)]
    return count, [unit for _, unit in sorted(zip(turns, copies, strict=True))] if tiled else copies


COPIES: list[tuple[str, str, str]] = [  # parameter, what it writes, what it reads
    (r"encoder\.subsampling\.convolutions\.0\.(weight|bias)", "channels", ""),
    (r"encoder\.subsampling\.convolutions\.1\.(weight|bias)", "channels", "channels"),
    (r"encoder\.subsampling\.projection\.(weight|bias)", "encoded", "flattened"),
    (r"encoder_projection\.(weight|bias)", "joint", "encoded"),
    (r"ctc\.(weight|bias)", "", "encoded"),
    (r"encoder\.layers\.\d\.attention\.position\.weight", "heads x 4", ""),
    (r"encoder\.layers\.\d\.forward_lstm\.(weight|bias)_ih_l0", "4 x hidden", "2 x hidden"),
    (r"encoder\.layers\.\d\.backward_lstm\.(weight|bias)_ih_l0", "4 x hidden", "2 x hidden"),
    (r"encoder\.layers\.\d\.(for|back)ward_lstm\.(weight|bias)_hh_l0", "4 x hidden", "hidden"),
    (r"encoder\.norms\.\d\.(weight|bias)", "2 x hidden", ""),
    (r"encoder\.layers\.\d\.(attention_|convolution\.|)norm\.(weight|bias)", "dimension", ""),
    (r"encoder\.layers\.\d\.(first|second)_feed_forward\.0\.(weight|bias)", "dimension", ""),
    (r"encoder\.layers\.\d\.(first|second)_feed_forward\.1\.(weight|bias)", "feed_forward", "dimension"),
    (r"encoder\.layers\.\d\.(first|second)_feed_forward\.4\.(weight|bias)", "dimension", "feed_forward"),
    (r"encoder\.layers\.\d\.attention\.(query|key|value)\.(weight|bias)", "heads x 4", "dimension"),
    (r"encoder\.layers\.\d\.attention\.(content|position)_bias", "heads", ""),
    (r"encoder\.layers\.\d\.attention\.output\.(weight|bias)", "dimension", "heads x 4"),
    (r"encoder\.layers\.\d\.convolution\.gated\.(weight|bias)", "2 x dimension", "dimension"),
    (r"encoder\.layers\.\d\.convolution\.depthwise\.filter\.(weight|bias)", "dimension", ""),
    (r"encoder\.layers\.\d\.convolution\.batch_norm\.(weight|bias|running_mean|running_variance)", "dimension", ""),
    (r"encoder\.layers\.\d\.convolution\.output\.(weight|bias)", "dimension", "dimension"),
    (r"prediction\.embedding\.weight", "", "predictor"),
    (r"prediction\.predictor\.layers\.\d\.(weight|bias)_[ih]h_l0", "4 x predictor", "predictor"),
    (r"prediction\.predictor\.mix\.(weight|bias)", "predictor", "predictor"),
    (r"prediction\.projection\.(weight|bias)", "joint", "predictor"),
    (r"joint\.output\.(weight|bias)", "", "joint"),
    (r"features\.normalization\.(count|sums|squares)", "", ""),
]
POSITION = "attention.position.weight"  # reads sinusoids, which no copy can change


def copies_of(name: str, encoder: nn.Module, tiled: bool) -> tuple[list[int], list[int]]:
    """The copies along the first two axes of a parameter; empty where there are none."""
    names = {"dimension": DIMENSION, "hidden": HIDDEN, "channels": CHANNELS, "heads": HEADS, "joint": JOINT}
    names |= {"feed_forward": FEED_FORWARD, "predictor": PREDICTOR}
    units = {name: arranged(one, tiled) for name, one in names.items()}
    copies = {"": [], **{name: list(one[1]) for name, one in units.items()}}
    copies |= {"4 x hidden": blocks(4, units["hidden"]), "4 x predictor": blocks(4, units["predictor"])}
    copies |= {"2 x hidden": blocks(2, units["hidden"]), "2 x dimension": blocks(2, units["dimension"])}
    copies |= {"heads x 4": blocks(1, units["heads"], 4), "flattened": blocks(1, units["channels"], FREQUENCIES)}
    copies["encoded"] = copies["2 x hidden" if isinstance(encoder, LSTMEncoder) else "dimension"]
    written, read = next((written, read) for pattern, written, read in COPIES if re.fullmatch(pattern, name))
    return copies[written], copies[read]


def per_column(numbers: Tensor, weight: Tensor) -> Tensor:
    """Numbers in a shape that multiplies the second axis of a weight."""
    return numbers.view(-1, *[1] * (weight.dim() - 2))


def reads(name: str, weight: Tensor, encoder: nn.Module, tiled: bool = False) -> Tensor | None:
    """The copies along an axis that is summed over."""
    _, read = copies_of(name, encoder, tiled)
    return torch.tensor(read) if read and weight.dim() > 1 and "embedding" not in name else None


def expanded(name: str, weight: Tensor, encoder: nn.Module, tiled: bool) -> Tensor:
    """What a teacher has in the place of a student's weight, to compute the same."""
    written, read = copies_of(name, encoder, tiled)
    if name.endswith(POSITION):  # the teacher's sinusoids 0, 2, 4, … are the student's; it does not look at the others
        teacher = torch.zeros(len(weight), 2 * DIMENSION[0])
        for wave in range(DIMENSION[0] // 2):
            for column in range(2):  # sine, cosine
                teacher[:, 2 * (2 * wave) + column] = weight[:, 2 * wave + column]
        weight = teacher
    if written:
        weight = weight[torch.tensor(written)]
    if read and weight.dim() > 1:
        weight = weight[:, torch.tensor(read)]
    if (copies := reads(name, weight, encoder, tiled)) is not None:
        weight = weight / per_column(torch.bincount(copies)[copies], weight)
    return weight


def plant(student: RNNTransducer, teacher: RNNTransducer, tiled: bool = False) -> None:
    """Let the teacher compute what the student does."""
    weights = {name: expanded(name, own, student.encoder, tiled) for name, own in student.state_dict().items()}
    for name, weight in weights.items():
        own = teacher.state_dict()[name]
        beyond = [(have - want) // 2 for have, want in zip(own.shape, weight.shape, strict=True)]
        assert beyond[:2] == [0] * len(beyond[:2]), name
        own.zero_()  # a longer kernel is silent at both ends
        own[tuple(slice(start, start + width) for start, width in zip(beyond, weight.shape, strict=True))] = weight


def outputs(model: RNNTransducer) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    audio, lengths = torch.randn(2, 3_000, generator=generator), torch.tensor([3_000, 2_200])
    tokens = torch.tensor([[0, 7, 9, 30], [0, 5, 5, 1]])
    with torch.no_grad():
        encoded, frames = model(audio, lengths)
        encoded[1, int(frames[1]) :] = 0
        predicted, _ = model.prediction(tokens, model.prediction.initial_state(2, torch.device("cpu")))
        joined = model.joint(model.encoder_projection(encoded).unsqueeze(2), predicted.unsqueeze(1))
    return [joined, model.ctc(encoded)]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.allclose(one, other, atol=1e-4) for one, other in zip(ours, theirs, strict=True))


def restored(student: RNNTransducer, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A selection times the numbers that the expansion divided by."""
    found = dict(weights)
    for name, weight in weights.items():
        if (copies := reads(name, weight, student.encoder)) is not None:
            found[name] = weight * per_column(torch.bincount(copies), weight)
    return found


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
    found = restored(student, weights)
    for name, weight in student.state_dict().items():
        if name.endswith(POSITION) and elements == "consecutive":  # the first wavelengths are not those of the student
            found[name] = weight
        torch.testing.assert_close(found[name], weight, msg=lambda message, name=name: f"{name}: {message}")
    other.load_state_dict(found)
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
    found = restored(student, weights)
    own = student.state_dict()
    for name in ("encoder.subsampling.projection.weight", "prediction.predictor.layers.0.weight_hh_l0"):
        assert not torch.allclose(found[name], own[name], atol=1e-3), name
    torch.testing.assert_close(found["joint.output.weight"], own["joint.output.weight"])
    other.load_state_dict({**found, **{name: own[name] for name in own if name.endswith(POSITION)}})
    assert not same(outputs(other), outputs(student))


@pytest.mark.parametrize(("teacher", "student", "share"), [(1024, 320, 0.58), (512, 320, 0.20), (512, 256, 0.0)])
def test_rows_of_packed_gates_that_selection_by_size_alone_gets_wrong(teacher: int, student: int, share: float) -> None:
    large, small = nn.LSTM(1, teacher), nn.LSTM(1, student)
    with torch.no_grad():
        large.weight_ih_l0.copy_(torch.arange(4.0 * teacher).unsqueeze(1))  # each row says which it is
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
    assert [one.name for one in report] == list(weights) == list(student.state_dict())
    assert all(one.source == one.name and len(one.axes) == weights[one.name].dim() for one in report)


def test_neither_network_is_changed_and_no_memory_is_shared() -> None:
    student, teacher = pair("lstm, lstm predictor")
    before = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in (student, teacher)]
    for layers in (teacher, student):  # a teacher of the student's own size, too
        for weight in select_weights(student, layers)[0].values():
            weight.fill_(7)
    for model, values in zip((student, teacher), before, strict=True):
        assert all(torch.equal(tensor, values[name]) for name, tensor in model.state_dict().items())


class Stack(nn.Module):
    """Two blocks of layers, the inner ones within the outer; every layer's weights are its own number."""

    def __init__(self, outer: int, inner: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleList(nn.BatchNorm1d(1) for _ in range(inner)) for _ in range(outer))
        for place, block in enumerate(self.blocks):
            for layer, norm in enumerate(block):
                for tensor in norm.state_dict().values():
                    tensor.fill_(10 * place + layer)


@pytest.mark.parametrize(
    ("rule", "expected"), [("first", [0, 1, 10, 11]), ("uniform", [0, 4, 60, 64]), ("last", [53, 54, 63, 64])]
)
def test_layers_within_layers_are_chosen_by_the_layer_rule(rule: Any, expected: list[int]) -> None:
    weights, report = select_weights(Stack(2, 2), Stack(7, 5), layers=rule)
    for kind in ("weight", "running_mean", "running_var", "num_batches_tracked"):
        assert [int(weight) for name, weight in weights.items() if name.endswith(kind)] == expected
    assert weights["blocks.1.1.num_batches_tracked"].dtype == torch.int64
    one = next(one for one in report if one.name == "blocks.1.0.running_mean")
    assert one.source == f"blocks.{expected[2] // 10}.{expected[2] % 10}.running_mean"
    assert one.source in str(one) or rule == "first"


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
    places = {token: place for place, token in enumerate(CharacterTokenizer().tokens)}
    for name in ("prediction.embedding.weight", "joint.output.weight", "joint.output.bias", "ctc.weight", "ctc.bias"):
        own, source = student.state_dict()[name], teacher.state_dict()[name]
        for row, token in enumerate(tokens.tokens):
            expected = source[places[token]] if token in places else own[row]
            assert torch.equal(weights[name][row], expected), (name, token)
        assert "5 of 7 tokens by name" in str(next(one for one in report if one.name == name))


def test_a_part_that_the_teacher_lacks_keeps_its_own_values_and_says_so() -> None:
    student = recognizer(lstm(False), lstm_predictor(False), False)
    teacher = recognizer(lstm(True), lstm_predictor(True), True, ctc=0.0)
    weights, report = select_weights(student, teacher)
    assert torch.equal(weights["ctc.weight"], student.state_dict()["ctc.weight"])
    assert [one.name for one in report if not one.source] == ["ctc.weight", "ctc.bias"]
    assert "its own values: the teacher has no such part" in str(report[-1])


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
    yield "recogniser", small, nn.Linear(2, 2), "the recogniser is of class RNNTransducer, but Linear"
    kernel = Conformer(MELS, 16, 2, 4, 8, 3, 8)
    yield "kernel", attending, model(kernel, True), "5 entries, but only 3 in the teacher"
    foreign = model(lstm(True), True, Letters("<blank> <unk> <eos> a b c"))
    yield "tokens", small, foreign, "31 tokens, 6 in the teacher, but the tokenizers share none"
    yield "context", model(lstm(False), False, context=2), model(lstm(True), True, context=4), "2 taps, but 4 taps"


@pytest.mark.parametrize(
    "name",
    "width heads depth frequencies architecture predictor recogniser kernel tokens context".split(),
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
            for layer in self.layers:  # each entry says where it is
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


# The callback.


def configuration(width: int, features: str = "LogMel", **options: Any) -> dict[str, Any]:
    parts = {"LogMel": {"mels": MELS}, "MFCC": {"coefficients": MELS, "mels": 16}, "KaldiFilterBank": {"mels": MELS}}
    nn_path, rnnt = "asr_lightning.nn.recurrent", "asr_lightning.models.rnn_transducer"
    encoder = {"input_dimension": MELS, "hidden": width, "layers": 1, "channels": width, "dropout": 0.0}
    return {
        "class_path": f"{rnnt}.RNNTransducer",
        "init_args": {
            "tokenizer": "asr_lightning.text.tokenizers.CharacterTokenizer",
            "features": {
                "class_path": f"asr_lightning.audio.features.{features}",
                "init_args": {"sample_rate": RATE, **parts[features], **options},
            },
            "encoder": {"class_path": f"{nn_path}.LSTMEncoder", "init_args": encoder},
            "predictor": {"class_path": f"{rnnt}.LSTMPredictor", "init_args": {"dimension": width}},
            "joint_dimension": width,
        },
    }


def save_teacher(folder: Path, config: dict[str, Any] | None = None) -> tuple[Path, nn.Module]:
    teacher = build_recognizer(config or configuration(6))
    path = folder / "teacher.ckpt"
    content = {"state_dict": teacher.state_dict(), "hyper_parameters": dict(teacher.hparams)}
    torch.save({**content, "pytorch-lightning_version": lightning.__version__}, path)
    return path, teacher


class Beginning(lightning.Callback):
    """Keeps the weights before the first step."""

    weights: dict[str, Tensor]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.weights = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}


def batches(count: int = 2) -> Any:
    audio = torch.randn(count, 3_000, generator=torch.Generator().manual_seed(0)) / 10
    return loader([Batch.collate([Utterance(str(row), one, RATE, "AB")]) for row, one in enumerate(audio)])


def fit(
    folder: Path, selection: WeightSelection, student: Any = None, ckpt_path: Path | None = None, **options: Any
) -> tuple[lightning.Trainer, dict[str, Tensor]]:
    """Train the student; return the trainer, and the weights it began with."""
    beginning = Beginning()
    trainer = make_trainer(folder, callbacks=[selection, beginning], limit_val_batches=0, **options)
    trainer.fit(student or build_recognizer(configuration(3)), batches(), ckpt_path=ckpt_path)
    return trainer, beginning.weights


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_training_begins_with_the_selected_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, teacher = save_teacher(tmp_path)
    student = build_recognizer(configuration(3))
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    options = {"layers": "last", "elements": "random_consistent", "seed": 5}
    expected, report = select_weights(student, teacher, **options)
    with caplog.at_level("INFO", "lightning.pytorch"):
        trainer, first = fit(tmp_path, WeightSelection(str(path), **options), student)
    assert equal(first, expected)
    assert not equal(first, before)
    assert not equal(student.state_dict(), first), "it was trained"
    printed = caplog.text
    assert f"from {path}: layers last, elements random_consistent, axes along their meaning" in printed
    for one in report:
        assert str(one) in printed
    assert "all 4 gates × 3 of 6 | all 2 directions × 3 of 6" in printed
    blind = fit(tmp_path, WeightSelection(str(path), axis_aware=False))[1]
    assert equal(blind, select_weights(student, teacher, axis_aware=False)[0])


def test_a_run_that_is_resumed_keeps_its_weights(tmp_path: Path) -> None:
    path, _ = save_teacher(tmp_path)
    trainer, _ = fit(tmp_path, WeightSelection(str(path)), max_steps=1)  # in the middle of the epoch
    middle = tmp_path / "middle.ckpt"
    trainer.save_checkpoint(middle)
    saved = torch.load(middle, weights_only=True)["state_dict"]
    path.unlink()  # nor is the teacher needed again
    trainer, resumed = fit(tmp_path, WeightSelection(str(path)), ckpt_path=middle, max_epochs=2)
    assert equal(resumed, saved)
    assert trainer.global_step > 1


def test_a_second_fit_goes_on(tmp_path: Path) -> None:
    path, _ = save_teacher(tmp_path)
    selection, student = WeightSelection(str(path)), build_recognizer(configuration(3))
    fit(tmp_path, selection, student)
    trained = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    assert equal(fit(tmp_path, selection, student)[1], trained)


def test_a_missing_teacher_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no teacher's checkpoint at .*none\.ckpt.*make it with `make teacher`"):
        fit(tmp_path, WeightSelection(str(tmp_path / "none.ckpt"), made_by="make teacher"))


def test_a_truncated_teacher_is_refused(tmp_path: Path) -> None:
    path, _ = save_teacher(tmp_path)
    path.write_bytes(path.read_bytes()[:5_000])
    with pytest.raises(InputError, match="no whole checkpoint"):
        fit(tmp_path, WeightSelection(str(path)))


NORMALIZED = {"normalization": "asr_lightning.audio.normalization.UtteranceNormalization"}


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (("MFCC", {}), "teacher .* MFCC of 8 dimensions.*student.* LogMel of 8"),
        (("KaldiFilterBank", {}), "KaldiFilterBank"),
        (("LogMel", {"mels": 10}), "LogMel of 10 dimensions.*LogMel of 8 dimensions"),
        (("LogMel", {"sample_rate": 16_000}), "at 16000 Hz.*at 8000 Hz"),
        (("LogMel", {"hop_seconds": 0.02}), "every 160.*every 80"),
        (("LogMel", {"maximum_hertz": 3_000.0}), "trained on other features"),
        (("LogMel", NORMALIZED), "UtteranceNormalization.*NoneType"),
    ],
)
def test_a_teacher_of_other_features_is_refused(
    tmp_path: Path, features: tuple[str, dict[str, Any]], message: str
) -> None:
    name, options = features
    config = configuration(6, name, **options)
    config["init_args"]["encoder"]["init_args"]["input_dimension"] = options.get("mels", MELS)
    path, _ = save_teacher(tmp_path, config)
    with pytest.raises(InputError, match=f"cannot be used: it was trained on other features.*({message})|{message}"):
        fit(tmp_path, WeightSelection(str(path)))


def test_statistics_of_the_features_come_from_the_teacher(tmp_path: Path) -> None:
    normalized = {"normalization": "asr_lightning.audio.normalization.GlobalNormalization"}
    path, teacher = save_teacher(tmp_path)
    teacher = build_recognizer(configuration(6, **normalized))
    teacher.features.normalization.count.fill_(3)
    teacher.features.normalization.squares.fill_(9)
    torch.save({"state_dict": teacher.state_dict(), "hyper_parameters": dict(teacher.hparams)}, path)
    _, first = fit(tmp_path, WeightSelection(str(path)), build_recognizer(configuration(3, **normalized)))
    assert int(first["features.normalization.count"]) == 3
    assert bool((first["features.normalization.squares"] == 9).all())


def test_all_ranks_begin_with_the_same_weights(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tmp_path)]
    result = subprocess.run(command, env=environment, timeout=120, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    assert ranks[0]["seed"] != ranks[1]["seed"], "or there would be nothing to see"
    for moment in ("drawn", "first", "last"):
        assert equal(ranks[0][moment], ranks[1][moment]), moment
    assert not equal(ranks[0]["drawn"], ranks[0]["first"])
    assert not equal(ranks[0]["first"], ranks[0]["last"])
    assert result.stderr.count("weight selection from") == 1, "printed once, where a terminal shows it"


class Unlike(lightning.Callback):
    """Gives each rank random numbers of its own, and keeps the weights that Initialization drew with them."""

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        torch.manual_seed(trainer.global_rank)
        self.seed = torch.initial_seed()
        Initialization("he").on_fit_start(trainer, pl_module)
        self.drawn = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        first = next(one for one in trainer.callbacks if isinstance(one, Beginning)).weights
        kept = {"seed": self.seed, "drawn": self.drawn, "first": first, "last": pl_module.state_dict()}
        torch.save(kept, Path(trainer.default_root_dir) / f"rank{trainer.global_rank}.pt")


def two_ranks(folder: Path) -> None:
    path, _ = save_teacher(folder)
    options = {"devices": 2, "strategy": "ddp_fork", "limit_val_batches": 0}  # forks spare a second start of Python
    trainer = make_trainer(folder, callbacks=[Unlike(), WeightSelection(str(path)), Beginning()], **options)
    trainer.fit(build_recognizer(configuration(3)), batches())


if __name__ == "__main__":
    two_ranks(Path(sys.argv[1]))
