"""What is scored, against which spelling of the references, and the errors where nothing can be scored."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor
from torchmetrics import MeanMetric

from asr_lightning.batch import Batch
from asr_lightning.callbacks.transcripts import Transcripts
from asr_lightning.decoding.hypothesis import Hypothesis
from asr_lightning.errors import InputError
from asr_lightning.models.checkpoints import build_recognizer
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.text.tokenizers import LetterTokenizer
from data_modules.librispeech import LibriSpeechDataModule
from tests.support.architectures import ARCHITECTURES, UNSEEN, with_states
from tests.support.hybrids import hybrid
from tests.support.tones import RATE, batch_of, loader, make, make_trainer, write_corpus

TEXTS = ["A CAB", "BED", "GAD", "FACE", "HE FED"]


def corpus(root: Path, texts: list[str] = TEXTS, spoiled: int = 0, **options: Any) -> LibriSpeechDataModule:
    """Utterances; the first `spoiled` of them have a sample that is no number."""
    write_corpus(root, "speech", texts)
    for path in sorted(root.glob("speech/*/*/*.flac")):
        audio, _ = soundfile.read(path, dtype="float32")
        audio[3] = np.nan if int(path.stem.rpartition("-")[2]) < spoiled else 0.0
        path.unlink()
        soundfile.write(path.with_suffix(".wav"), audio, RATE, subtype="FLOAT")
    module = LibriSpeechDataModule(root=str(root), sample_rate=RATE, workers=0, batch_seconds=2.0, **options)
    module.probes = False  # else the samples are read before the run, which then does not begin
    return module


def hears_all(recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch) -> Recognizer:
    """Let a recognizer make no error but those of its vocabulary."""
    batches: list[Batch] = []

    def decode(encoded: Tensor, lengths: Tensor) -> list[list[Hypothesis]]:
        return [[Hypothesis(tuple(recognizer.tokenizer.encode(text)), 0.0)] for text in batches[-1].texts]

    def on_batch_start(batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        batches.append(batch)

    monkeypatch.setattr(recognizer, "decode", decode)
    monkeypatch.setattr(recognizer, "on_test_batch_start", on_batch_start)
    monkeypatch.setattr(recognizer, "on_validation_batch_start", on_batch_start)
    return recognizer


@pytest.mark.parametrize("run", ["test", "validate"])
@pytest.mark.filterwarnings("ignore")
def test_nothing_read_is_no_error_rate(tmp_path: Path, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = corpus(tmp_path / "corpus", spoiled=5, test_subsets=["speech"], validation_subsets=["speech"])
    trainer = make_trainer(tmp_path / "run", callbacks=[Transcripts()])
    with pytest.raises(InputError, match="no utterance of speech was read, so there is no error rate"):
        getattr(trainer, run)(hears_all(make(), monkeypatch), data, verbose=False)
    assert not (tmp_path / "run" / "test_error_rates.csv").exists()


@pytest.mark.filterwarnings("ignore")
def test_rates_of_some_utterances_say_of_how_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = corpus(tmp_path / "corpus", spoiled=2, test_subsets=["speech"])
    trainer = make_trainer(tmp_path / "run", callbacks=[Transcripts()])
    [logged] = trainer.test(hears_all(make(), monkeypatch), data, verbose=False)
    assert (logged["speech/utterances"], logged["speech/words"], logged["speech/wer"]) == (3, 4, 0.0)
    head, line = (tmp_path / "run" / "test_error_rates.csv").read_text().splitlines()
    assert head.endswith(",utterances,words") and line.endswith(",3,4")
    assert "of 3 utterances, 4 words" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_an_epoch_that_read_nothing_ends_the_run(tmp_path: Path) -> None:
    data = corpus(tmp_path / "corpus", spoiled=5, train_subsets=["speech"])
    recognizer = make()
    weights = {name: value.clone() for name, value in recognizer.state_dict().items()}
    with pytest.raises(InputError, match="epoch 1 has read no utterance: expected audio that can be read"):
        make_trainer(tmp_path / "run", max_epochs=3).fit(recognizer, data)
    assert all(torch.equal(value, weights[name]) for name, value in recognizer.state_dict().items())


@pytest.mark.filterwarnings("ignore")
def test_an_epoch_that_read_little_goes_on(tmp_path: Path) -> None:
    data = corpus(tmp_path / "corpus", spoiled=4, train_subsets=["speech"])
    trainer = make_trainer(tmp_path / "run", max_epochs=2)
    trainer.fit(make(), data)
    assert trainer.current_epoch == 2


def test_looking_at_the_first_batches_is_no_evaluation(tmp_path: Path) -> None:
    nothing = Batch.collate([], RATE)
    trainer = make_trainer(tmp_path, num_sanity_val_steps=1)
    trainer.fit(make(), loader([batch_of(["BED"])]), {"dev": loader([nothing, batch_of(["BED"])])})
    assert float(trainer.callback_metrics["dev/utterances"]) == 1


SPELLED = [("CAFÉ BED", 0.0), ("café—bed!", 0.0), ("Don’t", 0.0), ("...", 0.0), ("ØRE BED", 0.5)]


@pytest.mark.parametrize(("text", "floor"), SPELLED)
@pytest.mark.parametrize("letters", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_references_are_spelled_as_the_vocabulary_spells(
    tmp_path: Path, text: str, floor: float, letters: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    recognizer = hears_all(make(), monkeypatch)
    recognizer.tokenizer = LetterTokenizer() if letters else recognizer.tokenizer
    monkeypatch.setattr(recognizer, "encoded_loss", lambda encoded, lengths, batch: torch.ones(len(batch)))
    batch = batch_of(["BED"])
    batch.texts[:] = [text]
    trainer = make_trainer(tmp_path, callbacks=[Transcripts()])
    [logged] = trainer.test(recognizer, {"speech": loader([batch])}, verbose=False)
    assert (logged["speech/wer"], logged["speech/wer_floor"]) == (floor, floor)
    line = (tmp_path / "transcripts" / "test-epoch0-speech.jsonl").read_text()
    assert f'"word_errors": {1 if floor else 0}' in line  # counted on the same spelling


@pytest.mark.filterwarnings("ignore")
def test_insertions_into_an_empty_reference_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = corpus(tmp_path / "corpus", ["...", "BED GAD"], test_subsets=["speech"])
    recognizer = make()
    tokens = tuple(recognizer.tokenizer.encode("BED GAD"))
    monkeypatch.setattr(recognizer, "decode", lambda encoded, _: [[Hypothesis(tokens, 0.0)] for _ in encoded])
    [logged] = make_trainer(tmp_path / "run").test(recognizer, data, verbose=False)
    assert (logged["speech/wer"], logged["speech/utterances"], logged["speech/words"]) == (1.0, 2, 2)


KOREAN = ["나는 학교에 간다", "비가 온다"]


@pytest.mark.parametrize("role", ["train_subsets", "test_subsets"])
@pytest.mark.parametrize("tokenizer", [None, LetterTokenizer])
def test_text_of_another_script_is_refused(
    tmp_path: Path, role: str, tokenizer: Callable[[], LetterTokenizer] | None
) -> None:
    write_corpus(tmp_path, "korean", ["A CAB", "BED"])
    [path] = tmp_path.rglob("*.trans.txt")
    path.write_text("".join(f"korean-{number} {text}\n" for number, text in enumerate(KOREAN)))
    data = LibriSpeechDataModule(root=str(tmp_path), sample_rate=RATE, workers=0, **{role: ["korean"]})
    recognizer, trainer = make(), make_trainer(tmp_path / "run")
    recognizer.tokenizer = tokenizer() if tokenizer else recognizer.tokenizer
    with pytest.raises(InputError, match=r"korean: 100\.000% of 11 characters cannot be written.*Choose a tokenizer"):
        (trainer.fit if role == "train_subsets" else trainer.test)(recognizer, data)


@pytest.mark.filterwarnings("ignore:.*(num_workers|does not have many workers|logging)")
def test_what_few_characters_are_lost_is_said_once_with_its_share(tmp_path: Path) -> None:
    data = corpus(tmp_path / "corpus", ["A CAB BED", "ØRE ØL FACE"], train_subsets=["speech"])
    message = re.escape(
        "speech: 12.500% of 16 characters cannot be written by the CharacterTokenizer and are <unk> to it, or nothing: "
        "Ø 2 times"
    )
    with pytest.warns(UserWarning, match=message) as warned:
        make_trainer(tmp_path / "run", max_epochs=2).fit(make(), data)
    assert sum("cannot be written" in str(warning.message) for warning in warned) == 1


@pytest.mark.parametrize("name", ["RNN-T of LSTMs with CTC", "joint CTC-attention", "Deep Speech 2", "hybrid"])
@pytest.mark.filterwarnings("ignore")
def test_a_batch_is_encoded_once_and_its_numbers_are_those_of_encoding_it_twice(name: str, tmp_path: Path) -> None:
    [config] = [config for key, config in ARCHITECTURES.items() if key == name] or [hybrid(mmi_weight=0.5)]
    torch.manual_seed(1)
    recognizer = build_recognizer(with_states(config, tmp_path / "states")).eval()
    batches = [batch_of(), batch_of(UNSEEN, "unseen")]
    with torch.inference_mode():
        texts = [recognizer.transcribe(batch) for batch in batches]
        losses = torch.cat([recognizer.loss(batch) for batch in batches])
    recognizer.frame_times()  # encodes silence, once
    calls: list[int] = []
    recognizer.encoder.register_forward_hook(lambda *_: calls.append(1))
    trainer = make_trainer(tmp_path, callbacks=[Transcripts()])
    for run in (trainer.test, trainer.validate):
        calls.clear()
        [logged] = run(recognizer, {"tones": loader(batches)}, verbose=False)
        assert len(calls) == len(batches)
        means = MeanMetric()  # of batches, as the evaluation counts
        for part in losses.split([len(batch) for batch in batches]):
            means.update(part[part.isfinite()])
        assert logged["tones/loss"] == float(means.compute())
    rows = (tmp_path / "transcripts" / "test-epoch0-tones.jsonl").read_text().splitlines()
    assert [json.loads(row)["hypothesis"] for row in rows] == [text for part in texts for text in part]

    calls.clear()
    predicted = trainer.predict(recognizer, loader(batches))
    assert len(calls) == len(batches)
    assert [[best.text for best, *_ in part["hypotheses"]] for part in predicted] == texts
