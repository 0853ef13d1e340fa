"""Confidence of the words of a development set: collected, calibrated and drawn."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from asr_lightning.analysis.calibration import (
    Calibration,
    fit_isotonic,
    fit_temperature,
    normalized_cross_entropy,
    reliability,
)
from asr_lightning.batch import Batch
from asr_lightning.decoding.words import Pooling
from asr_lightning.errors import InputError
from asr_lightning.files import write_atomically
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.report.calibration_figure import plot_reliability
from asr_lightning.scoring.word_edits import correct_words

METHODS: dict[str, Callable[[np.ndarray, np.ndarray], Calibration]] = {
    "temperature": fit_temperature,
    "isotonic": fit_isotonic,
}
FOLDS = 2


def collect(
    recognizer: Recognizer, batches: Iterable[Batch], pooling: Pooling
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Recognize utterances.

    Returns:
        Of the N recognized words: confidences, whether they are right, and the number of their utterance; each (N,).

    Raises:
        InputError: The recognizer gives no confidence, or no word was recognized.
    """
    confidences: list[float] = []
    correct: list[bool] = []
    utterances: list[int] = []
    count = 0
    for batch in batches:
        if not len(batch):
            continue
        recognized = recognizer.recognize_words(batch.to(recognizer.device), pooling)
        for text, (best, *_) in zip(batch.texts, recognized, strict=True):
            values = [word.confidence for word in best.words if word.confidence is not None]
            if len(values) < len(best.text.split()):
                raise InputError(
                    f"expected words with a confidence, found none: a {type(recognizer).__name__} with a "
                    f"{type(getattr(recognizer, 'search', None)).__name__} gives none to some words"
                )
            confidences += values
            correct += correct_words(recognizer.tokenizer.fold(text), best.text)
            utterances += [count] * len(values)
            count += 1
    if not confidences:
        raise InputError(f"expected recognized words, found none in {count} utterances: train the recognizer longer")
    return np.array(confidences), np.array(correct), np.array(utterances)


def cross_validated(
    fit: Callable[[np.ndarray, np.ndarray], Calibration],
    confidences: np.ndarray,
    correct: np.ndarray,
    utterances: np.ndarray,
) -> np.ndarray:
    """Return the confidences (N,) of words calibrated by the other half of the utterances."""
    calibrated = np.array(confidences)
    for fold in range(FOLDS):
        held_out = utterances % FOLDS == fold
        if held_out.any() and not held_out.all():
            calibrated[held_out] = fit(confidences[~held_out], correct[~held_out])(confidences[held_out])
    return calibrated


def calibrate(words: tuple[np.ndarray, np.ndarray, np.ndarray], method: str, output: Path) -> list[list[str]]:
    """Write `calibration.json` and `reliability.png`, and return a table of NCE and ECE before and after calibration.

    Args:
        words: As of `collect`.
        method: Of `METHODS`.
        output: Folder of the files.

    Raises:
        InputError: There are only right or only wrong words.
    """
    confidences, correct, utterances = words
    if correct.all() or not correct.any():
        raise InputError(
            f"expected right and wrong words to calibrate by, found {len(correct)} words of which "
            f"{correct.mean():.0%} are right: use a larger development set"
        )
    fit = METHODS[method]
    lines = {
        "before": confidences,
        f"{method}, cross-validated": cross_validated(fit, confidences, correct, utterances),
    }
    write_atomically(output / "calibration.json", json.dumps(fit(confidences, correct).as_json()) + "\n")
    curves = {name: reliability(values, correct) for name, values in lines.items()}
    plot_reliability(curves, output / "reliability.png")
    return [
        ["confidence", "NCE", "ECE"],
        *(
            [name, f"{normalized_cross_entropy(values, correct):.3f}", f"{curves[name].expected_error:.3f}"]
            for name, values in lines.items()
        ),
    ]
