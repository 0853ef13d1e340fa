"""Normalization of KsponSpeech transcripts and of Korean text.

The corpus [Bang et al. 2020, "KsponSpeech: Korean spontaneous speech corpus for automatic speech recognition"] writes
more than words:

| mark                         | meaning                                       | what is left                    |
|------------------------------|-----------------------------------------------|---------------------------------|
| `b/ l/ n/ u/ o/`             | breath, laugh, noise, unintelligible, overlap | nothing                         |
| `word/`, `word+`, `word*`    | filler, repetition or slip, unclear           | the word                        |
| `(spelling)/(pronunciation)` | one text as written and as spoken             | one side, its own marks read    |
| bare `%`, `#`                | signs that were spoken                        | as spoken: 퍼센트, 샵           |

What stays text: `/ + * - & '` between two digits or Latin letters (3/1, K-POP, 7*7), and `. : ~` between two digits
(3.5). The comma of grouped digits goes (1,000 → 1000). A noise mark has no Latin letter or digit before
its lower-case letter (club/ is a word) or after its slash (n/a is text). Latin letters become capitals; digits stay,
because the spelling does not tell how they were read. Every other mark becomes a space.

Brackets that do not pair are repaired where exactly one of the rules in `REPAIRS` makes them pair. What is left then is
an `AnnotationError`, never a guess.
"""

import re
import unicodedata
from typing import Literal

Side = Literal["spelling", "pronunciation"]

PERCENT, SHARP = "퍼센트", "샵"
REPAIRS = (  # of faults in lines of the corpus: name, pattern, replacement
    ("doubled opening bracket", re.compile(r"\(\(([^()]*)\)"), r"(\1)"),  # (5%)/((오 퍼센트) → (5%)/(오 퍼센트)
    ("doubled closing bracket", re.compile(r"\(([^()]*)\)\)"), r"(\1)"),  # (5%))/(오 퍼센트) → (5%)/(오 퍼센트)
    ("first side not closed", re.compile(r"\(([^()/]+)/\("), r"(\1)/("),  # (5%/(오 퍼센트) → (5%)/(오 퍼센트)
    ("first bracket turned round", re.compile(r"(^|\s)\)([^()]+)\)(?=\s*/)"), r"\1(\2)"),  # )5%)/(오 퍼센트)
    ("second side not opened", re.compile(r"\)/([^()/]+)\)"), r")/(\1)"),  # (5%)/오 퍼센트) → (5%)/(오 퍼센트)
    ("last bracket turned round", re.compile(r"\)/\(([^()]+)\("), r")/(\1)"),  # (5%)/(오 퍼센트( → (5%)/(오 퍼센트)
)

_ASCII = {0xFEE0 + code: code for code in range(0x21, 0x7F)}  # full-width forms
_ASCII |= dict.fromkeys(map(ord, "\N{RIGHT SINGLE QUOTATION MARK}\N{LEFT SINGLE QUOTATION MARK}"), ord("'"))
_EITHER = re.compile(r"[()]")
_PARTNER = re.compile(r"\s*/\s*\(|\(")  # what stands between the two sides; the slash may be missing
_NOISE = re.compile(r"(?<![A-Za-z0-9])(?:[blnuo]/)+(?![A-Za-z0-9])")
_KEPT = re.compile(r"(?<=[A-Za-z0-9])[/+*&'-](?=[A-Za-z0-9])|(?<=\d)[.:~](?=\d)")
_GROUPS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


class AnnotationError(ValueError):
    """A line that the annotation's grammar does not allow."""


def normalize_korean(line: str, side: Side = "pronunciation", percent: str = PERCENT) -> str:
    """Normalize an annotated line for training and scoring by the policy above.

    Args:
        line: As the corpus has it; a text without marks comes out as it is, apart from punctuation and spaces.
        side: Of dual transcriptions.
        percent: How a `%` outside of them was read, where `side` is the pronunciation; some known files say 프로.

    Returns:
        Words with single spaces between them; doing it twice changes nothing. Empty if only noise was annotated.

    Raises:
        AnnotationError: Brackets do not pair, and no single rule can repair them; or one side is empty.
    """
    text = unicodedata.normalize("NFC", line).translate(_ASCII)
    text = _remove_marks(_repair_and_resolve(text, side))
    if side == "pronunciation":
        text = text.replace("%", percent).replace("#", SHARP)
    text = _GROUPS.sub("", text).upper()
    kept_positions = {match.start() for match in _KEPT.finditer(text)}
    return " ".join("".join(c if n in kept_positions or _is_text(c) else " " for n, c in enumerate(text)).split())


def _is_text(character: str) -> bool:
    return character in "%#" or unicodedata.category(character)[0] in "LN"


def _repair_and_resolve(text: str, side: Side) -> str:
    """Resolve the dual transcriptions of a line, repaired if need be."""
    try:
        return _resolve(text, side)
    except AnnotationError as error:
        results = set()
        for _, pattern, replacement in REPAIRS:
            if (repaired := pattern.sub(replacement, text)) != text:
                try:
                    results.add(_resolve(repaired, side))
                except AnnotationError:
                    continue
        if len(results) != 1:
            raise AnnotationError(f"{error}, in {text!r}") from None
        return results.pop()


def _resolve(text: str, side: Side) -> str:
    """Replace each dual transcription by one side, from the outside in."""
    parts, position = [], 0
    while (start := _EITHER.search(text, position)) is not None:
        parts.append(text[position : start.start()])
        if start[0] == ")":
            raise AnnotationError("a closing bracket without an opening one")
        first, position = _read_bracket(text, start.start())
        if (partner := _PARTNER.match(text, position)) is not None:
            second, position = _read_bracket(text, partner.end() - 1)
            chosen, other = (first, second) if side == "spelling" else (second, first)
            if not (chosen.strip() and other.strip()):
                raise AnnotationError("a dual transcription with an empty side")
            parts.append(_remove_marks(_resolve(chosen, side)))
        elif "(" in first:  # brackets around a dual transcription
            parts.append(_resolve(first, side))
        else:
            raise AnnotationError("brackets without a second side")
    return "".join([*parts, text[position:]])


def _read_bracket(text: str, start: int) -> tuple[str, int]:
    """Return the content of the bracket that opens at `start`, and the position after it."""
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] == "(") - (text[position] == ")")
        if depth == 0:
            return text[start + 1 : position], position + 1
    raise AnnotationError("an opening bracket without a closing one")


def _remove_marks(text: str) -> str:
    """Drop noise, and the marks of fillers, repetitions and unclear words; a mark between two words becomes a space."""
    text = _NOISE.sub(" ", text)
    kept_positions = {match.start() for match in _KEPT.finditer(text)}
    marks = [n for n, c in enumerate(text) if c in "/+*" and n not in kept_positions]
    characters = list(text)
    for n in marks:
        between_words = text[n + 1 : n + 2].strip() and text[n + 1] not in "/+*.,?!"
        characters[n] = " " if between_words else ""
    return "".join(characters)
