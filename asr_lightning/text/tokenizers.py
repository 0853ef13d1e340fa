"""Tokenizers: transcripts to token ids and back, and the characters that a vocabulary lacks."""

import base64
import io
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import sentencepiece

from asr_lightning.errors import InputError, printable
from asr_lightning.files import regular, replacing, write_atomically

BLANK, UNKNOWN, END = "<blank>", "<unk>", "<eos>"
UNKNOWN_SURFACE = "?"  # how decode writes <unk>
# One letter of five, as many as an average English word has: then two words of three are wrong at best. Foreign
# names and digits stay below 1 %; text of another script, or of the other case, is lost nearly as a whole.
MOST_LOST = 0.2
NAMED = 10  # of the lost characters


class Tokenizer(ABC):
    """A vocabulary, and the way from text to numbers in it and back.

    Attributes:
        tokens: The V tokens; the index of a token is its id.
        blank_id: The token of CTC and transducers for no token.
        unk_id: The token that stands for what the vocabulary cannot write.
        eos_id: The token that ends a sentence of an attention decoder.
    """

    tokens: tuple[str, ...]
    blank_id: int
    unk_id: int
    eos_id: int

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Turn text into token ids, without `eos_id`: attention decoders add it themselves."""

    @abstractmethod
    def _decode(self, ids: list[int]) -> str:
        """Turn ids, without blanks and ends, into text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Turn token ids into text. Blanks and ends are left out; `<unk>` is written `?`.

        Raises:
            ValueError: An id is not of this vocabulary.
        """
        wrong = [number for number in ids if not 0 <= number < len(self)]
        if wrong:
            raise ValueError(f"token ids must be 0 to {len(self) - 1}, got {wrong[:10]}")
        return self._decode([int(number) for number in ids if number not in (self.blank_id, self.eos_id)])

    def loses(self, character: str) -> bool:
        """Whether a character cannot be written: it is `<unk>`, or nothing although it is a letter or a digit."""
        ids = self.encode(character)
        return self.unk_id in ids or (not ids and unicodedata.category(character)[0] in "LN")

    def fold(self, text: str) -> str:
        """Return a transcript as this vocabulary writes it, so that reference and hypothesis are spelled alike.

        Without É in the vocabulary, CAFÉ is CAFE, and marks that it drops are dropped. Characters that it cannot write
        stay, and count as errors.
        """
        text = unicodedata.normalize("NFC", text)
        lost = {character for character in set(text) if self.loses(character)}
        if not lost and self.unk_id not in (ids := self.encode(text)):
            return self._decode(ids)
        return " ".join(filter(None, (self._fold_word(word, lost) for word in text.split())))

    def _fold_word(self, word: str, lost: set[str]) -> str:
        parts = ((stays, "".join(part)) for stays, part in groupby(word, lost.__contains__))
        return "".join(part if stays else self._decode(self.encode(part)) for stays, part in parts)

    @abstractmethod
    def init_args(self) -> dict[str, Any]:
        """Return constructor arguments that make the same tokenizer again, without any file."""

    def __len__(self) -> int:
        return len(self.tokens)


class CharacterTokenizer(Tokenizer):
    """Letters A–Z, apostrophe, `<blank>`, `<unk>`, `<eos>` and `_` for a space [Lim et al. 2019 §2.3].

    The paper counts 30 tokens; its list has 31, which are used here.

    A sentence begins with `_`; letters become upper case, white space `_`, and every mark but the apostrophe is
    dropped: `I have a pen.` → `_I_HAVE_A_PEN`. Latin letters lose their accents (É → E), the typographic apostrophe
    counts as one; any other letter or digit is `<unk>`. Text without any token in it is an empty list.
    """

    def __init__(self) -> None:
        self.tokens = (BLANK, UNKNOWN, END, "_", "'", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ")
        self.blank_id, self.unk_id, self.eos_id = range(3)
        self._ids = {token: number for number, token in enumerate(self.tokens)}

    def encode(self, text: str) -> list[int]:
        """Turn text into token ids, by the rule above."""
        words: list[list[int]] = []
        for word in unicodedata.normalize("NFC", text).upper().split():
            ids = [number for character in word if (number := self._character_id(character)) is not None]
            if ids:
                words.append(ids)
        return [number for ids in words for number in (self._ids["_"], *ids)]

    def _character_id(self, character: str) -> int | None:
        if character in "'\N{RIGHT SINGLE QUOTATION MARK}\N{MODIFIER LETTER APOSTROPHE}":
            return self._ids["'"]
        base = unicodedata.normalize("NFD", character)[0]
        if "A" <= base <= "Z":
            return self._ids[base]
        return self.unk_id if unicodedata.category(character)[0] in "LN" else None

    def _decode(self, ids: list[int]) -> str:
        characters = [UNKNOWN_SURFACE if number == self.unk_id else self.tokens[number] for number in ids]
        return " ".join("".join(characters).replace("_", " ").split())

    def init_args(self) -> dict[str, Any]:
        """Return no arguments: there are none."""
        return {}


class LetterTokenizer(Tokenizer):
    """The 29 characters of Deep Speech 2: a–z as capitals, apostrophe, `_` for a space, and blank [Amodei et al. 2016].

    Nothing else can be written: white space is one space, accents are dropped, and so is any other character. For CTC
    and transducers only, since there is no end; unknown and end are the blank.
    """

    def __init__(self) -> None:
        self.tokens = (BLANK, "_", "'", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ")
        self.blank_id = self.unk_id = self.eos_id = 0
        self._ids = {token: number for number, token in enumerate(self.tokens)}

    def encode(self, text: str) -> list[int]:
        """Turn text into token ids, by the rule above."""
        letters = unicodedata.normalize("NFD", text.upper().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
        words = "".join(
            letter for letter in letters if letter.isspace() or letter in self._ids and letter != "_"
        ).split()
        return [self._ids[letter] for letter in "_".join(words)]

    def _decode(self, ids: list[int]) -> str:
        return " ".join("".join(self.tokens[number] for number in ids).replace("_", " ").split())

    def init_args(self) -> dict[str, Any]:
        """Return no arguments: there are none."""
        return {}


class SentencePieceTokenizer(Tokenizer):
    """The pieces of a SentencePiece model, trained here or elsewhere.

    The model's padding piece is the blank and its end piece the end; a model without one of them gets it appended.

    Args:
        model: Path of a `.model` file.
        model_base64: The content of such a file in base64, as checkpoints carry it.
        lower_case: Whether its pieces are lower-case, as those of public models are, while transcripts are capitals.
        blank_is_unknown: Whether its unknown piece is the blank, as in SpeechBrain's transducers, and its end too if it
            has none. What it cannot write is left out then.

    Raises:
        InputError: Not exactly one of the two is given, the file is missing, or it is no SentencePiece model.
    """

    def __init__(
        self,
        model: str | None = None,
        model_base64: str | None = None,
        lower_case: bool = False,
        blank_is_unknown: bool = False,
    ) -> None:
        self.lower_case = lower_case
        self.blank_is_unknown = blank_is_unknown
        if (model is None) == (model_base64 is None):
            raise InputError("SentencePieceTokenizer needs either model (a path) or model_base64, exactly one of them")
        source = "model_base64" if model is None else str(model)
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            content = regular(Path(model)).read_bytes() if model is not None else base64.b64decode(str(model_base64))
            self._processor.LoadFromSerializedProto(content)
            pieces = [self._processor.id_to_piece(number) for number in range(self._processor.get_piece_size())]
        except OSError as error:
            raise InputError(
                f"cannot read the SentencePiece model {source} ({error.strerror}); train one, or correct the path"
            ) from error
        except (RuntimeError, ValueError) as error:  # ValueError: no base64, or pieces that are not UTF-8
            raise InputError(f"{source} is not a SentencePiece model") from error
        self._content = content
        self.unk_id = self._processor.unk_id()
        if blank_is_unknown:
            self.blank_id = self._find_or_append(self.unk_id, BLANK, pieces)
            self.eos_id = self._processor.eos_id() if self._processor.eos_id() >= 0 else self.blank_id
        else:
            self.blank_id = self._find_or_append(self._processor.pad_id(), BLANK, pieces)
            self.eos_id = self._find_or_append(self._processor.eos_id(), END, pieces)
        self.tokens = tuple(pieces)

    @staticmethod
    def _find_or_append(number: int, token: str, pieces: list[str]) -> int:
        if number >= 0:
            pieces[number] = token
            return number
        pieces.append(token)
        return len(pieces) - 1

    def encode(self, text: str) -> list[int]:
        """Turn text into token ids. The case matters: write it as the model was trained."""
        ids: list[int] = self._processor.encode(text.lower() if self.lower_case else text, out_type=int)
        return [number for number in ids if number != self.blank_id] if self.blank_is_unknown else ids

    def loses(self, character: str) -> bool:
        """Whether a character cannot be written: it is `<unk>`, or nothing although it is a letter or a digit."""
        text = character.lower() if self.lower_case else character
        return self.unk_id in self._processor.encode(text, out_type=int) or super().loses(character)

    def _decode(self, ids: list[int]) -> str:
        text = self._processor.decode(ids)
        text = text.upper() if self.lower_case else text
        return " ".join(text.replace(" \N{DOUBLE QUESTION MARK} ", UNKNOWN_SURFACE).split())

    def init_args(self) -> dict[str, Any]:
        """Return the whole model as text."""
        content = base64.b64encode(self._content).decode("ascii")
        flags = {"lower_case": self.lower_case, "blank_is_unknown": self.blank_is_unknown}
        return {"model_base64": content, **{name: True for name, value in flags.items() if value}}


def train_sentencepiece(
    texts: Iterable[str], vocabulary_size: int, prefix: str | Path, model_type: str = "unigram"
) -> Path:
    """Train a SentencePiece model with `<blank>` 0, `<unk>` 1 and `<eos>` 2.

    The model normalizes nothing but white space: Unicode's tables would make it, and every checkpoint, 240 kB larger.

    Args:
        texts: Transcripts, normalized.
        vocabulary_size: V, the three tokens above among them.
        prefix: Where to write `{prefix}.model` and `{prefix}.vocab`.
        model_type: `unigram` or `bpe`.

    Returns:
        The path of the model.

    Raises:
        InputError: The texts are too few for so large a vocabulary, or have too many characters for so small a one.
    """
    lines = [text for text in texts if text.strip()]
    if not lines:
        raise InputError("a SentencePiece model needs texts to be trained on, got none, or only empty ones")
    content = io.BytesIO()  # since the trainer writes a file in place, and its path into the model
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=content,
            vocab_size=vocabulary_size,
            model_type=model_type,
            character_coverage=1.0,
            normalization_rule_name="identity",
            pad_id=0,
            pad_piece=BLANK,
            unk_id=1,
            unk_piece=UNKNOWN,
            eos_id=2,
            eos_piece=END,
            bos_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).rpartition("] ")[2]  # after the position in the C++ source
        raise InputError(
            f"cannot train a SentencePiece model of {vocabulary_size} tokens on {len(lines)} texts: {reason}"
        ) from error
    model = sentencepiece.SentencePieceProcessor(model_proto=content.getvalue())
    rows = (f"{model.id_to_piece(index)}\t{model.get_score(index):g}\n" for index in range(model.get_piece_size()))
    write_atomically(Path(f"{prefix}.vocab"), "".join(rows))
    with replacing(path := Path(f"{prefix}.model")) as unfinished:
        unfinished.write_bytes(content.getvalue())
    return path


def lost_characters(tokenizer: Tokenizer, characters: Mapping[str, int]) -> Counter[str]:
    """Return the counts of the characters that a vocabulary cannot write.

    Args:
        tokenizer: The vocabulary.
        characters: How often each character comes in the text, in Unicode's composed form (NFC).
    """
    return Counter(
        {
            character: count
            for character, count in characters.items()
            if not character.isspace() and tokenizer.loses(character)
        }
    )


def check_coverage(tokenizer: Tokenizer, characters: Mapping[str, int], name: str) -> str:
    """Return a message with the share of a text that a vocabulary cannot write; empty if it can write all.

    Args:
        tokenizer: The vocabulary.
        characters: As `lost_characters` takes them.
        name: Of the text, for the message.

    Raises:
        InputError: The share is that of a text of another script, or of the other case.
    """
    total = sum(count for character, count in characters.items() if not character.isspace())
    lost = lost_characters(tokenizer, characters)
    if not lost:
        return ""
    share = lost.total() / total
    commonest = ", ".join(f"{printable(character)} {count:,} times" for character, count in lost.most_common(NAMED))
    rest = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
    summary = (
        f"{name}: {share:.3%} of {total:,} characters cannot be written by the {type(tokenizer).__name__} and are "
        f"<unk> to it, or nothing: {commonest}{rest}"
    )
    if share > MOST_LOST:
        raise InputError(
            f"{summary}. Expected a vocabulary for this text, which loses at most {MOST_LOST:.0%} of it. Choose a "
            "tokenizer of its language and of its case, make units from it with `asr units`, "
            "or normalize the transcripts"
        )
    return f"{summary}. Words with them count as errors."
