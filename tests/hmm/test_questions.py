import pytest

from asr_lightning.hmm.tree import ARPABET, phonetic_questions
from asr_lightning.text.lexicon import cmudict

PHONES = ["SIL", "SPN", "AA0", "AA1", "B", "IY0", "IY1", "IY2", "P", "S"]


def named(questions: list[frozenset[int]], phones: list[str]) -> set[str]:
    return {" ".join(phones[number - 1] for number in sorted(question)) for question in questions}


def test_classes_stresses_and_vowels_of_arpabet() -> None:
    questions = phonetic_questions(PHONES)
    assert len(questions) == len(set(questions))
    assert named(questions, PHONES) == {
        "AA0 AA1 IY0 IY1 IY2",  # vowels
        "IY0 IY1 IY2",  # IY, as the front and the high vowels
        "AA0 AA1",
        "B P",  # plosives, labials
        "B",  # voiced
        "P",
        "P S",  # voiceless
        "S",
        "AA0 IY0",  # without stress
        "AA1 IY1",
        "IY2",
        "SIL",
        "SPN",
    }


def test_every_phone_of_cmudict_is_a_vowel_or_a_consonant_of_some_class() -> None:
    phones = cmudict().phones
    vowels = set(ARPABET["vowel"].split())
    consonants = {phone for name, members in ARPABET.items() if "vowel" not in name for phone in members.split()}
    bases = {phone.rstrip("012") for phone in phones}
    assert {phone.rstrip("012") for phone in phones if phone[-1] in "012"} == vowels
    assert (
        bases - vowels <= consonants and {phone for members in ARPABET.values() for phone in members.split()} == bases
    )


def test_voiced_and_voiceless_part_the_consonants() -> None:
    voiced, voiceless = (set(ARPABET[name].split()) for name in ("voiced consonant", "voiceless"))
    assert not voiced & voiceless and len(voiced | voiceless) == 24


@pytest.mark.parametrize("phones", [["SIL", "SPN", "ɐ", "tʲ", "ʃ"], ["SIL", "SPN", "a", "k͈"]])
def test_of_foreign_phones_only_each_alone_is_asked_for(phones: list[str]) -> None:
    assert named(phonetic_questions(phones), phones) == set(phones)
