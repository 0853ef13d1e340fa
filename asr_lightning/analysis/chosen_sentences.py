"""Sentences that figures show, chosen by name or by text; a long one replaces a missing one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Row = Mapping[str, str]  # a line of `utterances.csv`


@dataclass(frozen=True)
class ChosenSentence:
    """A sentence to draw.

    Attributes:
        utterance: Name.
        speaker: Name.
        text: The transcript, or the hypothesis if there is no transcript.
        note: Why it replaces another sentence; empty if it was asked for.
    """

    utterance: str
    speaker: str
    text: str
    note: str = ""

    @property
    def caption(self) -> str:
        """The text, and the note in brackets."""
        return f"{self.text} ({self.note})" if self.note else self.text


def find_sentences(sentences: Sequence[str], utterances: Mapping[str, Row]) -> dict[str, str | None]:
    """Find utterances by their names or by their texts, of which only letters and digits count.

    Args:
        sentences: Names or texts.
        utterances: Lines with `reference` and `hypothesis`, by name.

    Returns:
        The utterance for each wanted sentence, the first by name; None if there is no such utterance.
    """
    by_text: dict[str, str] = {}
    for name in sorted(utterances):
        by_text.setdefault(letters(text_of(utterances[name])), name)
    return {sentence: sentence if sentence in utterances else by_text.get(letters(sentence)) for sentence in sentences}


def letters(text: str) -> str:
    """Return the letters and digits of a text, in capitals."""
    return "".join(filter(str.isalnum, text.upper()))


def text_of(row: Row) -> str:
    """Return the transcript, or the hypothesis if there is no transcript."""
    return row["reference"] or row["hypothesis"]


def choose_sentences(
    sentences: Sequence[str], utterances: Mapping[str, Row], sizes: Mapping[str, int], speaker: str
) -> list[ChosenSentence]:
    """Choose the wanted sentences; a missing one is replaced by the longest other sentence of a speaker.

    Args:
        sentences: Names or texts, as `find_sentences` takes them.
        utterances: Lines of `utterances.csv`, by name.
        sizes: Frames of the utterances that can be drawn, by name.
        speaker: Whose longest sentences replace missing ones.
    """
    rows = {name: utterances[name] for name in sizes}
    names = find_sentences(sentences, rows)
    chosen_names = {name for name in names.values() if name}
    longest = sorted(
        (name for name, row in rows.items() if row["speaker"] == speaker and name not in chosen_names),
        key=lambda name: (-sizes[name], name),
    )
    chosen = []
    for sentence, match in names.items():
        note = (
            ""
            if match
            else f"the longest sentence of speaker {speaker}: there is no {sentence!r} with phones in these data"
        )
        name = match or (longest.pop(0) if longest else None)
        if name:
            chosen.append(ChosenSentence(name, rows[name]["speaker"], text_of(rows[name]), note))
    return chosen
