"""What a linguist would ask of a neighbouring phone."""

from collections.abc import Sequence

ARPABET = {
    "vowel": "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW",
    "front vowel": "AE EH EY IH IY",
    "back vowel": "AA AO OW UH UW",
    "high vowel": "IH IY UH UW",
    "low vowel": "AA AE AO AW AY",
    "rounded vowel": "AO OW OY UH UW",
    "diphthong": "AW AY EY OW OY",
    "plosive": "P B T D K G",
    "voiceless plosive": "P T K",
    "voiced plosive": "B D G",
    "affricate": "CH JH",
    "fricative": "F V TH DH S Z SH ZH HH",
    "voiceless fricative": "F TH S SH HH",
    "voiced fricative": "V DH Z ZH",
    "sibilant": "S Z SH ZH CH JH",
    "nasal": "M N NG",
    "liquid or glide": "L R W Y",
    "liquid": "L R ER",
    "glide": "W Y",
    "labial": "P B M F V W",
    "dental or alveolar": "T D N S Z L TH DH",
    "palatal": "SH ZH CH JH Y",
    "velar": "K G NG",
    "voiced consonant": "B D G JH V DH Z ZH M N NG L R W Y",
    "voiceless": "P T K CH F TH S SH HH",
}
STRESSES = "012"


def phonetic_questions(phones: Sequence[str]) -> list[frozenset[int]]:
    """Return sets of phone ids: classes of ARPAbet, stresses, and vowels without regard to stress.

    Of other alphabets only what is called as in ARPAbet is in them; there the data's own questions must do.

    Args:
        phones: Of a `HiddenMarkovModel`; ids count from 1.
    """
    bases = [phone.rstrip(STRESSES) for phone in phones]
    classes = [members.split() for members in ARPABET.values()] + [[base] for base in sorted(set(bases))]
    asked = [frozenset(id for id, base in enumerate(bases, 1) if base in members) for members in classes]
    asked += [frozenset(id for id, phone in enumerate(phones, 1) if phone.endswith(stress)) for stress in STRESSES]
    return list(dict.fromkeys(one for one in asked if one))
