"""Delays of a network that knows eight utterances of tones, whose letters have exact times."""

import csv
import re
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import yaml
from PIL import Image

from asr_lightning.asr import main
from asr_lightning.decoding.words import word_tokens
from asr_lightning.errors import InputError
from asr_lightning.models.checkpoints import build_recognizer
from asr_lightning.models.rnn_transducer import RNNTransducer
from asr_lightning.report.latency_figure import Point, plot_latency
from asr_lightning.tools import delays
from tests.support.tones import RATE, TEXTS, batch_of, features, streaming_conformer, transducer, write_corpus

LETTER = 0.1  # seconds
UTTERANCE = {text: f"test-{number}" for number, text in enumerate(TEXTS)}


def trained(encoder: dict[str, Any], normalization: str) -> RNNTransducer:
    torch.manual_seed(1)
    recognizer = build_recognizer(transducer(encoder=encoder, features=features("LogMel", normalization, mels=20)))
    assert isinstance(recognizer, RNNTransducer)
    optimizer, batch = torch.optim.Adam(recognizer.parameters(), 3e-3), batch_of(name="test")
    for step in range(400):
        recognizer.train()
        optimizer.zero_grad()
        recognizer.loss(batch).mean().backward()
        torch.nn.utils.clip_grad_norm_(recognizer.parameters(), 5.0)
        optimizer.step()
        if step % 20 == 19 and recognizer.eval().transcribe(batch) == TEXTS:
            break
    return recognizer.eval()


def save(recognizer: RNNTransducer, run: Path) -> Path:
    content = {
        "state_dict": recognizer.state_dict(),
        "hyper_parameters": dict(recognizer.hparams),
        "pytorch-lightning_version": lightning.__version__,
    }
    (run / "checkpoints").mkdir(parents=True)
    torch.save(content, run / "checkpoints" / "last.ckpt")
    return run


@pytest.fixture(scope="module")
def recognizer() -> RNNTransducer:
    return trained(streaming_conformer(), "GlobalNormalization")


def exact(text: str) -> list[tuple[str, float, float]]:
    """Words with start and end: a letter sounds for 80 of its 100 ms."""
    words, offset = [], 0
    for word in text.split():
        start = text.index(word, offset)
        offset = start + len(word)
        words.append((word, LETTER * start, LETTER * offset - 0.02))
    return words


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """The utterances as files, their words as CTM, and an experiment with them."""
    write_corpus(tmp_path / "tones", "test", TEXTS)
    rows = [
        f"{id} 1 {start:.4f} {end - start:.4f} {word}\n"
        for text, id in UTTERANCE.items()
        for word, start, end in exact(text)
    ]
    (tmp_path / "test.words.ctm").write_text("".join(rows))
    data = {
        "class_path": "data_modules.librispeech.LibriSpeechDataModule",
        "init_args": {"root": str(tmp_path / "tones"), "test_subsets": ["test"], "sample_rate": RATE, "workers": 0},
    }
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump({"data": data}))
    return tmp_path


def test_a_word_is_written_when_the_chunk_of_its_last_token_is_complete(recognizer: RNNTransducer) -> None:
    batch = batch_of(name="test")
    assert recognizer.transcribe(batch) == TEXTS
    hop, window = recognizer.features.hop_samples, recognizer.features.window_samples
    for row, hypotheses in enumerate(recognizer.recognize(batch)):
        audio = batch.audio[row, : int(batch.audio_lengths[row])]
        for piece in (80, 333):
            written = delays.write_in_pieces(recognizer, audio, piece)
            expected = []
            for group in word_tokens(hypotheses[0].tokens, recognizer.tokenizer):
                chunks = (
                    hypotheses[0].frames[group[-1]] // 4 + 1
                )  # chunks of 4 encoded frames, each of 4 feature frames
                needed = (16 * chunks - 1) * hop + window
                read = min(len(audio), -(-needed // piece) * piece)
                expected.append(read / RATE)
            assert written.words == tuple(TEXTS[row].split())
            assert written.seconds == pytest.approx(expected)
            assert written.first is not None and 0.0 < written.first <= written.seconds[0]
            assert 0 < written.compute and 1_000 < written.state < 1_000_000


def test_larger_chunks_are_later_and_whole_utterances_latest(
    recognizer: RNNTransducer, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    streaming = save(recognizer, corpus / "runs" / "streaming" / "seed1")
    config = {**transducer(features=features("LogMel", "UtteranceNormalization", mels=20))}
    torch.manual_seed(1)
    offline = build_recognizer(config)
    assert isinstance(offline, RNNTransducer)
    whole = save(offline, corpus / "runs" / "offline")
    command = ["latency", str(streaming), str(whole), "--config", str(corpus / "experiment.yaml"), "--truth",
               str(corpus / "test.words.ctm"), "--output", str(corpus / "out")]  # fmt: skip
    assert main([*command, "--chunks", "1", "4", "100"]) == 0
    printed = capsys.readouterr().out
    assert "latency.csv, latency.md, latency.png, latency.svg" in printed
    with (corpus / "out" / "latency.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["look-ahead ms"]) for row in rows] == [
        ("streaming", "40"), ("streaming", "160"), ("streaming", "4000"), ("offline", "utterance")
    ]  # fmt: skip
    assert rows[1]["WER %"] == "0.00" and rows[1]["timed words"] == "12" and rows[1]["seed"] == "1"
    medians = [float(row["delay ms, median"]) for row in rows[:3]]
    assert medians[0] <= medians[1] <= medians[2] and float(rows[2]["at the end %"]) == 100
    assert rows[3]["state kB"] == "–" and float(rows[3]["real-time factor"]) > 0
    assert Image.open(corpus / "out" / "latency.png").size[0] > 1000
    assert "Real-time factor" in (corpus / "out" / "latency.md").read_text()


def test_delays_are_those_of_the_tones(recognizer: RNNTransducer, corpus: Path) -> None:
    """Counted by hand from what `write_in_pieces` gives."""
    truth, batch = delays.ExactWords(corpus / "test.words.ctm", None), batch_of(name="test")
    utterances = [batch_of([text], "test") for text in TEXTS]
    for text, utterance in zip(TEXTS, utterances, strict=True):
        utterance.ids[0] = UTTERANCE[text]
    recognizer.encoder.use_chunk(4)  # type: ignore[operator]
    latency = delays.measure(recognizer, utterances, truth, 0.02)
    assert latency.errors == 0 and latency.untimed == 0 and latency.audio == pytest.approx(batch.seconds)
    expected = []
    for text, utterance in zip(TEXTS, utterances, strict=True):
        written = delays.write_in_pieces(recognizer, utterance.audio[0], 160)
        expected += [second - end for second, (_, _, end) in zip(written.seconds, exact(text), strict=True)]
    assert latency.delays == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--truth", "nowhere.ctm"], "no phone labels at nowhere.ctm"),
        ([], r"test: expected exact times, .* give --truth SUBSET.words.ctm, which `asr align` writes"),
        (["--chunks", "0"], "whole number from 1"),
        (["--piece", "nan"], "number above 0"),
    ],
)
def test_what_cannot_be_measured_is_named(
    recognizer: RNNTransducer, corpus: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    run = save(recognizer, corpus / "run")
    command = ["latency", str(run), "--config", str(corpus / "experiment.yaml"), "--output", str(corpus / "out")]
    try:
        assert main([*command, *options]) == 2
    except SystemExit as error:  # of argparse
        assert error.code == 2
    printed = capsys.readouterr().err
    assert re.search(message, printed), printed


def test_times_of_other_words_and_chunks_of_networks_without_them_are_refused(
    recognizer: RNNTransducer, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (corpus / "other.ctm").write_text("test-0 1 0.0 0.1 OTHER\n")
    run = save(recognizer, corpus / "run")
    command = ["latency", str(run), "--config", str(corpus / "experiment.yaml"), "--output", str(corpus / "out")]
    assert main([*command, "--truth", str(corpus / "other.ctm"), "--utterances", "2"]) == 2
    assert (
        "test: expected times of the words of its 2 utterances, found those of other words" in capsys.readouterr().err
    )
    torch.manual_seed(1)
    offline = build_recognizer(transducer())
    assert isinstance(offline, RNNTransducer)
    command[1] = str(save(offline, corpus / "offline"))
    assert main([*command, "--truth", str(corpus / "test.words.ctm"), "--chunks", "2"]) == 2
    assert "expected a network with chunks, as a StreamingConformer has, found none" in capsys.readouterr().err


def test_phones_and_a_lexicon_give_the_times_of_words(tmp_path: Path) -> None:
    (tmp_path / "u.phones.ctm").write_text(
        "u 1 0.0 0.1 SIL\nu 1 0.1 0.2 a\nu 1 0.3 0.1 b\nu 1 0.4 0.1 SIL\nu 1 0.5 0.3 c\n"
    )
    (tmp_path / "lexicon.txt").write_text("ONE\t1.00\ta b\nTWO\t1.00\tc\nTHREE\t1.00\td\n")
    truth = delays.ExactWords(tmp_path, tmp_path / "lexicon.txt")
    spoken = truth("u", ["ONE", "TWO"])
    assert spoken is not None
    assert [(word.label, word.start, pytest.approx(word.end)) for word in spoken] == [
        ("ONE", 0.1, 0.4), ("TWO", 0.5, 0.8)
    ]  # fmt: skip
    assert truth("u", ["ONE", "THREE"]) is None and truth("other", ["ONE"]) is None


def test_a_figure_without_a_delay_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no word is recognized right"):
        plot_latency({"test": {"run": [Point("40 ms", float("nan"), float("nan"), 1.0)]}}, tmp_path / "x.png")
    with pytest.raises(InputError, match="no phone labels"):
        delays.ExactWords(tmp_path / "nothing", None)
