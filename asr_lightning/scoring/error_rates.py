"""Word, character and sentence error rates of a whole corpus."""

import jiwer
import torch
from torch import Tensor
from torchmetrics import Metric

UNITS = ("word", "character")
ERRORS = ("substitutions", "deletions", "insertions")


class ErrorRates(Metric):
    """Errors and reference lengths summed over a corpus, and over ranks; rates only at the end.

    Texts are compared as they are, apart from white space, which is squeezed: normalise them first. The errors of a
    sentence are those of a shortest edit (jiwer); characters include the spaces between words. An empty reference is
    a reference of no words: each word of its hypothesis is an insertion.

    Attributes:
        word_substitutions, word_deletions, word_insertions, word_total: int64 counts, as all that follow; the total
            is that of the references.
        character_substitutions, character_deletions, character_insertions, character_total: The same for characters.
        wrong_sentences, sentence_total: Sentences with an error, and all.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    word_total: Tensor
    character_total: Tensor
    wrong_sentences: Tensor
    sentence_total: Tensor

    def __init__(self) -> None:
        super().__init__()
        names = [f"{unit}_{count}" for unit in UNITS for count in (*ERRORS, "total")]
        for name in (*names, "wrong_sentences", "sentence_total"):
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
        self.wrong_sentences += sum(one != other for one, other in zip(references, hypotheses, strict=True))
        self.sentence_total += len(references)

    def _count(self, unit: str, result: jiwer.WordOutput | jiwer.CharacterOutput) -> None:
        for error in ERRORS:
            setattr(self, f"{unit}_{error}", getattr(self, f"{unit}_{error}") + getattr(result, error))
        total = result.hits + result.substitutions + result.deletions
        setattr(self, f"{unit}_total", getattr(self, f"{unit}_total") + total)

    def compute(self) -> dict[str, Tensor]:
        """Return the rates so far, as fractions: 0.1 is 10 %; more than 1 is possible.

        Returns:
            `wer`, `cer` and `ser`: float32 scalars. Where the references hold nothing at all, a rate is 0 without
            errors and infinite with some; never NaN.
        """
        word_errors, character_errors = (sum(getattr(self, f"{unit}_{error}") for error in ERRORS) for unit in UNITS)
        return {
            "wer": _rate(word_errors, self.word_total),
            "cer": _rate(character_errors, self.character_total),
            "ser": _rate(self.wrong_sentences, self.sentence_total),
        }


def _rate(errors: Tensor, total: Tensor) -> Tensor:
    return torch.where(errors > 0, errors / total, 0.0)  # errors / 0 is inf
