"""The embedded Korean corpus, looked at through the real reader and without it."""

import hashlib
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from asr_lightning.errors import InputError
from asr_lightning.text.hangul import JamoTokenizer
from asr_lightning.text.korean import normalize_korean
from data_modules.korean_grammar import SPEAKERS, plan_korean
from data_modules.spoken_korean import SpokenKoreanDataModule, synthesize

SMALL = dict(minutes=0.4, evaluation_minutes=0.1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("spoken") / "korean"
    synthesize(root, **SMALL, workers=2, progress=False)
    return root


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_the_same_bytes_for_any_number_of_workers(corpus: Path, tmp_path: Path) -> None:
    synthesize(tmp_path / "again", **SMALL, workers=3, progress=False)
    assert digests(tmp_path / "again") == digests(corpus)


def test_the_real_reader_finds_what_was_said(corpus: Path) -> None:
    subsets = ["train", "dev", "eval_clean", "eval_other"]
    data = SpokenKoreanDataModule(str(corpus), **SMALL, validation_subsets=subsets, workers=0, batch_seconds=20.0)
    data.prepare_data()
    data.setup("validate")
    planned = {line.id: line for line in plan_korean(**SMALL)}
    names = set()
    for subset, loader in data.val_dataloader().items():
        assert data.manifests[subset].bad == 0
        for batch in loader:
            for row, name in enumerate(batch.ids):
                names.add(name)
                assert planned[name].subset == subset
                assert batch.texts[row] == planned[name].sentence.rstrip("?")
                audio = batch.audio[row, : batch.audio_lengths[row]].numpy()
                path = corpus / planned[name].folder / f"{name}.pcm"
                np.testing.assert_array_equal(audio, np.frombuffer(path.read_bytes()[: 2 * len(audio)], "<i2") / 32_768)
                assert 0.01 < np.abs(audio).max() < 1.0
    assert names == planned.keys()


def test_files_are_as_ai_hub_has_them(corpus: Path) -> None:
    for path in corpus.rglob("*.pcm"):
        assert path.stat().st_size % 2 == path.name.startswith("KsponSpeech_E")
        text = path.with_suffix(".txt").read_bytes().decode("cp949")
        rows = [row for name in corpus.glob("scripts/*.trn") for row in name.read_text("utf-8").splitlines()]
        assert f"{path.relative_to(corpus)} :: {text}" in rows
    names = {str(path.relative_to(corpus)) for path in corpus.rglob("*.pcm")}
    assert "KsponSpeech_01/KsponSpeech_0001/KsponSpeech_000001.pcm" in names
    assert "KsponSpeech_05/KsponSpeech_0621/KsponSpeech_620001.pcm" in names
    assert {
        "KsponSpeech_eval/eval_clean/KsponSpeech_E00001.pcm",
        "KsponSpeech_eval/eval_other/KsponSpeech_E03001.pcm",
    } < names


def test_segments_tile_every_utterance(corpus: Path) -> None:
    tables = [row.split() for path in corpus.rglob("*.phones.ctm") for row in path.read_text().splitlines()]
    times: dict[str, list[tuple[float, float]]] = {}
    for name, _, start, duration, _ in tables:
        times.setdefault(name, []).append((float(start), float(duration)))
    for path in corpus.rglob("*.pcm"):
        ends = [0.0]
        for start, duration in times[path.stem]:
            assert start == pytest.approx(ends[-1], abs=1e-6)
            ends.append(start + duration)
        assert ends[-1] == pytest.approx(path.stat().st_size // 2 / 16_000, abs=1e-6)
    phones = Counter(phone for *_, phone in tables)
    assert phones["SIL"] > 10 and len(phones) > 15


def test_every_mark_of_the_annotation_occurs_and_every_line_is_well_formed() -> None:
    lines = plan_korean(30, 1)
    annotations = [line.annotation for line in lines]
    for mark in (r"\)/\(", r"[가-힣]/ ", r"[가-힣]\+ ", r"[가-힣]\*", r"^b/", r"n/$", r"\?", r"%\)/\(", r"\(TV\)"):
        assert sum(bool(re.search(mark, text)) for text in annotations) >= 5, mark
    tokenizer = JamoTokenizer()
    for line in lines:
        assert normalize_korean(line.annotation) == line.sentence.rstrip("?")
        assert re.fullmatch("[가-힣 ]+[?]?", line.sentence)
        assert tokenizer.decode(tokenizer.encode(normalize_korean(line.annotation))) == normalize_korean(
            line.annotation
        )
    assert any(re.search("[0-9A-Z%]", normalize_korean(text, "spelling")) for text in annotations)


def test_particles_fit_the_words_before_them() -> None:
    for line in plan_korean(30, 1):
        for last, particle in re.findall(r"([가-힣])(은|는|을|를) ", line.sentence):
            assert (particle in "은을") == ((ord(last) - 0xAC00) % 28 > 0) or last in "같많", line.sentence


def test_neither_voices_nor_sentences_cross_from_training() -> None:
    lines = plan_korean(20, 2)
    assert len({line.sentence for line in lines}) == len(lines)
    training = {speaker.voice for speaker in SPEAKERS["train"]}
    for subset, speakers in SPEAKERS.items():
        assert subset == "train" or not training & {speaker.voice for speaker in speakers}
    syllables = Counter(syllable for line in lines if line.subset == "train" for syllable in line.sentence)
    assert {syllable for line in lines for syllable in line.sentence} <= syllables.keys()


def test_minutes_are_kept_within_a_tenth(corpus: Path) -> None:
    seconds = sum(path.stat().st_size for path in corpus.glob("KsponSpeech_01/*/*.pcm")) / 32_000
    assert 0.9 * 24 < seconds < 1.1 * 24 + 4  # 0.4 minutes; the last sentence may run over


def test_other_content_is_refused(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="no embedded corpus"):
        synthesize(tmp_path, **SMALL, progress=False)
    with pytest.raises(InputError, match="'seed': 2} was asked for"):
        synthesize(corpus, **SMALL, seed=2, progress=False)
    with pytest.raises(InputError, match="positive, got 0"):
        synthesize(tmp_path / "empty", minutes=0)
