"""Teachers here are students that were made larger by hand, by the names of their parameters, without `nn.axes`.

In a teacher each hidden unit of the student is there several times, and what reads it divides by their number, so that
it computes the same; a rule that keeps one copy of each unit must find the student in it.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from asr_lightning.audio.features import LogMel
from asr_lightning.audio.normalization import GlobalNormalization
from asr_lightning.models.deep_speech_2 import DeepSpeech2Encoder
from asr_lightning.models.jasper import Jasper
from asr_lightning.models.rnn_transducer import LSTMPredictor, RNNTransducer, StatelessPredictor
from asr_lightning.nn.conformer import Conformer, StreamingConformer
from asr_lightning.nn.extractors import Convolutions2d
from asr_lightning.nn.frame_attention import TimeAttention
from asr_lightning.nn.recurrent import LSTMEncoder, StreamingLSTMEncoder
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
    dimension, heads, hidden, channels = (size(units, teacher) for units in (DIMENSION, HEADS, FEED_FORWARD, CHANNELS))
    return Conformer(MELS, dimension, layers, heads, hidden, kernel, channels)


def streaming_conformer(teacher: bool, layers: int = 2) -> StreamingConformer:
    dimension, heads, hidden, channels = (size(units, teacher) for units in (DIMENSION, HEADS, FEED_FORWARD, CHANNELS))
    return StreamingConformer(MELS, dimension, layers, heads, hidden, 4, channels, chunk=2, left_context=3)


def streaming_lstm(teacher: bool, layers: int = 2) -> StreamingLSTMEncoder:
    return StreamingLSTMEncoder(MELS, size(HIDDEN, teacher), layers, size(CHANNELS, teacher))


def lstm(teacher: bool, layers: int = 2) -> LSTMEncoder:
    return LSTMEncoder(MELS, size(HIDDEN, teacher), layers, size(CHANNELS, teacher))


def deep_speech_2(teacher: bool, layers: int = 2) -> DeepSpeech2Encoder:
    front = Convolutions2d(MELS, [size(CHANNELS, teacher)] * 2, [[3, 5], [3, 3]], [[2, 2], [2, 2]])
    attention = partial(TimeAttention, heads=size(HEADS, teacher))
    return DeepSpeech2Encoder(front, size(HIDDEN, teacher), layers, directions="concatenate", attention=attention)


def jasper(teacher: bool, layers: int = 2) -> Jasper:
    channels = size(CHANNELS, teacher)
    return Jasper(
        MELS, 2, [channels] * layers, [5] * layers, [0.0] * layers, 1, prologue=(channels, 3), epilogue=(channels, 5),
        dimension=size(DIMENSION, teacher),
    )  # fmt: skip


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
    "streaming, lstm predictor": (streaming_conformer, lstm_predictor),
    "streaming lstm, stateless predictor": (streaming_lstm, stateless),
    "lstm, lstm predictor": (lstm, lstm_predictor),
    "lstm, stateless predictor": (lstm, stateless),
    "deep speech 2, stateless predictor": (deep_speech_2, stateless),
    "jasper, stateless predictor": (jasper, stateless),
}


def recognizer(
    encoder: Any, predictor: Any, teacher: bool, seed: int = 0, tokenizer: Tokenizer | None = None, ctc: float = 0.3
) -> RNNTransducer:
    """A network of random weights, also where torch begins with zeros and ones."""
    features = LogMel(RATE, mels=MELS, normalization=GlobalNormalization())
    tokenizer = tokenizer or CharacterTokenizer()
    model = RNNTransducer(
        predictor, size(JOINT, teacher), encoder=encoder, ctc_weight=ctc, tokenizer=tokenizer, features=features
    )
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
    return [row * behind + offset for row in rows for offset in range(behind)]


def arranged(units: tuple[int, list[int]], tiled: bool) -> tuple[int, list[int]]:
    """Copies side by side as above, or tiled: one of each, then the others, so that the first units are one of each."""
    count, copies = units
    turns = [copies[:index].count(unit) for index, unit in enumerate(copies)]
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
    (r"encoder\.norms\.\d\.(weight|bias)", "encoded", ""),
    (r"encoder\.layers\.\d\.(weight|bias)_[ih]h_l0", "4 x hidden", "hidden"),
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
    (r"encoder\.extractor\.convolutions\.0\.weight", "channels", ""),
    (r"encoder\.extractor\.convolutions\.1\.weight", "channels", "channels"),
    (r"encoder\.extractor\.norms\.\d\.\w+", "channels", ""),
    (r"encoder\.layers\.0\.(for|back)ward_rnn\.weight_ih_l0", "3 x hidden", "flattened"),
    (r"encoder\.layers\.[1-9]\.(for|back)ward_rnn\.weight_ih_l0", "3 x hidden", "2 x hidden"),
    (r"encoder\.layers\.\d\.(for|back)ward_rnn\.weight_hh_l0", "3 x hidden", "hidden"),
    (r"encoder\.layers\.\d\.(for|back)ward_(rnn\.bias_[ih]h_l0|norm\.\w+)", "3 x hidden", ""),
    (r"encoder\.attentions\.\d\.(query|key|value)\.(weight|bias)", "heads x 3", "2 x hidden"),
    (r"encoder\.attentions\.\d\.output\.(weight|bias)", "2 x hidden", "heads x 3"),
    (r"encoder\.(attentions\.\d\.norm|layer_norm)\.(weight|bias)", "2 x hidden", ""),
    (r"encoder\.prologue\.convolution\.weight", "channels", ""),
    (r"encoder\.(blocks\.\d\.\w+\.\d|epilogue\.0)\.convolution\.weight", "channels", "channels"),
    (r"encoder\.(prologue|blocks\.\d\.\w+\.\d|epilogue\.0)\.norm\.\w+", "channels", ""),
    (r"encoder\.epilogue\.1\.convolution\.weight", "dimension", "channels"),
    (r"encoder\.epilogue\.1\.norm\.\w+", "dimension", ""),
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
    units = {name: arranged(width, tiled) for name, width in names.items()}
    copies = {"": [], **{name: list(width[1]) for name, width in units.items()}}
    copies |= {"4 x hidden": blocks(4, units["hidden"]), "4 x predictor": blocks(4, units["predictor"])}
    copies |= {"2 x hidden": blocks(2, units["hidden"]), "2 x dimension": blocks(2, units["dimension"])}
    copies |= {"heads x 4": blocks(1, units["heads"], 4), "flattened": blocks(1, units["channels"], FREQUENCIES)}
    copies |= {"3 x hidden": blocks(3, units["hidden"]), "heads x 3": blocks(1, units["heads"], 3)}
    recurrent = isinstance(encoder, LSTMEncoder | DeepSpeech2Encoder)
    copies["encoded"] = copies["2 x hidden" if recurrent else "dimension"]
    if isinstance(encoder, StreamingLSTMEncoder):
        copies["encoded"] = copies["hidden"]
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
    weights = {name: expanded(name, weight, student.encoder, tiled) for name, weight in student.state_dict().items()}
    for name, weight in weights.items():
        place(teacher.state_dict()[name], weight, name)


def place(tensor: Tensor, weight: Tensor, name: str) -> None:
    """Write a weight into a teacher's own, whose kernel may be longer: it is silent at both ends."""
    beyond = [(have - want) // 2 for have, want in zip(tensor.shape, weight.shape, strict=True)]
    assert beyond[:2] == [0] * len(beyond[:2]), name
    tensor.zero_()
    tensor[tuple(slice(start, start + width) for start, width in zip(beyond, weight.shape, strict=True))] = weight


def outputs(model: RNNTransducer) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    audio, lengths = torch.randn(2, 3_000, generator=generator), torch.tensor([3_000, 2_200])
    tokens = torch.tensor([[0, 7, 9, 30], [0, 5, 5, 1]])
    assert model.ctc is not None
    with torch.no_grad():
        encoded, frames = model(audio, lengths)
        encoded[1, int(frames[1]) :] = 0
        predicted, _ = model.prediction(tokens, model.prediction.initial_state(2, torch.device("cpu")))
        joined = model.joint(model.encoder_projection(encoded).unsqueeze(2), predicted.unsqueeze(1))
    return [joined, model.ctc(encoded)]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.allclose(output, expected, atol=1e-4) for output, expected in zip(ours, theirs, strict=True))


def restored(student: RNNTransducer, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A selection times the numbers that the expansion divided by."""
    result = dict(weights)
    for name, weight in weights.items():
        if (copies := reads(name, weight, student.encoder)) is not None:
            result[name] = weight * per_column(torch.bincount(copies), weight)
    return result
