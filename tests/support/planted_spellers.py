"""Listeners and spellers that were made larger by hand, by the names of their parameters, without `nn.axes`.

As in `planted_teachers`, a teacher holds each hidden unit of the student several times and computes the same. Nothing
here is normalized, so units may be copied unequally often. What sums over copies is divided by their number:

* a weight that reads copies, column by column;
* of the two sides of an inner product, φ(query) · ψ(frame) or query · key, the query's, row by row;
* that of a scaled one is multiplied by √(D / d) besides, since the teacher's D dimensions of a head divide the product
  by √D instead of √d. (So what is selected from a teacher that was trained at √D looks around √(d / D) less sharply.)

Copies of a head need no division: each gives the same context, and what reads the contexts divides.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from asr_lightning.audio.features import LogMel
from asr_lightning.audio.normalization import UtteranceNormalization
from asr_lightning.models.encoder_decoder import EncoderDecoder
from asr_lightning.models.listen_attend_spell import Speller
from asr_lightning.nn.mechanisms import (
    AdditiveAttention,
    Attention,
    DotAttention,
    LocationAwareAttention,
    MultiHeadAttention,
    ScaledDotAttention,
)
from asr_lightning.nn.recurrent import ProjectedLSTMEncoder, PyramidalLSTMEncoder
from asr_lightning.nn.sequences import Encoder
from asr_lightning.text.tokenizers import CharacterTokenizer, Tokenizer
from tests.support.planted_teachers import MELS, RATE, arranged, per_column, place, size

# Units of the student, and for each unit of the teacher which of the student's it copies: such that evenly spread units
# of the teacher are one copy of each, and that they are not where an axis of several such parts is spread over as one.
Widths = dict[str, tuple[int, list[int]]]
UNEVEN: Widths = {
    "hidden": (5, [0, 0, 1, 1, 2, 3, 3, 4]),
    "projection": (6, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5]),
    "state": (5, [0, 0, 1, 2, 3, 4, 4]),
    "inner": (6, [0, 1, 1, 2, 3, 3, 4, 5, 5]),
    "channels": (3, [0, 0, 1, 2, 2]),
    "heads": (3, [0, 0, 1, 2, 2]),
    "head": (2, [0, 0, 1]),
    "filter": (2, [0] * 4),  # frames to each side of a location filter; the outer ones of more are silent
}
TILED = {name: arranged(units, tiled=True) for name, units in UNEVEN.items()}  # the first units are one copy of each
EVEN = {name: (count, [unit for unit in range(count) for _ in range(2)]) for name, (count, _) in UNEVEN.items()}
EVEN["filter"] = (2, [0] * 2)

Width = Callable[[str], int]
Copies = list[tuple[str, str, str]]  # parameter, what it writes, what it reads; tokens, memory and context are others'
RECURRENT = [
    (r"\w+\.\d\.\w+\.weight_hh_l0", "4 x hidden", "hidden"),
    (r"\w+\.\d\.\w+\.bias_[ih]h_l0", "4 x hidden", ""),
]
KEYS = [(r"key\.(weight|bias)", "inner", "memory"), (r"query\.(weight|bias)", "inner", "state")]
ADDITIVE = [*KEYS, (r"energy\.weight", "", "inner")]
SPELLER: Copies = [
    (r"embedding\.weight", "tokens", "state"),
    (r"cells\.0\.weight_ih", "4 x state", "state + context"),
    (r"cells\.\d\.weight_[ih]h", "4 x state", "state"),
    (r"cells\.\d\.bias_[ih]h", "4 x state", ""),
    (r"output\.(weight|bias)", "tokens", "known"),
]
KNOWN = {"current": "state + context", "previous": "state"}  # what the output layer reads, by the decoder's order


@dataclass(frozen=True)
class Listener:
    """An encoder of so many layers, what its output is, and the copies of its parameters."""

    make: Callable[[Width, int], Encoder]
    output: str
    copies: Copies


LISTENERS = {
    "pyramid": Listener(
        lambda width, layers: PyramidalLSTMEncoder(MELS, width("hidden"), layers),
        "2 x hidden",
        [
            (r"pyramid\.0\.\w+\.weight_ih_l0", "4 x hidden", ""),
            (r"pyramid\.\d\.\w+\.weight_ih_l0", "4 x hidden", "2 x 2 x hidden"),
            *RECURRENT,
        ],
    ),
    "pyramid over plain layers": Listener(
        lambda width, layers: PyramidalLSTMEncoder(MELS, width("hidden"), layers, plain_layers=2),
        "2 x hidden",
        [
            (r"plain\.0\.\w+\.weight_ih_l0", "4 x hidden", ""),
            (r"plain\.\d\.\w+\.weight_ih_l0", "4 x hidden", "2 x hidden"),
            (r"pyramid\.\d\.\w+\.weight_ih_l0", "4 x hidden", "2 x 2 x hidden"),
            *RECURRENT,
        ],
    ),
    "projected": Listener(
        lambda width, layers: ProjectedLSTMEncoder(MELS, width("hidden"), layers, width("projection"), [1, 2, 2]),
        "projection",
        [
            (r"layers\.0\.\w+\.weight_ih_l0", "4 x hidden", ""),
            (r"layers\.\d\.\w+\.weight_ih_l0", "4 x hidden", "projection"),
            (r"projections\.\d\.(weight|bias)", "projection", "2 x hidden"),
            *RECURRENT,
        ],
    ),
}


@dataclass(frozen=True)
class Mechanism:
    """An attention, the copies of its parameters, what its context is, and its inner product.

    That is over `summed` units, and written on the query's side by the parameters `query`.
    """

    make: Callable[[Width], Callable[..., Attention]]
    copies: Copies
    context: str = "memory"
    query: str = ""
    summed: str = ""
    scaled: bool = False


MECHANISMS = {
    "dot": Mechanism(
        lambda width: partial(DotAttention, dimension=width("inner")),
        [
            (r"phi\.0\.(weight|bias)", "inner", "state"),
            (r"psi\.0\.(weight|bias)", "inner", "memory"),
            (r"p[hs]i\.2\.(weight|bias)", "inner", "inner"),
        ],
        query="phi.2",
        summed="inner",
    ),
    "additive": Mechanism(lambda width: partial(AdditiveAttention, dimension=width("inner")), ADDITIVE),
    "location-aware": Mechanism(
        lambda width: partial(
            LocationAwareAttention,
            dimension=width("inner"),
            channels=width("channels"),
            filter_frames=width("filter"),
        ),
        [*ADDITIVE, (r"convolution\.weight", "channels", ""), (r"location\.weight", "inner", "channels")],
    ),
    "multi-head": Mechanism(
        lambda width: partial(MultiHeadAttention, dimension=width("heads") * width("head"), heads=width("heads")),
        [
            (r"query\.(weight|bias)", "heads x head", "state"),
            (r"(key|value)\.(weight|bias)", "heads x head", "memory"),
        ],
        context="heads x head",
        query="query",
        summed="head",
        scaled=True,
    ),
    "scaled dot": Mechanism(
        lambda width: partial(ScaledDotAttention, dimension=width("inner")),
        [*KEYS, (r"value\.(weight|bias)", "inner", "memory")],
        context="inner",
        query="query",
        summed="inner",
        scaled=True,
    ),
}


class Reordered(CharacterTokenizer):
    """Its tokens in another order, and more of them."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = ("er", *reversed(self.tokens), "th")


class Planting:
    """A student and a teacher of one kind; the teacher's tokens may be others."""

    def __init__(
        self,
        listener: str,
        mechanism: str = "additive",
        widths: Widths = UNEVEN,
        tokenizer: Tokenizer | None = None,
        query_state: str = "current",
    ) -> None:
        self.listener = LISTENERS[listener]
        self.mechanism = MECHANISMS[mechanism]
        self.widths = widths
        self.tokenizer = tokenizer or CharacterTokenizer()
        self.query_state = query_state

    def recognizer(self, teacher: bool, layers: int = 3, cells: int = 2, seed: int = 0) -> EncoderDecoder:
        """A network of random weights, also where torch begins with zeros."""

        def width(name: str) -> int:
            return size(self.widths[name], teacher)

        attention = self.mechanism.make(width)
        model = EncoderDecoder(
            partial(Speller, attention=attention, hidden=width("state"), layers=cells, query_state=self.query_state),
            encoder=self.listener.make(width, layers),
            ctc_weight=0.3,
            tokenizer=self.tokenizer if teacher else CharacterTokenizer(),
            features=LogMel(RATE, mels=MELS, normalization=UtteranceNormalization()),
        )
        generator = torch.Generator().manual_seed(seed)
        for tensor in model.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
        return model.eval()

    def axes(self, name: str) -> tuple[str, str]:
        """What a parameter writes and reads."""
        parts = {"encoder": self.listener.copies, "decoder.attention": self.mechanism.copies, "decoder": SPELLER}
        parts["ctc"] = [("weight|bias", "tokens", "memory")]
        part = next(part for part in parts if name.startswith(f"{part}."))
        rest = name.removeprefix(f"{part}.")
        written, read = next((written, read) for pattern, written, read in parts[part] if re.fullmatch(pattern, rest))
        read = read.replace("known", KNOWN[self.query_state])
        read = read.replace("context", self.mechanism.context).replace("memory", self.listener.output)
        return written, "" if "bias" in name else read

    def copies(self, axis: str) -> list[int]:
        """The index along the student's axis that each index along the teacher's copies."""
        if axis == "tokens":
            tokens = CharacterTokenizer().tokens
            return [tokens.index(token if token in tokens else "Q") for token in self.tokenizer.tokens]
        indices: list[int] = []
        for product in axis.split(" + "):
            offset, inner = len(set(indices)), [0]
            for factor in product.split(" x "):
                count, units = self.widths.get(factor) or (int(factor), list(range(int(factor))))
                inner = [outer * count + unit for outer in inner for unit in units]
            indices += [offset + index for index in inner]
        return indices

    def divisors(self, name: str, weight: Tensor) -> Tensor:
        """What each number of a student's weight is divided by in a teacher."""
        written, read = self.axes(name)
        divisors = torch.ones_like(weight)
        if read and "embedding" not in name:
            divisors = divisors * per_column(torch.bincount(torch.tensor(self.copies(read))), weight)
        if self.mechanism.query and name.startswith(f"decoder.attention.{self.mechanism.query}."):
            count, units = self.widths[self.mechanism.summed]
            growth = math.sqrt(len(units) / count) if self.mechanism.scaled else 1.0
            terms = torch.bincount(torch.tensor(units)).repeat(len(weight) // count) / growth  # head by head
            divisors = divisors * terms.view(-1, *[1] * (weight.dim() - 1))
        return divisors

    def plant(
        self, student: EncoderDecoder, teacher: EncoderDecoder, sources: dict[str, list[int]] | None = None
    ) -> None:
        """Let the teacher compute what the student does, in those of its layers that `sources` names for the student's.

        Other layers of the teacher are left as they are.
        """
        for name, weight in student.state_dict().items():
            written, read = self.axes(name)
            weight = weight / self.divisors(name, weight)
            weight = weight[self.copies(written)] if written else weight
            weight = weight[:, self.copies(read)] if read else weight
            stack, layer = re.fullmatch(r"\w+\.(\w+)\.(\d)\..*|.*", name).groups()  # type: ignore[union-attr]
            if sources and stack in sources:
                name = name.replace(f".{layer}.", f".{sources[stack][int(layer)]}.", 1)
            place(teacher.state_dict()[name], weight, name)

    def restored(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """A selection, multiplied by the divisors."""
        return {name: weight * self.divisors(name, weight) for name, weight in weights.items()}


def outputs(model: EncoderDecoder) -> list[Tensor]:
    """Encoded utterances, and logits over the characters: of the transcripts, and of CTC."""
    generator = torch.Generator().manual_seed(0)
    audio, lengths = torch.randn(2, 6_000, generator=generator), torch.tensor([6_000, 4_200])
    names = list(model.tokenizer.tokens)
    tokens = torch.tensor([[names.index(token) for token in ("<eos>", *text)] for text in ("_BEAD", "_CAB'")])
    characters = [names.index(token) for token in CharacterTokenizer().tokens]
    encoded, frames = model(audio, lengths)
    encoded = encoded * (torch.arange(encoded.shape[1]) < frames.unsqueeze(1)).unsqueeze(2)
    assert model.ctc is not None
    logits = model.decoder(tokens, model.decoder.remember(encoded, frames))
    return [encoded, logits[..., characters], model.ctc(encoded)[..., characters]]
