import json
import pickle

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from asr_lightning.errors import InputError
from asr_lightning.text.tokenizers import (
    CharacterTokenizer,
    LetterTokenizer,
    SentencePieceTokenizer,
    train_sentencepiece,
)

TEXTS = [f"{a} {b} {c}" for a in ("THE CAT", "A DOG") for b in ("SAW", "DIDN'T SEE") for c in ("ME", "THEM", "IT")]
WORDS = st.lists(st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ'", min_size=1)).map(" ".join)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(train_sentencepiece(TEXTS, 22, tmp_path_factory.mktemp("pieces") / "new" / "model"))


@pytest.fixture(scope="module")
def foreign_model(tmp_path_factory) -> str:
    """A model without padding and end pieces."""
    prefix = tmp_path_factory.mktemp("foreign") / "model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_prefix=str(prefix), vocab_size=21, eos_id=-1, minloglevel=2
    )
    return f"{prefix}.model"


def spelled(text: str) -> str:
    tokenizer = CharacterTokenizer()
    return "".join(tokenizer.tokens[number] for number in tokenizer.encode(text))


def test_character_tokens_are_those_of_the_paper() -> None:
    tokenizer = CharacterTokenizer()
    assert len(tokenizer) == len(tokenizer.tokens) == len(set(tokenizer.tokens)) == 31
    assert set(tokenizer.tokens) == {*"ABCDEFGHIJKLMNOPQRSTUVWXYZ'_", "<blank>", "<unk>", "<eos>"}
    assert tokenizer.blank_id == 0
    assert tokenizer.tokens[tokenizer.blank_id] == "<blank>"
    assert tokenizer.tokens[tokenizer.unk_id] == "<unk>"
    assert tokenizer.tokens[tokenizer.eos_id] == "<eos>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I have a pen.", "_I_HAVE_A_PEN"),
        ("  I \t have\n a pen  ", "_I_HAVE_A_PEN"),
        ("don't, don’t!", "_DON'T_DON'T"),
        ("Élan naïve, E\u0301", "_ELAN_NAIVE_E"),
        ("MP3", "_MP<unk>"),
        ("straße ø", "_STRASSE_<unk>"),
        ("가 \u1100\u1161", "_<unk>_<unk>"),  # one syllable, composed and decomposed
        ("snake_case well-known a - b", "_SNAKECASE_WELLKNOWN_A_B"),
        ("...", ""),
        ("", ""),
    ],
)
def test_character_rule(text: str, expected: str) -> None:
    assert spelled(text) == expected


@given(WORDS)
def test_characters_survive_the_round_trip(text: str) -> None:
    tokenizer = CharacterTokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.text())
def test_any_text_is_encoded_within_the_vocabulary_and_stays_the_same_after_one_round(text: str) -> None:
    tokenizer = CharacterTokenizer()
    ids = tokenizer.encode(text)
    assert not set(ids) & {tokenizer.blank_id, tokenizer.eos_id}
    decoded = tokenizer.decode(ids).replace("?", "3")  # 3 is an unknown character, as ? is dropped
    assert tokenizer.encode(decoded) == ids


def test_decode_leaves_out_blank_and_end_and_shows_unknown() -> None:
    tokenizer = CharacterTokenizer()
    ids = [tokenizer.blank_id, *tokenizer.encode("MP3 IS"), tokenizer.blank_id, tokenizer.eos_id]
    assert tokenizer.decode(ids) == "MP? IS"
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize("wrong", [-1, 31])
def test_decode_refuses_foreign_ids(wrong: int) -> None:
    with pytest.raises(ValueError, match=rf"0 to 30, got \[{wrong}\]"):
        CharacterTokenizer().decode([5, wrong])


def test_sentencepiece_round_trip(model: str) -> None:
    tokenizer = SentencePieceTokenizer(model)
    assert (tokenizer.blank_id, tokenizer.unk_id, tokenizer.eos_id, len(tokenizer)) == (0, 1, 2, 22)
    assert tokenizer.tokens[:3] == ("<blank>", "<unk>", "<eos>")
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert not set(ids) & {0, 1, 2}
        assert tokenizer.decode([0, *ids, 2]) == text
    assert tokenizer.decode(tokenizer.encode("THE ÑAT")) == "THE ?AT"


def test_foreign_sentencepiece_model_gets_blank_and_end_appended(foreign_model: str) -> None:
    tokenizer = SentencePieceTokenizer(foreign_model)
    assert len(tokenizer) == 23
    assert tokenizer.tokens[-2:] == ("<blank>", "<eos>")
    assert (tokenizer.blank_id, tokenizer.eos_id) == (21, 22)
    assert tokenizer.decode([21, *tokenizer.encode(TEXTS[0]), 22]) == TEXTS[0]


def test_the_unknown_piece_can_be_the_blank(foreign_model: str, model: str) -> None:
    tokenizer = SentencePieceTokenizer(foreign_model, blank_is_unknown=True)
    assert (len(tokenizer), tokenizer.blank_id, tokenizer.unk_id, tokenizer.eos_id) == (21, 0, 0, 0)
    assert tokenizer.tokens[0] == "<blank>" and "<unk>" not in tokenizer.tokens
    ids = tokenizer.encode("THE ÑAT")
    assert 0 not in ids and tokenizer.decode([0, *ids, 0]) == "THE AT"  # a blank among targets would be no token
    assert tokenizer.loses("Ñ") and not tokenizer.loses("A") and tokenizer.fold("THE ÑAT") == "THE ÑAT"
    assert set(tokenizer.init_args()) == {"model_base64", "blank_is_unknown"}
    again = SentencePieceTokenizer(**tokenizer.init_args())
    assert again.tokens == tokenizer.tokens and again.encode("THE ÑAT") == ids
    with_end = SentencePieceTokenizer(model, blank_is_unknown=True)
    assert (len(with_end), with_end.blank_id, with_end.eos_id) == (22, 1, 2)


@pytest.mark.parametrize("kind", ["model", "foreign_model"])
def test_sentencepiece_is_rebuilt_without_its_file(kind: str, request) -> None:
    tokenizer = SentencePieceTokenizer(request.getfixturevalue(kind))
    arguments = json.loads(json.dumps(tokenizer.init_args()))  # plain data, as a checkpoint needs
    assert set(arguments) == {"model_base64"}
    assert kind == "foreign_model" or len(arguments["model_base64"]) < 10_000
    for copy in (SentencePieceTokenizer(**arguments), pickle.loads(pickle.dumps(tokenizer))):
        assert copy.tokens == tokenizer.tokens
        assert copy.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
        assert copy.blank_id == tokenizer.blank_id
    assert CharacterTokenizer(**CharacterTokenizer().init_args()).tokens == CharacterTokenizer().tokens


def test_sentencepiece_arguments_are_checked(tmp_path, model: str) -> None:
    with pytest.raises(InputError, match="exactly one"):
        SentencePieceTokenizer()
    with pytest.raises(InputError, match="exactly one"):
        SentencePieceTokenizer(model=model, model_base64="AAAA")
    with pytest.raises(InputError, match=r"nowhere\.model"):
        SentencePieceTokenizer(str(tmp_path / "nowhere.model"))
    (tmp_path / "text.model").write_text("no model")
    with pytest.raises(InputError, match=r"text\.model is not"):
        SentencePieceTokenizer(str(tmp_path / "text.model"))
    with pytest.raises(InputError, match="model_base64 is not"):
        SentencePieceTokenizer(model_base64="x")


@pytest.mark.parametrize(
    ("texts", "size", "reason"), [(TEXTS, 4000, "too high"), (TEXTS, 5, "5 vs"), (["", " "], 30, "none")]
)
def test_training_says_why_it_cannot(tmp_path, texts: list[str], size: int, reason: str, capfd) -> None:
    with pytest.raises(InputError, match=reason):
        train_sentencepiece(texts, size, tmp_path / "model")
    assert not capfd.readouterr().out


@given(WORDS)
def test_the_29_letters_write_english(text: str) -> None:
    tokenizer = LetterTokenizer()
    assert len(tokenizer) == len(set(tokenizer.tokens)) == 29
    assert tokenizer.decode(tokenizer.encode(text)) == " ".join(text.split())
    assert tokenizer.blank_id not in tokenizer.encode(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("I have a pen.", "I HAVE A PEN"), ("don’t — snake_case 3", "DON'T SNAKECASE"), ("Élan 가", "ELAN"), ("...", "")],
)
def test_the_29_letters_leave_everything_else_out(text: str, expected: str) -> None:
    assert LetterTokenizer().decode(LetterTokenizer().encode(text)) == expected
