"""The rules of the Standard Pronunciation (표준 발음법) of Korean, as far as the spelling of a word decides them.

`RULES` are applied to each pair of neighbours within a word, from left to right, in the order below; then `_vowels`.

| rule            | articles | what it does                                                                           |
|-----------------|----------|----------------------------------------------------------------------------------------|
| `_palatalize`   | 17       | 굳이 → 구지, 붙여 → 부처, 닫히다 → 다치다                                              |
| `_aspirate`     | 12       | 좋다 → 조타, 먹히다 → 머키다, 닿소 → 다쏘; ㅎ falls before a vowel, 많아 → 마나        |
| `_link`         | 13, 14   | 옷이 → 오시, 값을 → 갑쓸                                                               |
| `_tense`        | 23, 25   | 국밥 → 국빱, 넓게 → 널께; of 24 what the spelling shows, 앉고 → 안꼬, 닮고 → 담꼬      |
| `_simplify`     | 8 – 11   | seven codas: 부엌 → 부억, 값 → 갑, 읽다 → 익따; 읽고 → 일꼬, 밟다 → 밥따               |
| `_nasalize`     | 18, 19   | 국물 → 궁물, 독립 → 동닙, 담력 → 담녁                                                  |
| `_lateralize`   | 20       | 난로 → 날로, 칼날 → 칼랄                                                               |
| `_vowels`       | 5        | 가져 → 가저 (after ㅈ ㅉ ㅊ no glide is spoken), 희망 → 히망                           |

Where spelling does not decide:

* ㄺ before ㄱ is ㄹ in verbs (맑게 → 말께) and ㄱ in nouns (닭과 → 닥꽈); what follows ㄻ ㄼ is tense in verbs only
  (젊지 → 점찌, 삶과 → 삼과). Here the syllables `NOUNS` are taken for nouns, all others for verbs.
* ㅈ ㄵ ㄺ ㄼ before 히 and 혀 are taken for verbs (밝히다 → 발키다; but 흙하고 → 흐카고, 낮하고 → 나타고).
* ㄷ ㅌ before 이 and 여 palatalize, as before particles and suffixes: compounds (밭이랑, said 반니랑) are wrong.
"""

from dataclasses import dataclass
from itertools import pairwise

from asr_lightning.text.hangul import decompose

TENSE = dict(zip("ㄱㄷㅂㅅㅈ", "ㄲㄸㅃㅆㅉ", strict=True))
ASPIRATED = dict(zip("ㄱㄷㅂㅈ", "ㅋㅌㅍㅊ", strict=True))
NASAL = dict(zip("ㄱㄷㅂ", "ㅇㄴㅁ", strict=True))
WITHOUT_GLIDE = dict(zip("ㅑㅒㅕㅖㅛㅠ", "ㅏㅐㅓㅔㅗㅜ", strict=True))
CODAS = {
    final: coda
    for coda, finals in zip(
        "ㄱㄴㄷㄹㅁㅂㅇ", "ㄱㄲㅋㄳㄺ ㄴㄵㄶ ㄷㅅㅆㅈㅊㅌㅎ ㄹㄼㄽㄾㅀ ㅁㄻ ㅂㅍㄿㅄ ㅇ".split(), strict=True
    )
    for final in finals
}
STAY_AND_GO = {  # of two final letters before a vowel: the one that stays, the one that goes on
    letters[0]: (letters[1], letters[2])
    for letters in "ㄳㄱㅆ ㄵㄴㅈ ㄺㄹㄱ ㄻㄹㅁ ㄼㄹㅂ ㄽㄹㅆ ㄾㄹㅌ ㄿㄹㅍ ㅄㅂㅆ".split()
}
PALATALIZED = {"ㄷ": ("", "ㅈ"), "ㅌ": ("", "ㅊ"), "ㄾ": ("ㄹ", "ㅊ")}
WITH_H = {"ㅎ": "", "ㄶ": "ㄴ", "ㅀ": "ㄹ"}  # what stays when ㅎ goes
BEFORE_HI = {"ㅈ": ("", "ㅊ"), "ㄵ": ("ㄴ", "ㅊ"), "ㄺ": ("ㄹ", "ㅋ"), "ㄼ": ("ㄹ", "ㅍ")}

NOUNS = "닭탉흙칡삵슭삶앎덟"  # syllables in ㄺ ㄻ ㄼ of nouns, not of verbs (수탉, 기슭, 여덟)
CAUSATIVES = "굶옮곪"  # 굶기다 is not tense [24]


@dataclass
class Syllable:
    """A syllable between spelling and pronunciation.

    Attributes:
        written: As it was; never changes.
        initial: Its first letter; ㅇ is none.
        medial: Its vowel.
        final: Its last letters; empty if there are none.
    """

    written: str
    initial: str
    medial: str
    final: str

    @property
    def is_suffix(self) -> bool:
        """Whether it may be 이 or 히 of particles and suffixes, or their 여 and 혀."""
        return self.medial == "ㅣ" or (self.medial == "ㅕ" and self.final in ("", "ㅆ"))


def _palatalize(left: Syllable, right: Syllable) -> None:
    if left.final in PALATALIZED and right.is_suffix and right.initial in "ㅇㅎ":
        left.final, initial = PALATALIZED[left.final]
        right.initial = initial if right.initial == "ㅇ" else "ㅊ"


def _aspirate(left: Syllable, right: Syllable) -> None:
    if left.final in WITH_H and (left.final != "ㅎ" or right.initial in "ㄱㄷㅈㅅㅇ"):
        left.final = WITH_H[left.final]
        right.initial = {"ㄱ": "ㅋ", "ㄷ": "ㅌ", "ㅈ": "ㅊ", "ㅅ": "ㅆ"}.get(right.initial, right.initial)
    elif left.final and right.initial == "ㅎ":
        if left.final in BEFORE_HI and right.is_suffix:
            left.final, right.initial = BEFORE_HI[left.final]
        elif (coda := CODAS[left.final]) in ASPIRATED:
            left.final, right.initial = "", ASPIRATED[coda]


def _link(left: Syllable, right: Syllable) -> None:
    if right.initial == "ㅇ" and left.final not in ("", "ㅇ"):
        left.final, right.initial = STAY_AND_GO.get(left.final, ("", left.final))


def _tense(left: Syllable, right: Syllable) -> None:
    verb = left.final in ("ㄵ", "ㄻ", "ㄼ", "ㄾ") and left.written not in NOUNS and right.initial != "ㅂ"
    if left.written in CAUSATIVES and right.initial == "ㄱ" and right.is_suffix:
        verb = False
    if verb or CODAS.get(left.final) in NASAL:
        right.initial = TENSE.get(right.initial, right.initial)


def _simplify(left: Syllable, right: Syllable | None) -> None:
    if right and (left.written == "밟" or (left.written == "넓" and right.written in "죽둥적")) and left.final == "ㄼ":
        left.final = "ㅂ"
    elif right and decompose(right.written)[0] == "ㄱ" and left.final == "ㄺ" and left.written not in NOUNS:
        left.final = "ㄹ"
    elif left.final:
        left.final = CODAS[left.final]


def _nasalize(left: Syllable, right: Syllable) -> None:
    if right.initial == "ㄹ" and left.final in ("ㄱ", "ㄷ", "ㅂ", "ㅁ", "ㅇ"):
        right.initial = "ㄴ"
    if right.initial in "ㄴㅁ":
        left.final = NASAL.get(left.final, left.final)


def _lateralize(left: Syllable, right: Syllable) -> None:
    if {left.final, right.initial} == {"ㄴ", "ㄹ"}:
        left.final = right.initial = "ㄹ"


def _vowels(syllable: Syllable) -> None:
    if syllable.medial == "ㅢ" and decompose(syllable.written)[0] != "ㅇ":
        syllable.medial = "ㅣ"
    if syllable.initial in "ㅈㅉㅊ":
        syllable.medial = WITHOUT_GLIDE.get(syllable.medial, syllable.medial)


RULES = (_palatalize, _aspirate, _link, _tense, _simplify, _nasalize, _lateralize)


def pronounce_by_rules(spelling: str) -> list[Syllable]:
    """Return the pronunciation of a word by `RULES`.

    Args:
        spelling: Hangul syllables, at least one.

    Returns:
        As many syllables, spelled as they sound; no final but ㄱ ㄴ ㄷ ㄹ ㅁ ㅂ ㅇ.
    """
    syllables = [Syllable(written, *decompose(written)) for written in spelling]
    for left, right in pairwise(syllables):
        for rule in RULES:
            rule(left, right)
    _simplify(syllables[-1], None)
    for syllable in syllables:
        _vowels(syllable)
    return syllables
