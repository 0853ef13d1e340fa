"""Word, character and sentence error rates of a whole corpus."""

import jiwer
import torch
from torch import Tensor
from torchmetrics import Metric

UNITS = ("word", "character", "letter")
ERRORS = ("substitutions", "deletions", "insertions")


class ErrorRates(Metric):
    """Errors and reference lengths summed over a corpus, and over ranks; rates only at the end.

    Texts are compared as they are, apart from white space, which is squeezed: normalize them first. The errors of a
    sentence are those of a shortest edit (jiwer); characters include the spaces between words, letters do not. An empty
    reference is a reference of no words: each word of its hypothesis is an insertion.

    Attributes:
        word_substitutions, word_deletions, word_insertions, word_total: int64 counts, as all that follow; the total
            is that of the references.
        character_substitutions, character_deletions, character_insertions, character_total: The same for characters.
        letter_substitutions, letter_deletions, letter_insertions, letter_total: The same for characters without spaces.
        spaced_errors: Word errors with spaces where they help most, see `space_free_errors`.
        wrong_sentences, sentence_total: Sentences with an error, and all.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    word_total: Tensor
    character_total: Tensor
    wrong_sentences: Tensor
    sentence_total: Tensor
    letter_total: Tensor
    spaced_errors: Tensor

    def __init__(self) -> None:
        super().__init__()
        names = [f"{unit}_{count}" for unit in UNITS for count in (*ERRORS, "total")]
        for name in (*names, "spaced_errors", "wrong_sentences", "sentence_total"):
            self.add_state(name, torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, references: list[str], hypotheses: list[str]) -> None:
        """Count the errors of some sentences.

        Raises:
            ValueError: The two lists differ in length.
        """
        if len(references) != len(hypotheses):
            raise ValueError(f"got {len(references)} references, but {len(hypotheses)} hypotheses")
        if not references:
            return
        references = [" ".join(text.split()) for text in references]
        hypotheses = [" ".join(text.split()) for text in hypotheses]
        self._count("word", jiwer.process_words(references, hypotheses))
        self._count("character", jiwer.process_characters(references, hypotheses))
        letters = ([text.replace(" ", "") for text in texts] for texts in (references, hypotheses))
        self._count("letter", jiwer.process_characters(*letters))
        self.spaced_errors += sum(map(space_free_errors, references, hypotheses))
        self.wrong_sentences += sum(
            reference != hypothesis for reference, hypothesis in zip(references, hypotheses, strict=True)
        )
        self.sentence_total += len(references)

    def _count(self, unit: str, result: jiwer.WordOutput | jiwer.CharacterOutput) -> None:
        for error in ERRORS:
            setattr(self, f"{unit}_{error}", getattr(self, f"{unit}_{error}") + getattr(result, error))
        total = result.hits + result.substitutions + result.deletions
        setattr(self, f"{unit}_total", getattr(self, f"{unit}_total") + total)

    def compute(self) -> dict[str, Tensor]:
        """Return the rates so far, as fractions (0.1 is 10 %; more than 1 is possible), and what they are of.

        Returns:
            Float32 scalars: `wer`, `cer` and `ser` of words, characters and sentences; `swer`, the word error rate with
            spaces where they help most, and `unspaced_cer`, the character error rate without spaces, as Korean is
            scored, whose writers set spaces as they like. Where the references hold nothing at all, a rate is 0
            without errors and infinite with some. NaN where nothing was scored, not even an empty reference.
            Int64 scalars: `utterances`, and `words` of their references.
        """
        words, characters, letters = (sum(getattr(self, f"{unit}_{error}") for error in ERRORS) for unit in UNITS)
        rates = {
            "wer": _rate(words, self.word_total),
            "cer": _rate(characters, self.character_total),
            "ser": _rate(self.wrong_sentences, self.sentence_total),
            "swer": _rate(self.spaced_errors, self.word_total),
            "unspaced_cer": _rate(letters, self.letter_total),
        }
        scored = self.sentence_total > 0
        rates = {name: rate.where(scored, torch.nan) for name, rate in rates.items()}
        return {**rates, "utterances": self.sentence_total.clone(), "words": self.word_total.clone()}


def space_free_errors(reference: str, hypothesis: str) -> int:
    """Return the fewest word errors of a hypothesis over all ways to set spaces in it [Bang et al. 2020, sWER].

    Bang et al. set spaces by an alignment of characters, of which there may be several; the minimum is unique.
    """
    words, letters = reference.split(), hypothesis.replace(" ", "")
    if words == hypothesis.split():
        return 0
    fewest = [min(length, 1) for length in range(len(letters) + 1)]  # of no words and so many letters: one insertion
    for word in words:
        previous, fewest = fewest, []
        shorter = previous_shorter = len(words) + 1  # the fewest with any smaller number of letters
        for length, errors in enumerate(previous):
            best = min(errors + 1, previous_shorter + 1, shorter + 1)  # deletion, substitution, insertion
            if letters.startswith(word, length - len(word)) and length >= len(word):
                best = min(best, previous[length - len(word)])
            fewest.append(best)
            shorter, previous_shorter = min(shorter, best), min(previous_shorter, errors)
    return fewest[-1]


def _rate(errors: Tensor, total: Tensor) -> Tensor:
    return torch.where(errors > 0, errors / total, 0.0)  # errors / 0 is inf
