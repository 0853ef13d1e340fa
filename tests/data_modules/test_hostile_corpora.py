"""Corpora, their caches and phone labels, with damaged files."""

from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from praatio import textgrid
from praatio.utilities.constants import Interval

from asr_lightning.errors import InputError
from data_modules.corpus import CorpusDataModule
from data_modules.ksponspeech import KsponSpeechDataModule
from data_modules.librispeech import LibriSpeechDataModule
from data_modules.lines import open_lines
from data_modules.manifest import BadFile, Header, Listing, read_headers
from data_modules.phone_labels import CTMLabels, TextGridLabels
from tests.support.mutations import FUZZED, RANDOM, Refusing, mutated, spoiled
from tests.support.small_corpora import make_subset

CTM = "u0 1 0.0 0.1 AA\nu1 1 0.5 0.2 B\n;; c\nu1 1 0.7 0.2 가\nü 1 1 2 SIL\n".encode()
SLOW = settings(FUZZED, max_examples=25)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("corpora")


@pytest.fixture(scope="module")
def librispeech(folder: Path) -> list[Path]:
    make_subset(folder / "libri", "s", 3)
    return [path for path in sorted((folder / "libri").rglob("*")) if path.is_file()]


@pytest.fixture(scope="module")
def ksponspeech(folder: Path) -> list[Path]:
    subfolder = folder / "kspon/KsponSpeech_01/KsponSpeech_0001"
    subfolder.mkdir(parents=True)
    names = [f"KsponSpeech_00000{number}" for number in range(3)]
    for name in names:
        (subfolder / f"{name}.pcm").write_bytes(np.arange(4_000, dtype="<i2").tobytes() + b"x")
    text = "안녕 b/ (2월)/(이 월 )달에"
    lines = "".join(f"KsponSpeech_01/KsponSpeech_0001/{name}.pcm :: {text}\n" for name in names)
    (folder / "kspon/train.trn").write_text(lines, encoding="utf-8")
    return [path for path in sorted((folder / "kspon").rglob("*")) if path.is_file()]


def read_all(corpus: CorpusDataModule, subset: str) -> int:
    corpus.prepare_data()
    corpus.setup("predict")
    corpus.manifests[subset].bad_files()
    return sum(len(batch) for batch in corpus.predict_dataloader()[subset])


@SLOW
@given(random=RANDOM)
def test_librispeech_goes_on_with_what_is_good(random: Random, folder: Path, librispeech: list[Path]) -> None:
    with spoiled(random.choice(librispeech), random):
        corpus = LibriSpeechDataModule(str(folder / "libri"), predict_subsets=["s"], on_bad="skip", workers=0)
        with Refusing():
            assert read_all(corpus, "s") >= 2


@SLOW
@given(random=RANDOM)
def test_ksponspeech_goes_on_with_what_is_good(random: Random, folder: Path, ksponspeech: list[Path]) -> None:
    with spoiled(random.choice(ksponspeech), random):
        corpus = KsponSpeechDataModule(str(folder / "kspon"), predict_subsets=["train"], on_bad="skip", workers=0)
        with Refusing("kspon"):
            read_all(corpus, "train")


@SLOW
@given(random=RANDOM)
def test_damaged_caches_are_made_anew(random: Random, folder: Path, librispeech: list[Path]) -> None:
    corpus = LibriSpeechDataModule(str(folder / "libri"), predict_subsets=["s"], on_bad="skip", workers=0)
    assert read_all(corpus, "s") == 3
    index = corpus.manifest_folder / "s.index.npz"
    index.write_bytes(mutated(index.read_bytes(), random))
    again = LibriSpeechDataModule(str(folder / "libri"), predict_subsets=["s"], on_bad="skip", workers=0)
    assert read_all(again, "s") == 3


@FUZZED
@given(random=RANDOM)
def test_ctm(random: Random, folder: Path) -> None:
    (folder / "some.ctm").write_bytes(mutated(CTM, random))
    with Refusing("some.ctm"):
        labels = CTMLabels(str(folder / "some.ctm"))
        for utterance in labels.utterances():
            for segment in labels.segments(utterance):
                assert 0 <= segment.start <= segment.end < float("inf")


@FUZZED
@given(random=RANDOM)
def test_textgrids(random: Random, folder: Path) -> None:
    grid = textgrid.Textgrid()
    for name in ("words", "phones"):
        intervals = [Interval(0, 0.5, "a"), Interval(0.5, 1, 'b "q" é')]
        grid.addTier(textgrid.IntervalTier(name, intervals, 0, 1.2))
    (folder / "grids").mkdir(exist_ok=True)
    path = folder / "grids" / "u1.TextGrid"
    grid.save(str(path), random.choice(("long_textgrid", "short_textgrid")), includeBlankSpaces=True)
    path.write_bytes(mutated(path.read_bytes(), random))
    with Refusing("u1.TextGrid"):
        for segment in TextGridLabels(str(folder / "grids")).segments("u1"):
            assert 0 <= segment.start <= segment.end < float("inf")


@FUZZED
@given(random=RANDOM)
def test_lines_of_text(random: Random, folder: Path) -> None:
    (folder / "some.txt").write_bytes(mutated("u1 A B C\nu2 가 나\nu3 a longer line\n".encode(), random))
    with Refusing("some.txt"):
        lines = open_lines([folder / "some.txt"], skip_columns=1, normalize=random.random() < 0.5)
        assert all(lines[number] for number in range(len(lines)))


@pytest.mark.parametrize("name", ["../../up", "/etc/up", "a/b", "..", ".", "nul\0"])
@pytest.mark.parametrize("what", ["id", "speaker"])
def test_names_that_lead_out_of_a_folder_are_bad(name: str, what: str) -> None:
    listing = Listing(**{"id": "u", "path": "u.flac", "text": "A", "speaker": "s", what: name})
    [bad] = read_headers([listing], 16_000, "test", lambda path: Header(16_000, 160, 1))
    assert isinstance(bad, BadFile) and bad.kind == "unusable id"


@pytest.mark.parametrize("times", ["inf 0.1", "0.1 inf", "nan 1", "-1 1", "1e999 0"])
def test_times_that_are_none(times: str, tmp_path: Path) -> None:
    (tmp_path / "some.ctm").write_text(f"u 1 {times} AA\n")
    with pytest.raises(InputError, match="some.ctm"):
        CTMLabels(str(tmp_path / "some.ctm")).segments("u")


@pytest.mark.parametrize("kind", ["long_textgrid", "short_textgrid"])
def test_a_textgrid_with_a_number_of_many_digits(kind: str, tmp_path: Path) -> None:
    grid = textgrid.Textgrid()
    grid.addTier(textgrid.IntervalTier("phones", [Interval(0, 0.5, "a")], 0, 1.25))
    grid.save(str(tmp_path / "u.TextGrid"), kind, includeBlankSpaces=True)  # type: ignore[arg-type]
    text = (tmp_path / "u.TextGrid").read_text()
    (tmp_path / "u.TextGrid").write_text(text.replace("1.25", "9" * 400))
    with pytest.raises(InputError, match="u.TextGrid"):
        TextGridLabels(str(tmp_path)).segments("u")


@pytest.mark.parametrize("end", ["\x85", "\u2028", "\x1e", "a\rb"], ids=ascii)
def test_names_may_hold_other_ends_of_lines(end: str, folder: Path, ksponspeech: list[Path]) -> None:
    name = f"Kspon{end}Speech"
    [trn] = [path for path in ksponspeech if path.suffix == ".trn"]
    content = trn.read_bytes()
    try:
        trn.write_bytes(content + f"{name}.pcm :: 가\n{name * 10_000}.pcm :: 가\n".encode())
        corpus = KsponSpeechDataModule(str(folder / "kspon"), predict_subsets=["train"], on_bad="skip", workers=0)
        bad = corpus.build_manifest("train").bad_files()
    finally:
        trn.write_bytes(content)
    assert [file.kind for file in bad] == ["transcript without audio"] * 2
    assert name in bad[0].detail and len(str(bad[1])) < 1_000
