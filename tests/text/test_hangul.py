import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr_lightning.errors import InputError
from asr_lightning.text.hangul import (
    FINALS,
    INITIALS,
    MEDIALS,
    JamoTokenizer,
    SyllableTokenizer,
    compose,
    decompose,
    write_characters,
)

SYLLABLES = st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3)
WORD = st.text(SYLLABLES | st.sampled_from("0189AZ%#./-+*&':~ㅋㅠ"), min_size=1)


def test_a_syllable_is_its_letters() -> None:
    tokenizer = JamoTokenizer()
    ids = tokenizer.encode("한 글ㅋ")
    assert [tokenizer.tokens[number] for number in ids] == ["ᄒ", "ᅡ", "ᆫ", "_", "ᄀ", "ᅳ", "ᆯ", "ᄏ"]
    assert tokenizer.decode(ids) == "한 글ㅋ"
    assert len(tokenizer) == len(set(tokenizer.tokens)) == 4 + 67 + 47


def test_all_11172_syllables_come_back() -> None:
    tokenizer = JamoTokenizer()
    syllables = "".join(map(chr, range(0xAC00, 0xD7A4)))
    assert tokenizer.decode(tokenizer.encode(syllables)) == syllables


def test_syllables_come_apart_and_together() -> None:
    assert decompose("값") == ("ㄱ", "ㅏ", "ㅄ") and compose("ㄱ", "ㅏ", "ㅄ") == "값"
    assert decompose("의") == ("ㅇ", "ㅢ", "") and compose("ㅇ", "ㅢ") == "의"
    syllables = [compose(i, m, f) for i in INITIALS for m in MEDIALS for f in FINALS]
    assert syllables == list(map(chr, range(0xAC00, 0xD7A4)))  # the order of Unicode
    assert [compose(*decompose(syllable)) for syllable in syllables] == syllables


@given(st.lists(st.text(SYLLABLES, min_size=1)).map(" ".join))
def test_words_of_syllables_come_back(text: str) -> None:
    tokenizer = JamoTokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.lists(WORD).map(" ".join))
def test_what_comes_back_is_written_as_it_was(text: str) -> None:
    tokenizer = JamoTokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.unk_id not in ids
    assert tokenizer.encode(tokenizer.decode(ids)) == ids


@pytest.mark.parametrize(
    ("letters", "text"),
    [
        (["ᄀ", "ᄀ", "ᅡ"], "ㄱ가"),  # a recognizer may say anything
        (["ᅡ", "ᅡ"], "ㅏㅏ"),
        (["ᆫ", "_", "ᆹ"], "ㄴ ㅄ"),
        (["ᄀ", "ᅡ", "ᆫ", "ᆫ"], "간ㄴ"),
        (["_", "ᄀ", "_", "_", "<unk>", "<eos>"], "ㄱ ?"),
    ],
)
def test_letters_that_do_not_compose_stand_alone(letters: list[str], text: str) -> None:
    tokenizer = JamoTokenizer()
    assert tokenizer.decode([tokenizer.tokens.index(letter) for letter in letters]) == text


def test_what_is_unknown_is_marked() -> None:
    tokenizer = JamoTokenizer()
    assert tokenizer.decode(tokenizer.encode("k-pop 漢")) == "K-POP ?"
    assert tokenizer.encode("  ") == []


def test_the_most_frequent_characters_make_the_list(tmp_path: Path) -> None:
    path = tmp_path / "new" / "characters.tsv"
    texts = ["가나 가다", "가_나 \u1100\u1161", "라"]
    assert write_characters(texts, path, tokens=6) == 2
    assert path.read_text("utf-8") == "가\t4\n나\t2\n"
    assert write_characters(texts, path, min_count=2) == 2
    assert write_characters(texts, path) == 4
    assert path.read_text("utf-8").split() == ["가", "4", "나", "2", "다", "1", "라", "1"]


def test_syllables_come_back_and_others_are_unknown(tmp_path: Path) -> None:
    path = tmp_path / "characters.tsv"
    write_characters(["가나 다"], path)
    tokenizer = SyllableTokenizer(str(path))
    assert tokenizer.tokens == ("<blank>", "<unk>", "<eos>", "_", "가", "나", "다")
    assert tokenizer.decode(tokenizer.encode(" 다나  가 라")) == "다나 가 ?"
    again = SyllableTokenizer(**json.loads(json.dumps(tokenizer.init_args())))
    assert again.tokens == tokenizer.tokens


def test_lists_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "characters.tsv"
    with pytest.raises(InputError, match="exactly one"):
        SyllableTokenizer()
    with pytest.raises(InputError, match="cannot read the list of characters .*characters.tsv"):
        SyllableTokenizer(str(path))
    for content, message in {"가\n나다\t3\n": "line 2: '나다", "가\n가\n": "twice: ..가", "": "is empty"}.items():
        path.write_text(content, "utf-8")
        with pytest.raises(InputError, match=message):
            SyllableTokenizer(str(path))
    with pytest.raises(InputError, match="expected texts with characters"):
        write_characters([" "], path)
    with pytest.raises(InputError, match="to list 0; found none"):
        write_characters(["가"], path, tokens=4)
