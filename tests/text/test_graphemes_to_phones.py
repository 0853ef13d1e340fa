import math
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from asr_lightning.errors import InputError
from asr_lightning.text.graphemes_to_phones import JointSequenceModel
from asr_lightning.text.graphones import parse_graphone, write_graphone
from asr_lightning.text.lexicon import Lexicon, Phones, complete_lexicon
from asr_lightning.text.ngram import NGram
from asr_lightning.text.smoothing import kneser_ney, witten_bell

WHOLE = 10**6  # a beam that loses nothing
SOUNDS = {  # a planted orthography: letters that belong together, and how they sound; C before I and E is another sound
    "A": ("a",),
    "I": ("i",),
    "B": ("b",),
    "T": ("t",),
    "CH": ("tʃ",),
    "CA": ("k", "a"),
    "CI": ("s", "i"),
    "X": ("k", "s"),
    "SH": ("ʃ",),
    "S": ("s",),
    "QU": ("k", "w"),
}


def planted(count: int, seed: int) -> dict[str, tuple[Phones, ...]]:
    """Words of planted spellings; no S and H meet by chance, which would be read as SH."""
    generator = random.Random(seed)
    words = {}
    while len(words) < count:
        spellings = generator.choices(list(SOUNDS), k=generator.randint(2, 6))
        silent = generator.random() < 0.3
        if all(not (left == "S" and right[0] == "H") for left, right in zip(spellings, spellings[1:], strict=False)):
            words["".join(spellings) + "E" * silent] = (
                tuple(phone for spelling in spellings for phone in SOUNDS[spelling]),
            )
    return words


def all_readings(ngram: NGram, word: str) -> dict[Phones, float]:
    """The log probability of all pronunciations, summed over all ways to cut them."""
    graphones = [parse_graphone(token) for token in ngram.tokens if "}" in token]

    def ways(rest: str, inserted: bool) -> Iterator[list[tuple[str, Phones]]]:
        if not rest:
            yield []
        for letters, phones in graphones:
            if rest.startswith(letters) and not (inserted and not letters):
                for way in ways(rest[len(letters) :], not letters):
                    yield [(letters, phones), *way]

    totals: Counter[Phones] = Counter()
    for way in ways(word, False):
        phones = tuple(phone for _, part in way for phone in part)
        totals[phones] += math.exp(ngram.score([write_graphone(graphone) for graphone in way]))
    return {phones: math.log(total) for phones, total in totals.items() if phones}


def tiny_ngram(order: int) -> NGram:
    generator = random.Random(3)
    graphones = ["A}a", "A}", "B}b", "AB}b|a", "}a", "}b|a", "B}a"]
    sentences = [generator.choices(graphones, k=generator.randint(1, 5)) for _ in range(30)]
    return (witten_bell if order == 2 else kneser_ney)(sentences, order)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("word", ["A", "AB", "BAB", "ABA"])
def test_a_wide_beam_finds_all_pronunciations(order: int, word: str) -> None:
    ngram = tiny_ngram(order)
    expected = all_readings(ngram, word)
    candidates = JointSequenceModel(ngram, WHOLE).candidates(word)
    assert {candidate.phones for candidate in candidates} == expected.keys()
    total = sum(map(math.exp, expected.values()))
    for candidate in candidates:
        assert candidate.log_prob == pytest.approx(expected[candidate.phones], abs=1e-9)
        assert candidate.share == pytest.approx(math.exp(expected[candidate.phones]) / total, rel=1e-9)
    assert [candidate.log_prob for candidate in candidates] == sorted(
        (candidate.log_prob for candidate in candidates), reverse=True
    )


def test_a_narrow_beam_finds_the_best_of_all() -> None:
    ngram = tiny_ngram(3)
    for word in ("A", "B", "AB", "BA", "ABA", "BAB"):
        expected = all_readings(ngram, word)
        assert JointSequenceModel(ngram, 16)(word) == (max(expected, key=lambda phones: expected[phones]),)


def test_variants_are_the_best_pronunciations() -> None:
    ngram = tiny_ngram(3)
    expected = all_readings(ngram, "ABA")
    best = sorted(expected, key=lambda phones: -expected[phones])[:4]
    assert JointSequenceModel(ngram, WHOLE, variants=4)("ABA") == tuple(best)


@pytest.mark.parametrize(("letters", "phones"), [(2, 2), (2, 1), (1, 2)])
def test_a_planted_orthography_is_learnt_and_holds_for_new_words(letters: int, phones: int) -> None:
    words = planted(700, seed=1)
    model = JointSequenceModel.train(Lexicon(words), letters=letters, phones=phones)
    unseen = {word: pronunciations for word, pronunciations in planted(300, seed=2).items() if word not in words}
    assert len(unseen) > 150
    for lexicon in (words, unseen):
        wrong = {word: model(word) for word, pronunciations in lexicon.items() if model(word) != pronunciations}
        assert not wrong
    assert model.candidates("CHACI")[0].share > 0.9


def test_several_pronunciations_are_as_probable_as_they_are_frequent() -> None:
    ends = ["BA", "TA", "SI", "BI", "TI", "SA", "AB", "IT", "AS", "AX", "IX", "AT"]
    initials = [("O",), ("o",), ("o",)]  # twice as often
    words = {
        f"O{left}{right}": (initials[(row + column) % 3] + sum((SOUNDS[letter] for letter in left + right), ()),)
        for row, left in enumerate(ends)
        for column, right in enumerate(ends)
    }
    model = JointSequenceModel.train(Lexicon(words), order=2, variants=2)
    first, second = model.candidates("OBATI")[:2]
    assert (first.phones, second.phones) == (("o", "b", "a", "t", "i"), ("O", "b", "a", "t", "i"))
    assert first.share / second.share == pytest.approx(2, rel=0.2)
    assert model("OBATI") == (first.phones, second.phones)


def test_words_are_read_in_capitals_and_nfc() -> None:
    model = JointSequenceModel.train(Lexicon({"CÔTE": (("k", "o", "t"),), "TE": (("t",),), "ÔC": (("o", "k"),)}), 2)
    assert model("co\N{COMBINING CIRCUMFLEX ACCENT}te") == model("CÔTE") == (("k", "o", "t"),)


def test_letters_that_were_never_seen_are_told_with_the_word() -> None:
    model = JointSequenceModel.train(Lexicon(planted(50, seed=1)))
    with pytest.raises(InputError, match="no pronunciation of 'BAZ': .*ABCEHIQSTUX.*, found 'Z'; leave the word out"):
        model("BAZ")
    with pytest.raises(InputError, match="found an empty one"):
        model("")
    completed, left_out = complete_lexicon(Lexicon({}), ["BAT", "BAZ"], model)
    assert completed.pronunciations == {"BAT": (("b", "a", "t"),)}
    assert left_out == {"BAZ": 1}


def test_a_letter_that_only_comes_in_pairs_is_read_by_itself_too() -> None:
    model = JointSequenceModel.train(Lexicon(planted(300, seed=1)))
    assert model("BAQU") == (("b", "a", "k", "w"),)
    assert model.candidates("BAQ")[0].phones[:2] == ("b", "a")
    assert model.candidates("UQUH")


def test_silence_and_noise_are_no_pronunciations() -> None:
    words = planted(50, seed=1)
    noise = {"<UNK>": (("SPN",),), "!SIL": (("SIL",),), "[LAUGHTER]": (("spn",),)}
    model = JointSequenceModel.train(Lexicon(words | noise))
    assert model.ngram.tokens == JointSequenceModel.train(Lexicon(words)).ngram.tokens
    with pytest.raises(InputError, match="expected words with pronunciations"):
        JointSequenceModel.train(Lexicon(noise))


@pytest.mark.parametrize("name", ["g2p.arpa", "g2p.arpa.gz"])
def test_the_file_is_the_model(tmp_path: Path, name: str) -> None:
    words = planted(100, seed=1)
    words["X-RAY"] = (("e", "k", "s"),)
    model = JointSequenceModel.train(Lexicon(words), order=4)
    model.write(tmp_path / name)
    same = JointSequenceModel.read(tmp_path / name, variants=2)
    for word in planted(20, seed=2):
        for expected, candidate in zip(model.candidates(word), same.candidates(word), strict=True):
            assert expected.phones == candidate.phones
            assert expected.log_prob == pytest.approx(candidate.log_prob, abs=1e-6)
        assert same(word)[0] == model(word)[0]
        assert len(same(word)) == 2


def test_the_same_lexicon_gives_the_same_file(tmp_path: Path) -> None:
    words = planted(100, seed=1)
    for name, entries in (("one", words), ("other", dict(reversed(words.items())))):
        JointSequenceModel.train(Lexicon(entries), order=3).write(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


@pytest.mark.parametrize("token", ["PH", "}", "A}}B", "A}B|", "A}|B", "A}B||C"])
def test_other_tokens_are_no_graphones(tmp_path: Path, token: str) -> None:
    with pytest.raises(InputError, match="expected graphones as 'PH}F' or 'X}K|S', found the token"):
        parse_graphone(token)
    path = tmp_path / "words.arpa"
    JointSequenceModel(tiny_ngram(2)).write(path)
    path.write_text(path.read_text().replace("AB}b|a", token))
    with pytest.raises(InputError, match=f"^{path}: expected graphones"):
        JointSequenceModel.read(path)


@pytest.mark.parametrize(("word", "phones"), [("A}B", ("a",)), ("A", ("a|b",)), ("A", ("a}",))])
def test_marks_of_the_format_cannot_be_learnt(word: str, phones: Phones) -> None:
    with pytest.raises(InputError, match="leave the word out of the lexicon"):
        JointSequenceModel.train(Lexicon({"BA": (("b", "a"),), word: (phones,)}), 1)


def test_a_model_of_other_things_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected graphones with letters in the n-gram model, found none"):
        JointSequenceModel(kneser_ney([["}a", "}b"]], 2))
    with pytest.raises(InputError, match="a beam and variants of 1 or more, got 0 and 1"):
        JointSequenceModel(tiny_ngram(2), 0)
    with pytest.raises(InputError, match="cannot read the language model"):
        JointSequenceModel.read(tmp_path / "none.arpa")
