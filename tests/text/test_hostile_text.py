"""Language models, lexicons, tokens and annotated lines whose files were damaged or edited by mistake."""

import gzip
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import given

from asr_lightning.errors import InputError
from asr_lightning.text.arpa import read_arpa, write_arpa
from asr_lightning.text.hangul import SyllableTokenizer, write_characters
from asr_lightning.text.korean import AnnotationError, normalize_korean
from asr_lightning.text.lexicon import read_lexicon
from asr_lightning.text.smoothing import witten_bell
from asr_lightning.text.tokenizers import SentencePieceTokenizer, train_sentencepiece
from tests.support.mutations import FUZZED, RANDOM, Refusing, in_the_place_of_a_file, mutated

LEXICON = ";;; c\nREAD  R EH1 D\nREAD(2)  R IY1 D # x\nA\t1.0\t3 b\nB 0.5 0.1 0.2 0.3 B IY\n가 K A\n".encode()
LINE = "o/ (뭐+ 뭔)/(모+ 몬) 7*7 (3G)/(쓰리 쥐)* b/ 70% 손 들어서.b/ ((1시/)/(한 시)에 K-POP 1,000 n/a".encode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text")


@pytest.fixture(scope="module")
def arpa(folder: Path) -> bytes:
    write_arpa(witten_bell([text.split() for text in ("A 나 B", "B A", "나 나 A")], 3), folder / "good.arpa")
    return (folder / "good.arpa").read_bytes()


@pytest.fixture(scope="module")
def pieces(folder: Path) -> bytes:
    return train_sentencepiece(["A CAB", "DEAF BEE", "HE FED"], 11, folder / "good").read_bytes()


@FUZZED
@given(random=RANDOM)
def test_language_models(random: Random, folder: Path, arpa: bytes) -> None:
    content = mutated(arpa, random)
    if random.random() < 0.3:
        content = gzip.compress(content)
        content = mutated(content, random) if random.random() < 0.5 else content
    (folder / "m.arpa").write_bytes(content)
    with Refusing("m.arpa"):
        read_arpa(folder / "m.arpa").score(["A", "?"])


def test_a_header_that_claims_much_costs_nothing(folder: Path, arpa: bytes) -> None:
    (folder / "m.arpa").write_bytes(arpa.replace(b"ngram 2=", b"ngram 2=1000000000"))
    with Refusing("m.arpa", "expected 1000000000", megabytes=50):
        read_arpa(folder / "m.arpa")


@FUZZED
@given(random=RANDOM)
def test_lexicons(random: Random, folder: Path) -> None:
    (folder / "words.txt").write_bytes(mutated(LEXICON, random))
    with Refusing("words.txt"):
        assert len(read_lexicon(folder / "words.txt"))


@FUZZED
@given(random=RANDOM)
def test_lists_of_characters(random: Random, folder: Path) -> None:
    write_characters(["가나다", "나다 A"], folder / "list.tsv")
    content = mutated((folder / "list.tsv").read_bytes(), random)
    (folder / "list.tsv").write_bytes(content)
    with Refusing("list.tsv"):
        tokenizer = SyllableTokenizer(str(folder / "list.tsv"))
        tokenizer.decode([*tokenizer.encode("가 Z"), *range(len(tokenizer))])


@FUZZED
@given(random=RANDOM)
def test_sentencepiece_models(random: Random, folder: Path, pieces: bytes) -> None:
    (folder / "some.model").write_bytes(mutated(pieces, random))
    with Refusing("some.model"):
        tokenizer = SentencePieceTokenizer(str(folder / "some.model"))
        tokenizer.decode(tokenizer.encode("A CAB 가"))


@FUZZED
@given(random=RANDOM)
def test_annotated_lines(random: Random) -> None:
    line = mutated(LINE, random).decode(errors="replace")
    for side in ("spelling", "pronunciation"):
        try:
            text = normalize_korean(line, side)  # type: ignore[arg-type]
        except AnnotationError:
            continue
        assert normalize_korean(text, side) == text  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "read", [read_arpa, read_lexicon, SyllableTokenizer, SentencePieceTokenizer], ids=lambda reader: reader.__name__
)
@pytest.mark.parametrize(
    "what", ["nothing", "a folder", "an empty file", "a link to itself", "a link to nowhere", "a pipe"]
)
def test_what_is_no_file_is_refused(read: Callable[[str], object], what: str, tmp_path: Path) -> None:
    in_the_place_of_a_file(tmp_path / "given")[what]()
    with pytest.raises(InputError, match="given"):
        read(str(tmp_path / "given"))


def test_a_message_is_short_where_a_line_is_long(folder: Path, arpa: bytes) -> None:
    (folder / "m.arpa").write_bytes(arpa.replace(b"1-grams:\n", b"1-grams:\n-" + b"(" * 100_000, 1))
    with pytest.raises(InputError) as raised:
        read_arpa(folder / "m.arpa")
    assert len(str(raised.value)) < 1_000
