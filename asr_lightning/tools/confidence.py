"""Calibrates the confidence of words on a development set: how often are words of a confidence right?

Example: python -m asr_lightning.tools.confidence --checkpoint runs/rnnt/checkpoints/last.ckpt \
    --config experiments/rnnt_ws.yaml --subsets dev-clean --output runs/rnnt/confidence
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from asr_lightning.analysis.calibration import (
    Calibration,
    fit_isotonic,
    fit_temperature,
    normalized_cross_entropy,
    reliability,
)
from asr_lightning.batch import Batch
from asr_lightning.decoding.words import POOLINGS, Pooling
from asr_lightning.errors import InputError
from asr_lightning.files import write_atomically
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.report.calibration_figure import plot_reliability
from asr_lightning.report.tables import as_text
from asr_lightning.scoring.word_alignment import correct_words
from asr_lightning.tools.arguments import whole_number
from asr_lightning.tools.subsets import development_subsets, open_corpus
from asr_lightning.tools.transcribe import prepare

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
            known = [word.confidence for word in best.words if word.confidence is not None]
            if len(known) < len(best.text.split()):
                raise InputError(
                    f"expected words with a confidence, found none: a {type(recognizer).__name__} with a "
                    f"{type(getattr(recognizer, 'search', None)).__name__} gives none to some words"
                )
            confidences += known
            correct += correct_words(recognizer.tokenizer.fold(text), best.text)
            utterances += [count] * len(known)
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
        mine = utterances % FOLDS == fold
        if mine.any() and not mine.all():
            calibrated[mine] = fit(confidences[~mine], correct[~mine])(confidences[mine])
    return calibrated


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m asr_lightning.tools.confidence",
        description="Calibrate the confidence of words on a development set, for `tools.transcribe --calibration`: "
        "writes calibration.json and reliability.png.",
        epilog="The figures behind calibration are of words that were calibrated by the other half of the utterances.",
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="that `lightning fit` has saved")
    parser.add_argument("--config", type=Path, required=True, metavar="YAML", help="an experiment with its data")
    parser.add_argument(
        "--subsets", nargs="+", metavar="NAME", help="development sets (default: those the experiment validates on)"
    )
    parser.add_argument("--method", choices=tuple(METHODS), default="isotonic", help="(default: isotonic)")
    parser.add_argument(
        "--confidence", choices=tuple(POOLINGS), default="product",
        help="of a word, from the probabilities of its tokens (default: product); the same for `transcribe`",
    )  # fmt: skip
    parser.add_argument("--beam", type=whole_number(1), metavar="N", help="hypotheses kept in decoding")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where the files go")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    options = parser.parse_args(arguments)
    try:
        subsets = development_subsets(options.config, options.subsets)
        recognizer = prepare(options.checkpoint, options.device, options.beam, options.config)
        corpus = open_corpus(options.config, subsets)
        bar = tqdm((one for part in corpus.values() for one in part), unit="batch", disable=not sys.stderr.isatty())
        confidences, correct, utterances = collect(recognizer, bar, options.confidence)
        if correct.all() or not correct.any():
            raise InputError(
                f"expected right and wrong words to calibrate by, found {len(correct)} words of which "
                f"{correct.mean():.0%} are right: use a larger development set"
            )
        fit = METHODS[options.method]
        lines = {
            "before": confidences,
            f"{options.method}, cross-validated": cross_validated(fit, confidences, correct, utterances),
        }
        calibration = fit(confidences, correct)
        write_atomically(options.output / "calibration.json", json.dumps(calibration.as_json()) + "\n")
        plot_reliability(
            {name: reliability(values, correct) for name, values in lines.items()}, options.output / "reliability.png"
        )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = [["confidence", "NCE", "ECE"]]
    for name, values in lines.items():
        expected_error = reliability(values, correct).expected_error
        rows.append([name, f"{normalized_cross_entropy(values, correct):.3f}", f"{expected_error:.3f}"])
    print(as_text(rows))
    print(f"\n{len(correct)} words of {', '.join(subsets)}, {correct.mean():.1%} of them right")
    print(f"Written to {options.output.absolute()}: calibration.json, reliability.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
