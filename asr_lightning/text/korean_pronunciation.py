"""Pronunciations of Korean words for a lexicon: `korean_rules`, with alternatives where spelling is ambiguous.

The source is the Standard Pronunciation (표준 발음법); numbers in brackets are its articles. Alternatives are of two
kinds. Those that it allows:

* 의 as 이 after the first syllable, as 에 at the end of a word, where it may be a particle [5];
* ㅖ as ㅔ after any consonant but ㄹ: 시계, but not 차례 [5];
* 되어 as 되여, 아니오 as 아니요 [22]; 맛있다 as 마싣따 [15], 금융 as 그뮹 [29].

And those of which one is right, but spelling does not tell which:

* ㄷ ㅅ ㅈ after ㄹ is tense in Sino-Korean words (갈등, said 갈뜽 [26]), as is what follows the ending -ㄹ [27];
  it is always so in the endings of `_ENDING` (할수록 → 할쑤록), never in `NO_SINO_KOREAN`;
* ㄴㄹ may be ㄴㄴ before `SINO_KOREAN_L` (의견란, said 의견난 [20]);
* ㅅ may only mark a compound and is then silent (냇가, said 내까 or 낻까 [30]), except in `OWN_S`.

A dictionary is needed for the rest, which is left out but for the words in `RESPELLED`: ㄴ that is inserted between
the parts of a compound [29] other than before `N_INSERTED` (꽃잎 → 꼰닙); the first letter of its second part where
that is tense (문고리, said 문꼬리 [28]); a coda that is said before it is linked (밭아래, said 바다래 [15]), other than
before 있 and 없 (끝없이 → 끄덥씨). Morphology is needed for the tense ending after a verb's stem in ㄴ or ㅁ (신고,
said 신꼬 [24]). Length is not written [6, 7].
"""

import re
import unicodedata
from collections.abc import Iterator
from itertools import chain, combinations, islice, pairwise, product

from asr_lightning.errors import InputError
from asr_lightning.text.hangul import FINALS, MEDIALS, compose, decompose
from asr_lightning.text.korean_rules import CODAS, TENSE, Syllable, pronounce_by_rules

MOST = 12  # pronunciations of a word
INITIAL_PHONES = dict(
    zip("ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅈㅉㅊㅋㅌㅍㅎ", "g kk n d tt r m b pp s ss j jj ch k t p h".split(), strict=True)
)
CODA_PHONES = dict(zip("ㄱㄴㄷㄹㅁㅂㅇ", "kf nf tf lf mf pf ng".split(), strict=True))  # f: final, not released
VOWEL_PHONES = dict(  # ㅚ and ㅟ as diphthongs [article 4], so ㅚ is ㅞ
    zip(MEDIALS, "a ae ya yae eo e yeo ye o wa wae we yo u wo we wi yu eu ui i".split(), strict=True)
)
PHONES = tuple(dict.fromkeys([*INITIAL_PHONES.values(), *CODA_PHONES.values(), *VOWEL_PHONES.values()]))

OWN_S = "옷못맛멋빗붓벗웃씻짓잇갓곳것뜻낫솟앗엇덧헛첫풋꼿꿋굿럿릇섯셋넷젓옛뺏긋탓엿"  # with a ㅅ of their own
NO_SINO_KOREAN = "다더던든"  # begin endings and no Sino-Korean word: 알다 is never tense
FUTURE = "거것건걸겁게밖바"  # what -ㄹ may stand before, besides ㄷ ㅅ ㅈ [27]
SINO_KOREAN_L = "란량력령론료류례로"  # suffixes: 의견란, said 의견난 [20]
N_INSERTED = "잎|이불|여름|연필|윷|여섯|여덟"  # after a coda
RESPELLED = {  # beginnings of words, and spellings that the rules read right; the regular one first
    pair.split(":")[0]: pair.split(":")[1].split("/")
    for pair in (
        # [15]
        "맛있:마딨/마싰 멋있:머딨/머싰 겉옷:거돗 헛웃:허둣 젖어미:저더미 값어치:가버치 첫인상:처딘상 곧이어:고디어 "
        # [12], [16]
        "싫증:실쯩 디귿:디긋 지읒:지읏 치읓:치읏 키읔:키윽 티읕:티읏 피읖:피읍 히읗:히읏 "
        # [20]
        "의견란:의견난 임진란:임진난 생산량:생산냥 결단력:결딴녁 공권력:공꿘녁 동원령:동원녕 상견례:상견녜 "
        "횡단로:횡단노 이원론:이원논 입원료:입원뇨 구근류:구근뉴 음운론:음운논 판단력:판단녁 "
        # [29]
        "막일:막닐 삯일:삯닐 맨입:맨닙 내복약:내복냑 남존여비:남존녀비 신여성:신녀성 직행열차:직행녈차 "
        "늑막염:늑막념 콩엿:콩녓 담요:담뇨 눈요기:눈뇨기 영업용:영업뇽 식용유:식용뉴 백분율:백분뉼 설익:설닉 "
        "물약:물냑 불여우:불녀우 서울역:서울녁 물엿:물녓 휘발유:휘발뉴 유들유들:유들뉴들 "
        "검열:검녈/거멸 금융:금늉/그뮹 이죽이죽:이죽니죽/이죽이죽 야금야금:야금냐금/야금야금"
    ).split()
}

_WITH_CODA = "".join(chr(code) for code in range(0xAC00, 0xD7A4) if (code - 0xAC00) % 28)
_WITH_L = "".join(chr(code) for code in range(0xAC00 + FINALS.index("ㄹ"), 0xD7A4, 28))
_INSERTION = re.compile(f"(?<=[{_WITH_CODA}])(?:{N_INSERTED})")
_EXISTENCE = re.compile(f"[{_WITH_CODA}][있없]")
_ENDING = re.compile(f"(?<=[{_WITH_L}])(?:수록|지라도|지언정|진대|세라|걸요?|게요)$")  # of -ㄹ, whatever the stem [27]
_Choices = list[tuple[tuple[int, int, str], ...]]  # each some changes: index of the syllable, index in it, letter


def pronounce(word: str) -> str:
    """Return the pronunciation of a word by the rules.

    Args:
        word: Hangul syllables without spaces.

    Returns:
        As many syllables, spelled as they sound: 같이 → 가치. No coda but ㄱ ㄴ ㄷ ㄹ ㅁ ㅂ ㅇ.

    Raises:
        InputError: The word is empty or has another character than Hangul syllables.
    """
    return pronunciations(word)[0]


def pronunciations(word: str) -> tuple[str, ...]:
    """Return `pronounce(word)` and the alternatives to it, at most `MOST`, those that differ least first.

    Raises:
        InputError: The word is empty or has another character than Hangul syllables.
    """
    iterators = [_pronunciation_variants(pronounce_by_rules(spelling)) for spelling in _spellings(_check_hangul(word))]
    candidates = chain((next(iterator) for iterator in iterators), *iterators)
    return tuple(dict.fromkeys(islice(candidates, MOST)))


def phones(word: str) -> tuple[tuple[str, ...], ...]:
    """Return the `pronunciations` of a word as `PHONES`, without those that sound the same.

    Raises:
        InputError: The word is empty or has another character than Hangul syllables.
    """
    return tuple(dict.fromkeys(_phones(pronunciation) for pronunciation in pronunciations(word)))


def _phones(pronunciation: str) -> tuple[str, ...]:
    letters = [decompose(syllable) for syllable in pronunciation]
    triples = ((INITIAL_PHONES.get(i), VOWEL_PHONES[m], CODA_PHONES.get(f)) for i, m, f in letters)
    return tuple(phone for phone in chain.from_iterable(triples) if phone)


def _check_hangul(word: str) -> str:
    composed = unicodedata.normalize("NFC", word)
    wrong = next((character for character in composed if not "가" <= character <= "힣"), None)
    if wrong is not None or not composed:
        raise InputError(
            f"cannot pronounce {word!r}: expected Hangul syllables, got {wrong or 'none'!r}; "
            "spell it as it is said (K팝: 케이팝), or leave the word out"
        )
    return composed


def _spellings(word: str) -> list[str]:
    """Respell a word so that the rules give its pronunciation."""
    spellings = [word]
    for beginning, respellings in RESPELLED.items():
        if word.startswith(beginning):
            spellings = [spelling + word[len(beginning) :] for spelling in respellings]
    spellings = [_EXISTENCE.sub(_neutralize_coda, spelling) for spelling in spellings]
    spellings = [_INSERTION.sub(lambda match: _replace_initial(match[0], "ㄴ"), spelling) for spelling in spellings]
    return [
        _ENDING.sub(lambda match: _replace_initial(match[0], TENSE[decompose(match[0][0])[0]]), spelling)
        for spelling in spellings
    ]


def _neutralize_coda(match: re.Match[str]) -> str:
    """Neutralize a coda before it is linked to 있 or 없, which begin no particle or ending: 끝없 becomes 끄덦 [15]."""
    initial, medial, final = decompose(match[0][0])
    return match[0] if final == "ㅇ" else compose(initial, medial) + _replace_initial(match[0][1], CODAS[final])


def _replace_initial(text: str, initial: str) -> str:
    return compose(initial, *decompose(text[0])[1:]) + text[1:]


def _pronunciation_variants(syllables: list[Syllable]) -> Iterator[str]:
    """Yield the pronunciation by the rules, then with one choice changed, with two, and so on."""
    choices = [*_vowel_choices(syllables), *_consonant_choices(syllables)]
    for size in range(len(choices) + 1):
        for chosen in combinations(choices, size):
            for changes in product(*chosen):
                letters = [[syllable.initial, syllable.medial, syllable.final] for syllable in syllables]
                for index, slot, letter in chain.from_iterable(changes):
                    letters[index][slot] = letter
                yield "".join(compose(*letter_triple) for letter_triple in letters)


def _vowel_choices(syllables: list[Syllable]) -> Iterator[_Choices]:
    spelling, last = "".join(syllable.written for syllable in syllables), len(syllables) - 1
    for index, syllable in enumerate(syllables):
        initial, medial, final = decompose(syllable.written)
        previous = syllables[index - 1] if index else None
        after_front = (
            previous is not None and previous.medial in "ㅣㅚ" and not previous.final and syllable.initial == "ㅇ"
        )
        if initial == "ㅇ" and medial == "ㅢ" and previous:  # [5]
            yield [((index, 1, vowel),) for vowel in ("ㅣㅔ" if index == last and not final else "ㅣ")]
        elif medial == "ㅖ" and initial not in "ㅇㄴㄹ":  # [5]; ㄴ is written in none but in 상견녜 of `RESPELLED`
            yield [((index, 1, "ㅔ"),)]
        elif after_front and syllable.written in "어었":  # 되어, 되여 [22]
            yield [((index, 1, "ㅕ"),)]
        elif after_front and index == last and spelling.endswith(("이오", "아니오")):  # 아니오, 아니요 [22]
            yield [((index, 1, "ㅛ"),)]


def _consonant_choices(syllables: list[Syllable]) -> Iterator[_Choices]:
    for index, (left, right) in enumerate(pairwise(syllables)):
        initial, final = decompose(right.written)[0], decompose(left.written)[2]
        after_l = initial in "ㄷㅅㅈ" and right.written not in NO_SINO_KOREAN or right.written in FUTURE
        if right.initial in TENSE and (final == "ㄹ" and after_l or left.written == "삶"):  # 갈등 [26], 삶다 [24]
            yield [((index + 1, 0, TENSE[right.initial]),)]
        elif final == "ㅅ" and initial in TENSE and left.written not in OWN_S:  # 냇가 [30]
            yield [((index, 2, ""),)]
        elif index and final == "ㄴ" and right.written in SINO_KOREAN_L:  # 의견란 [20]
            yield [((index, 2, "ㄴ"), (index + 1, 0, "ㄴ"))]
