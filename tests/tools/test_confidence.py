import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from asr_lightning.analysis.calibration import fit_isotonic, read_calibration
from asr_lightning.asr import main
from asr_lightning.batch import Batch, Utterance
from asr_lightning.decoding.hypothesis import Hypothesis
from asr_lightning.errors import InputError
from asr_lightning.text.timed_words import Word
from asr_lightning.text.tokenizers import CharacterTokenizer
from asr_lightning.tools import prepared_recognizer, subsets, word_confidence


def batch_of(*texts: str) -> Batch:
    return Batch.collate([Utterance(text, torch.zeros(10), 16_000, text) for text in texts], 16_000)


def recognizing(answers: dict[str, list[tuple[str, float | None]]]) -> Any:
    """A recognizer that gives these words and confidences for each transcript."""

    def recognize_words(batch: Batch, pooling: str) -> list[list[Hypothesis]]:
        assert pooling == "min"
        return [
            [
                Hypothesis(
                    (), 0.0, text=" ".join(word for word, _ in answers[id]),
                    words=tuple(Word(word, 0.0, 0.0, value) for word, value in answers[id]),
                )
            ]
            for id in batch.ids
        ]  # fmt: skip

    return SimpleNamespace(device="cpu", tokenizer=CharacterTokenizer(), recognize_words=recognize_words)


def test_words_are_collected_with_their_confidence_and_whether_they_are_right() -> None:
    recognizer = recognizing({"A B C": [("A", 0.9), ("X", 0.2), ("C", 0.8), ("D", 0.1)], "É": [("E", 0.5)], "Q": []})
    collected = word_confidence.collect(recognizer, [batch_of("A B C", "É"), batch_of(), batch_of("Q")], "min")
    assert [part.tolist() for part in collected] == [
        [0.9, 0.2, 0.8, 0.1, 0.5],
        [True, False, True, False, True],
        [0, 0, 0, 0, 1],
    ]
    with pytest.raises(InputError, match="expected recognized words, found none in 1 utterances"):
        word_confidence.collect(recognizer, [batch_of("Q")], "min")
    with pytest.raises(InputError, match="expected words with a confidence"):
        word_confidence.collect(recognizing({"A": [("A", None)]}), [batch_of("A")], "min")


def test_a_word_is_calibrated_by_other_utterances() -> None:
    utterances = np.repeat(np.arange(4), 2)
    confidences = np.array([0.1, 0.9] * 4)
    correct = np.array([True, True, False, False] * 2)  # even utterances are right, odd ones wrong
    calibrated = word_confidence.cross_validated(fit_isotonic, confidences, correct, utterances)
    assert calibrated[utterances % 2 == 0] == pytest.approx(1 / 8)
    assert calibrated[utterances % 2 == 1] == pytest.approx(7 / 8)


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    data = {
        "class_path": "data_modules.librispeech.LibriSpeechDataModule",
        "init_args": {
            "root": str(tmp_path), "train_subsets": ["train"], "validation_subsets": ["dev"],
            "test_subsets": ["test-clean"],
        },
    }  # fmt: skip
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump({"data": data}))
    (tmp_path / "last.ckpt").touch()
    return [
        *("--checkpoint", str(tmp_path / "last.ckpt"), "--config", str(tmp_path / "experiment.yaml")),
        *("--output", str(tmp_path / "out")),
    ]  # fmt: skip


@pytest.mark.parametrize("method", word_confidence.METHODS)
def test_planted_confidences_are_calibrated_and_drawn(
    method: str,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    generator = np.random.default_rng(1)
    truth = generator.beta(3, 1, 4_000)
    planted = 1 / (1 + ((1 - truth) / truth) ** 3), generator.random(4_000) < truth, np.arange(4_000) // 8
    read: list[list[str]] = []
    monkeypatch.setattr(prepared_recognizer, "prepare_recognizer", lambda *_: None)
    monkeypatch.setattr(subsets, "open_corpus", lambda config, names: read.append(names) or {})
    monkeypatch.setattr(word_confidence, "collect", lambda *_: planted)
    assert main(["confidence", *arguments, "--method", method]) == 0
    printed = capsys.readouterr().out
    lines = map(str.strip, printed.splitlines())
    rows = {line.split()[0]: line.split() for line in lines if line.startswith(("before", method))}
    assert float(rows["before"][-1]) > 0.08 and float(rows[f"{method},"][-1]) < 0.03
    assert float(rows[f"{method},"][-2]) > float(rows["before"][-2]) + 0.1
    assert read == [["dev"]] and "4000 words of dev" in printed
    calibrated = read_calibration(tmp_path / "out" / "calibration.json")(planted[0])
    assert np.abs(calibrated - truth).mean() < 0.05
    assert Image.open(tmp_path / "out" / "reliability.png").size[0] == 1500
    assert json.loads((tmp_path / "out" / "calibration.json").read_text()).keys() == {method}


def test_nothing_is_calibrated_on_what_is_tested_or_on_right_words_alone(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["confidence", *arguments, "--subsets", "test-clean"]) == 2
    assert "found test-clean among its test_subsets" in capsys.readouterr().err
    monkeypatch.setattr(prepared_recognizer, "prepare_recognizer", lambda *_: None)
    monkeypatch.setattr(subsets, "open_corpus", lambda config, names: {})
    ones = np.ones(3), np.ones(3, dtype=bool), np.arange(3)
    monkeypatch.setattr(word_confidence, "collect", lambda *_: ones)
    assert main(["confidence", *arguments]) == 2
    assert "expected right and wrong words" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
