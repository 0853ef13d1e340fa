"""A selection finds the Speech Transformer that was planted in a larger one."""

import math
import re

import torch
from torch import Tensor, nn

from asr_lightning.callbacks.weight_selection import select_weights
from asr_lightning.models.speech_transformer import TransformerDecoder, TransformerEncoder
from asr_lightning.nn.attention import sinusoids

VOCABULARY = ("<eos>", *"ABCDEFGHIJ")


def test_every_second_wavelength_of_twice_as_many_is_ones_own() -> None:
    frames = torch.arange(50)
    pairs = sinusoids(frames, 32).unflatten(1, (16, 2))
    torch.testing.assert_close(pairs[:, ::2].flatten(1), sinusoids(frames, 16))
    torch.testing.assert_close(pairs[:, ::4].flatten(1), sinusoids(frames, 8))


# A teacher made by hand from a student: units of the student, and which of them each unit of the teacher copies, such
# that evenly spread ones are one copy of each. What is read from copies is divided by their number.
STREAM = [2 * pair + column for pair in range(4) for _ in range(2) for column in range(2)]
HEADS = [4 * head + unit for head in (0, 0, 1, 1) for unit in range(4)]
FEED_FORWARD = [0, 0, 1, 1, 2, 3, 3, 4]
FREQUENCIES = 8  # two convolutions leave 8 of 32
CHANNELS = [0, 0, 1, 1, 2, 2, 3, 3]
FLATTENED = [FREQUENCIES * channel + frequency for channel in CHANNELS for frequency in range(FREQUENCIES)]
COPIES: list[tuple[str, list[int], list[int]]] = [  # parameter, what it writes, what it reads
    (r"encoder\.subsampling\.convolutions\.0\.(weight|bias)", CHANNELS, []),
    (r"encoder\.subsampling\.convolutions\.1\.(weight|bias)", CHANNELS, CHANNELS),
    (r"encoder\.subsampling\.projection\.(weight|bias)", STREAM, FLATTENED),
    (r".*\.(attention_|self_|cross_|)norm\.(weight|bias)", STREAM, []),
    (r".*\.(self_|cross_|)attention\.(query|key|value)\.(weight|bias)", HEADS, STREAM),
    (r".*\.(self_|cross_|)attention\.output\.(weight|bias)", STREAM, HEADS),
    (r".*\.feed_forward\.0\.(weight|bias)", STREAM, []),
    (r".*\.feed_forward\.1\.(weight|bias)", FEED_FORWARD, STREAM),
    (r".*\.feed_forward\.4\.(weight|bias)", STREAM, FEED_FORWARD),
    (r"decoder\.output\.(weight|bias)", [], STREAM),
]
SCALED = ("encoder.subsampling.projection.weight", "encoder.subsampling.projection.bias", "decoder.embedding.weight")


class Pair(nn.Module):
    """An encoder and a decoder, of random weights also where torch begins with zeros and ones."""

    def __init__(self, teacher: bool, seed: int = 0) -> None:
        super().__init__()
        stream, heads, hidden, channels = (16, 4, 8, 8) if teacher else (8, 2, 5, 4)
        self.encoder = TransformerEncoder(32, stream, 2, heads, hidden, channels, dropout=0.0)
        self.decoder = TransformerDecoder(VOCABULARY, self.encoder.output_axis(), stream, 2, heads, hidden, dropout=0.0)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        self.double().eval()

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        encoded, lengths = self.encoder(x, torch.full((len(x),), x.shape[1]))
        return self.decoder(tokens, self.decoder.remember(encoded, lengths))


def copies_of(name: str) -> tuple[list[int], list[int]]:
    return next((written, read) for pattern, written, read in COPIES if re.fullmatch(pattern, name))


@torch.no_grad()
def plant(student: Pair, teacher: Pair, x: Tensor, tokens: Tensor) -> None:
    """Let the teacher compute for x and the tokens what the student does.

    Half of the teacher's wavelengths are in between those of the student. A projection and an embedding do not know
    positions, but on a single input they can make up for the difference, so that all pairs of the stream are copies.
    """
    teacher_weights = teacher.state_dict()
    for name, weight in student.state_dict().items():
        if name == "decoder.embedding.weight":
            continue
        written, read = copies_of(name)
        if written:
            weight = weight[written]
        if read and weight.dim() > 1:
            counts = torch.bincount(torch.tensor(read))[read]
            weight = weight[:, read] / counts.view(-1, *[1] * (weight.dim() - 2))
        teacher_weights[name].copy_(weight)
    between = [column for column in range(16) if column % 4 >= 2]
    for name in SCALED[:2]:
        teacher_weights[name].mul_(math.sqrt(8 / 16))  # the input of the stream is scaled by √D

    projection_input = flattened(teacher.encoder, x)
    frames = torch.arange(len(projection_input))
    stream = student.encoder.subsampling(x, torch.tensor([x.shape[1]]))[0][0] * math.sqrt(8) + sinusoids(frames, 8)
    wanted = (stream[:, STREAM] - sinusoids(frames, 16)) / math.sqrt(16) - teacher_weights[SCALED[1]]
    teacher_weights[SCALED[0]][between] = torch.linalg.lstsq(
        projection_input, wanted[:, between], driver="gelsd"
    ).solution.T

    positions = torch.arange(tokens.shape[1])
    teacher_weights[SCALED[2]].copy_(student.decoder.embedding.weight[:, STREAM] * math.sqrt(8 / 16))
    stream = student.decoder.embedding(tokens[0]) * math.sqrt(8) + sinusoids(positions, 8)
    teacher_weights[SCALED[2]][tokens[0]] = (stream[:, STREAM] - sinusoids(positions, 16)) / math.sqrt(16)


def flattened(listener: TransformerEncoder, x: Tensor) -> Tensor:
    """What the projection reads of one utterance x (1, T, F): (T / 4, channels * frequencies)."""
    read: list[Tensor] = []
    handle = listener.subsampling.projection.register_forward_hook(lambda _, inputs, output: read.append(inputs[0]))
    listener.subsampling(x, torch.tensor([x.shape[1]]))
    handle.remove()
    return read[0][0]


def restored(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A selection, multiplied by what the teacher was divided by."""
    result = dict(weights)
    for name, weight in weights.items():
        if name != "decoder.embedding.weight" and weight.dim() > 1 and (read := copies_of(name)[1]):
            result[name] = weight * torch.bincount(torch.tensor(read)).view(-1, *[1] * (weight.dim() - 2))
    return {name: weight * math.sqrt(16 / 8) if name in SCALED else weight for name, weight in result.items()}


@torch.no_grad()
def test_the_student_inside_a_teacher_is_found_through_positions() -> None:
    student, teacher, other = Pair(teacher=False), Pair(teacher=True, seed=1), Pair(teacher=False, seed=2)
    x, tokens = torch.randn(1, 24, 32).double(), torch.tensor([[0, 3, 1, 8, 5, 2, 9]])
    plant(student, teacher, x, tokens)
    torch.testing.assert_close(teacher(x, tokens), student(x, tokens), rtol=1e-5, atol=1e-5)
    assert (other(x, tokens) - student(x, tokens)).abs().max() > 0.1

    selected = restored(select_weights(other, teacher)[0])
    for name, weight in student.state_dict().items():
        torch.testing.assert_close(
            selected[name], weight, rtol=1e-5, atol=1e-6, msg=lambda message, name=name: f"{name}: {message}"
        )
    other.load_state_dict(selected)
    longer_x, longer_tokens = torch.randn(2, 60, 32).double(), torch.randint(11, (2, 20))
    torch.testing.assert_close(other(longer_x, longer_tokens), student(longer_x, longer_tokens), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_selection_by_size_alone_tears_sines_from_cosines() -> None:
    student, teacher = Pair(teacher=False), Pair(teacher=True, seed=1)
    plant(student, teacher, torch.randn(1, 24, 32).double(), torch.tensor([[0, 3, 1, 8]]))
    selected = restored(select_weights(student, teacher, axis_aware=False)[0])
    student_weights = student.state_dict()
    for name in ("encoder.norm.weight", "decoder.layers.0.self_norm.bias", "decoder.output.weight"):
        assert not torch.allclose(selected[name], student_weights[name], atol=1e-2), name
