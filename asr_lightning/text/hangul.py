"""Hangul: syllables and the letters (jamo) that they are composed of, and tokenizers of either."""

import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from asr_lightning.errors import InputError
from asr_lightning.files import regular, write_atomically
from asr_lightning.text.tokenizers import BLANK, END, UNKNOWN, UNKNOWN_SURFACE, Tokenizer

SPACE = "_"
FULL_SIZE = 2_001  # tokens of the published recognizers of KsponSpeech [KoSpeech report]
JAMO = (  # initial, medial and final letters of a syllable, as Unicode's canonical decomposition has them
    *map(chr, range(0x1100, 0x1113)),
    *map(chr, range(0x1161, 0x1176)),
    *map(chr, range(0x11A8, 0x11C3)),
)
OTHERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ%#./-+*&':~"  # all else that `asr_lightning.text.korean` leaves


def _compatibility_letters() -> dict[str, str]:
    """Return letters outside of syllables (ㅋ) by those within them; an initial and a final one may share theirs."""
    letters: dict[str, str] = {}
    for jamo in JAMO:
        kind, name = unicodedata.name(jamo).removeprefix("HANGUL ").split(" ", 1)
        letter = unicodedata.lookup(f"HANGUL LETTER {name}")
        assert kind in ("CHOSEONG", "JUNGSEONG", "JONGSEONG")
        letters[jamo] = letter
    return letters


_ALONE = _compatibility_letters()
_WITHIN = {letter: jamo for jamo, letter in reversed(_ALONE.items())}  # the initial one where there are two
INITIALS, MEDIALS = (tuple(_ALONE[jamo] for jamo in part) for part in (JAMO[:19], JAMO[19:40]))
FINALS = ("", *(_ALONE[jamo] for jamo in JAMO[40:]))


def decompose(syllable: str) -> tuple[str, str, str]:
    """Return a syllable's initial, medial and final letter as they stand alone; the final is "" where there is none."""
    initial, medial, *final = (_ALONE[jamo] for jamo in unicodedata.normalize("NFD", syllable))
    return initial, medial, "".join(final)


def compose(initial: str, medial: str, final: str = "") -> str:
    """Return the syllable of some letters; undoes `decompose`."""
    jamo = JAMO[INITIALS.index(initial)] + JAMO[19 + MEDIALS.index(medial)]
    if final:
        jamo += JAMO[39 + FINALS.index(final)]
    return unicodedata.normalize("NFC", jamo)


class JamoTokenizer(Tokenizer):
    """The 67 jamo, digits, Latin capitals, `_` for a space, and the signs that `asr_lightning.text.korean` keeps.

    A syllable is its initial, its medial and, if it has one, its final letter, so any syllable can be written. A letter
    that stands alone (ㅋㅋ) is the jamo of that name; beside a vowel that stands alone it would be read as a syllable.
    Any other character is `<unk>`.
    """

    def __init__(self) -> None:
        self.tokens = (BLANK, UNKNOWN, END, SPACE, *JAMO, *OTHERS)
        self.blank_id, self.unk_id, self.eos_id = range(3)
        self._ids = {token: number for number, token in enumerate(self.tokens)}

    def encode(self, text: str) -> list[int]:
        """Turn text into token ids."""
        spaced = SPACE.join(unicodedata.normalize("NFC", text).upper().replace(SPACE, " ").split())
        letters = unicodedata.normalize("NFD", "".join(_WITHIN.get(character, character) for character in spaced))
        return [self._ids.get(letter, self.unk_id) for letter in letters]

    def _decode(self, ids: list[int]) -> str:
        letters = "".join(UNKNOWN_SURFACE if number == self.unk_id else self.tokens[number] for number in ids)
        composed = unicodedata.normalize("NFC", letters)
        return " ".join("".join(_ALONE.get(character, character) for character in composed).replace(SPACE, " ").split())

    def init_args(self) -> dict[str, Any]:
        """Return no arguments: there are none."""
        return {}


class SyllableTokenizer(Tokenizer):
    """`<blank>`, `<unk>`, `<eos>`, `_` for a space, and the syllables and other characters of a list.

    Args:
        characters: Path of a list as `write_characters` makes it: a line for each character, which begins with it.
        characters_in_order: The characters themselves, as checkpoints carry them.

    Raises:
        InputError: Not exactly one of the two is given, or the list cannot be read or has a character twice.
    """

    def __init__(self, characters: str | None = None, characters_in_order: str | None = None) -> None:
        if (characters is None) == (characters_in_order is None):
            raise InputError("SyllableTokenizer needs characters (a path) or characters_in_order, exactly one of them")
        alphabet = _read_characters(Path(characters)) if characters is not None else str(characters_in_order)
        repeated = [character for character, count in Counter(alphabet).items() if count > 1]
        if repeated or not alphabet:
            raise InputError(f"the list of characters {characters or ''} is empty, or has some twice: {repeated[:10]}")
        self.tokens = (BLANK, UNKNOWN, END, SPACE, *alphabet)
        self.blank_id, self.unk_id, self.eos_id = range(3)
        self._ids = {token: number for number, token in enumerate(self.tokens)}

    def encode(self, text: str) -> list[int]:
        """Turn text into token ids; what is not in the list is `<unk>`."""
        spaced = SPACE.join(unicodedata.normalize("NFC", text).replace(SPACE, " ").split())
        return [self._ids.get(character, self.unk_id) for character in spaced]

    def _decode(self, ids: list[int]) -> str:
        characters = [UNKNOWN_SURFACE if number == self.unk_id else self.tokens[number] for number in ids]
        return " ".join("".join(characters).replace(SPACE, " ").split())

    def init_args(self) -> dict[str, Any]:
        """Return the characters."""
        return {"characters_in_order": "".join(self.tokens[4:])}


def write_characters(texts: Iterable[str], path: Path, tokens: int = FULL_SIZE, min_count: int = 1) -> int:
    """Write the most frequent characters of some texts, each with its count, as `SyllableTokenizer` reads them.

    Args:
        texts: Transcripts, normalized.
        path: Of the list; its folder is made.
        tokens: V of the tokenizer, its four other tokens among them; the list may have fewer.
        min_count: Characters that come less often are left out.

    Returns:
        The number of characters.

    Raises:
        InputError: There is no text, or no room for a character.
    """
    counts = Counter(character for text in texts for character in unicodedata.normalize("NFC", text))
    rows = [
        (letter, count)
        for letter, count in counts.items()
        if count >= min_count and not letter.isspace() and letter != SPACE
    ]
    rows = sorted(rows, key=lambda pair: (-pair[1], pair[0]))[: max(0, tokens - 4)]
    if not rows:
        raise InputError(
            f"expected texts with characters that occur at least {min_count} times, to list {tokens - 4}; found none"
        )
    write_atomically(path, "".join(f"{character}\t{count}\n" for character, count in rows))
    return len(rows)


def _read_characters(path: Path) -> str:
    try:
        lines = regular(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read the list of characters {path} ({error}): make one, or correct the path"
        ) from error
    wrong = [f"line {n}: {line[:20]!r}" for n, line in enumerate(lines, start=1) if len(line.split("\t")[0]) != 1]
    if wrong:
        raise InputError(f"{path}: expected one character a line, with a tab and its count behind it, got {wrong[0]}")
    return "".join(line[0] for line in lines)
