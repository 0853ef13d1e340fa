"""Times of words by a CTC output."""

from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
import yaml
from lightning import Trainer

from asr_lightning.asr import main
from asr_lightning.batch import Batch, Utterance
from asr_lightning.callbacks.observation import Observation
from asr_lightning.models.checkpoints import build_recognizer
from asr_lightning.text.phones import Segment
from asr_lightning.tools import alignment_files
from asr_lightning.tools.alignment_files import by_ctc, word_spans
from data_modules.phone_labels import CTMLabels, TextGridLabels
from tests.support.small_hybrid import TEST, Made


@pytest.fixture
def ctc(config: dict[str, Any]) -> dict[str, Any]:
    arguments = {name: config["init_args"][name] for name in ("tokenizer", "features", "encoder")}
    return {"class_path": "asr_lightning.models.ctc.CTCRecognizer", "init_args": arguments}


def test_words_begin_and_end_with_their_tokens() -> None:
    assert word_spans([*"ON_A_TREE"]) == [(0, 1, "ON"), (3, 3, "A"), (5, 8, "TREE")]
    assert word_spans(["▁O", "N", "▁TREE", "S", "▁", "A"]) == [(0, 1, "ON"), (2, 3, "TREES"), (5, 5, "A")]
    assert word_spans([*"__A_"]) == [(2, 2, "A")]
    assert word_spans([]) == []


def test_a_word_lasts_from_its_first_frame_to_its_last(ctc: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of 40 ms around the middles 12.5, 52.5, ... ms of windows of 25 ms; the path is planted."""
    recognizer = build_recognizer(ctc)
    vocabulary = recognizer.tokenizer.tokens
    paths = [" _O N_  AA ", "ON", "A"]  # a space is a blank
    log_probs = torch.full((3, 11, len(vocabulary)), -20.0)
    for row, path in enumerate(paths):
        for frame, token in enumerate(path):
            number = recognizer.tokenizer.blank_id if token == " " else vocabulary.index(token)
            log_probs[row, frame, number] = 0.0
    lengths = torch.tensor([len(path) for path in paths])

    def observed(*_: Any) -> Observation:
        return Observation({}, 4 * lengths, lengths, log_probs, hop=0.01, window=0.025)

    monkeypatch.setattr(alignment_files, "observe", observed)
    batch = Batch.collate(
        [Utterance(id, torch.zeros(size), 16_000, text)
         for id, size, text in (("u1", 7_040, "ON A"), ("u2", 1_280, "ON A TREE"), ("u3", 640, ""))]
    )  # fmt: skip
    aligned, short, empty = by_ctc(recognizer, [batch])
    assert (aligned.id, aligned.problem, aligned.seconds) == ("u1", "", 0.44)
    expected = [Segment(0.0725, 0.1925, "ON"), Segment(0.2725 + 0.04, 0.2725 + 0.12, "A")]
    assert [segment.label for segment in aligned.tiers["words"]] == ["ON", "A"]
    for segment, true_segment in zip(aligned.tiers["words"], expected, strict=True):
        assert (segment.start, segment.end) == pytest.approx((true_segment.start, true_segment.end))
    assert short.problem == "too short: 2 frames for 10 tokens" and empty.problem == "an empty transcript"


def test_the_command_writes_words_only(
    made: Made, ctc: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recognizer = build_recognizer(ctc)
    trainer = Trainer(accelerator="cpu", logger=False, barebones=True)
    trainer.strategy.connect(recognizer)
    trainer.save_checkpoint(tmp_path / "ctc.ckpt", weights_only=True)
    options = ["--config", str(made.config), "--subsets", TEST, "--output", str(tmp_path / "out")]
    assert main(["align", "--checkpoint", str(tmp_path / "ctc.ckpt"), *options]) == 2  # the experiment is of a hybrid
    assert "BLSTMHMM in the experiment" in capsys.readouterr().err
    data = {"data": yaml.safe_load(made.config.read_text())["data"]}
    options[1] = str(tmp_path / "data.yaml")
    Path(options[1]).write_text(yaml.safe_dump(data))
    assert main(["align", "--checkpoint", str(tmp_path / "ctc.ckpt"), *options]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["TextGrid", f"{TEST}.words.ctm"]
    labels = CTMLabels(str(tmp_path / "out" / f"{TEST}.words.ctm"))
    for id, text in made.transcripts(TEST).items():
        words = labels.segments(id)
        assert " ".join(word.label for word in words) == text
        borders = [border for word in words for border in (word.start, word.end)]
        [audio] = made.corpus.rglob(f"{id}.flac")
        assert borders == sorted(borders) and borders[0] >= 0 and borders[-1] <= soundfile.info(audio).duration + 1e-6
        grid = TextGridLabels(str(tmp_path / "out" / "TextGrid" / TEST), "words").segments(id)
        assert [segment.label for segment in grid if segment.label != "SIL"] == text.split()
