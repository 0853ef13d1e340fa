"""Word edits between a reference and a hypothesis."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import jiwer

LINE_WIDTH = 110  # columns of a terminal


@dataclass(frozen=True)
class WordEdits:
    """A shortest edit from a reference of N words to a hypothesis.

    Attributes:
        reference: The N words.
        recognized: The word recognized for each of them; None for a deletion.
        insertions: N + 1 groups of words, maybe empty: those before each word of the reference, and after its last.
    """

    reference: tuple[str, ...]
    recognized: tuple[str | None, ...]
    insertions: tuple[tuple[str, ...], ...]

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions."""
        wrong = sum(word != other for word, other in zip(self.reference, self.recognized, strict=True))
        return wrong + sum(map(len, self.insertions))


def find_word_edits(reference: str, hypothesis: str) -> WordEdits:
    """Align two texts with the fewest word errors; of several such alignments it is jiwer's.

    Args:
        reference: Transcript. Words are separated by white space and compared as they are.
        hypothesis: Recognized text.
    """
    reference_words, hypothesis_words = tuple(reference.split()), tuple(hypothesis.split())
    insertions: list[tuple[str, ...]] = [()] * (len(reference_words) + 1)
    if reference_words == hypothesis_words:
        return WordEdits(reference_words, hypothesis_words, tuple(insertions))
    recognized: list[str | None] = [None] * len(reference_words)
    for part in jiwer.process_words(" ".join(reference_words), " ".join(hypothesis_words)).alignments[0]:
        words = hypothesis_words[part.hyp_start_idx : part.hyp_end_idx]
        if part.type == "insert":
            insertions[part.ref_start_idx] += words
        elif part.type != "delete":
            recognized[part.ref_start_idx : part.ref_end_idx] = words
    return WordEdits(reference_words, tuple(recognized), tuple(insertions))


def correct_words(reference: str, hypothesis: str) -> list[bool]:
    """Return for each word of a hypothesis whether it is right, by the alignment with the reference."""
    alignment = find_word_edits(reference, hypothesis)
    marks = [False] * len(alignment.insertions[0])
    for word, recognized, inserted in zip(
        alignment.reference, alignment.recognized, alignment.insertions[1:], strict=True
    ):  # fmt: skip
        marks += [] if recognized is None else [recognized == word]
        marks += [False] * len(inserted)
    return marks


def display_width(text: str) -> int:
    """Return how many columns a text takes in a fixed-width font: Hangul syllables and the like take two."""
    # the vowels and finals of conjoining jamo are drawn into the syllable that they follow, accents into their letter
    spacing_signs = [sign for sign in text if not (unicodedata.combining(sign) or "\u1160" <= sign <= "\u11ff")]
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in spacing_signs)


def format_word_edits(rows: Sequence[tuple[str, WordEdits]], line_width: int = LINE_WIDTH) -> str:
    """Format a reference and the hypotheses of several recognizers below each other, word below word, in fixed width.

    A wrong or inserted word stands between asterisks; asterisks alone are a missing word, as in NIST's sclite, but
    without its capitals, which other scripts do not have. If one recognizer inserts a word, the others have a blank.

    Args:
        rows: A label and an alignment for each recognizer, all of the same reference.
        line_width: Columns after which lines are broken; all rows at the same word.

    Raises:
        ValueError: The references differ, or there are no rows.
    """
    if len({alignment.reference for _, alignment in rows}) != 1:
        raise ValueError(f"expected alignments to one reference, got {[alignment.reference for _, alignment in rows]}")
    labels = ["REF", *(label for label, _ in rows)]
    label_width = max(map(display_width, labels)) + 1
    blocks: list[list[list[str]]] = [[_padded(labels, label_width)]]
    used = label_width
    for column in _columns([alignment for _, alignment in rows]):
        width = max(display_width(cell) for cell in column if cell is not None)
        if used + width + 1 > line_width and len(blocks[-1]) > 1:
            blocks.append([_padded(labels, label_width)])
            used = label_width
        blocks[-1].append(_padded(["*" * width if cell is None else cell for cell in column], width))
        used += width + 1
    return "\n\n".join("\n".join(" ".join(cells).rstrip() for cells in zip(*block, strict=True)) for block in blocks)


def _columns(alignments: Sequence[WordEdits]) -> list[list[str | None]]:
    """Return the cells of the reference and of each recognizer, where None is a missing word."""
    reference = alignments[0].reference
    columns: list[list[str | None]] = []
    for position in range(len(reference) + 1):
        inserted = [alignment.insertions[position] for alignment in alignments]
        for number in range(max(map(len, inserted))):
            columns.append([None, *(f"*{words[number]}*" if number < len(words) else "" for words in inserted)])
        if position < len(reference):
            word = reference[position]
            recognized = [alignment.recognized[position] for alignment in alignments]
            columns.append([word, *(other if other in (None, word) else f"*{other}*" for other in recognized)])
    return columns


def _padded(cells: Sequence[str], width: int) -> list[str]:
    return [cell + " " * (width - display_width(cell)) for cell in cells]
