"""Against the standard's own examples (표준 발음법) and others that follow from its articles."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr_lightning.errors import InputError
from asr_lightning.text.hangul import compose, decompose
from asr_lightning.text.korean_pronunciation import (
    CODA_PHONES,
    INITIAL_PHONES,
    MOST,
    PHONES,
    VOWEL_PHONES,
    phones,
    pronounce,
    pronunciations,
)
from asr_lightning.text.korean_rules import pronounce_by_rules

STANDARD = {  # by article
    "5 vowels": (
        "가져:가저 쪄:쩌 다쳐:다처 묻혀:무처 무늬:무니 띄어쓰기:띠어쓰기 희망:히망 유희:유히 늴리리:닐리리 의사:의사"
    ),
    "8, 9 codas": (
        "닦다:닥따 부엌:부억 키읔과:키윽꽈 옷:옫 웃다:욷따 있다:읻따 젖:젇 꽃:꼳 쫓다:쫃따 솥:솓 앞:압 덮다:덥따"
    ),
    "10 clusters": "넋:넉 넋과:넉꽈 앉다:안따 여덟:여덜 넓다:널따 외곬:외골 핥다:할따 값:갑 없다:업따",
    "10 밟, 넓": (
        "밟다:밥따 밟소:밥쏘 밟는:밤는 밟게:밥께 짓밟고:짇빱꼬 밟아:발바 넓죽하다:넙쭈카다 넓둥글다:넙뚱글다"
    ),
    "11 clusters": "닭:닥 흙과:흑꽈 맑다:막따 늙지:늑찌 삶:삼 젊다:점따 읊고:읍꼬 맑게:말께 묽고:물꼬 얽거나:얼꺼나",
    "12.1 ㅎ before": "놓고:노코 좋던:조턴 쌓지:싸치 많고:만코 않던:안턴 닳지:달치 좋다:조타",
    "12.1 ㅎ behind": (
        "각하:가카 먹히다:머키다 밝히다:발키다 맏형:마텽 좁히다:조피다 넓히다:널피다 밟히다:발피다 꽂히다:꼬치다 "
        "앉히다:안치다 숱하다:수타다 못하다:모타다 꽃향기:꼬턍기 잊혀:이처 읽혔다:일켣따 흙하고:흐카고 "
        "여덟하고:여덜하고"
    ),
    "12.2 – 12.4 ㅎ": (
        "닿소:다쏘 많소:만쏘 싫소:실쏘 놓는:논는 쌓네:싼네 않네:안네 뚫네:뚤레 낳은:나은 놓아:노아 쌓이다:싸이다 "
        "많아:마나 않은:아는 닳아:다라 싫어도:시러도 전화:전화"
    ),
    "13 linking": (
        "깎아:까까 옷이:오시 있어:이써 낮이:나지 꽂아:꼬자 꽃을:꼬츨 쫓아:쪼차 밭에:바테 앞으로:아프로 "
        "덮이다:더피다 강아지:강아지"
    ),
    "14 linking clusters": (
        "넋이:넉씨 앉아:안자 닭을:달글 젊어:절머 곬이:골씨 핥아:할타 읊어:을퍼 값을:갑쓸 없어:업써 값이:갑씨"
    ),
    "15 compounds": (
        "젖어미:저더미 맛없다:마덥따 겉옷:거돋 겉옷이:거도시 헛웃음:허두슴 값어치:가버치 값있는:가빈는 "
        "끝없이:끄덥씨 뜻있는:뜨딘는 멋없다:머덥따 넋없이:너겁씨 상있다:상읻따 곧이어:고디어 싫증:실쯩"
    ),
    "16 letters": (
        "디귿이:디그시 지읒을:지으슬 치읓에:치으세 키읔이:키으기 티읕을:티으슬 피읖이:피으비 히읗에:히으세 히읗:히읃"
    ),
    "17 palatals": (
        "곧이듣다:고지듣따 굳이:구지 미닫이:미다지 땀받이:땀바지 밭이:바치 벼훑이:벼훌치 굳히다:구치다 "
        "닫히다:다치다 묻히다:무치다 닫혀:다처 갇혔다:가첟따 같이:가치 붙여:부처 붙임:부침 해돋이:해도지"
    ),
    "18 nasals": (
        "먹는:멍는 국물:궁물 깎는:깡는 키읔만:키응만 몫몫이:몽목씨 긁는:긍는 흙만:흥만 닫는:단는 짓는:진는 "
        "있는:인는 맞는:만는 쫓는:쫀는 꽃망울:꼰망울 붙는:분는 잡는:잠는 앞마당:암마당 읊는:음는 없는:엄는 "
        "합니다:함니다"
    ),
    "19 ㄹ as ㄴ": (
        "담력:담녁 침략:침냑 강릉:강능 항로:항노 대통령:대통녕 막론:망논 백리:뱅니 협력:혐녁 십리:심니 독립:동닙 "
        "몇리:면니"
    ),
    "20 ㄹㄹ": (
        "난로:날로 신라:실라 천리:철리 광한루:광할루 대관령:대괄령 칼날:칼랄 물난리:물랄리 할는지:할른지 "
        "닳는:달른 핥네:할레 넓네:널레"
    ),
    "20 ㄴㄴ": (
        "의견란:의견난 임진란:임진난 생산량:생산냥 결단력:결딴녁 공권력:공꿘녁 동원령:동원녕 상견례:상견녜 "
        "횡단로:횡단노 이원론:이원논 입원료:이붠뇨 구근류:구근뉴 생산량이:생산냥이"
    ),
    "21 no more": "감기:감기 옷감:옫깜 있고:읻꼬 꽃길:꼳낄 젖먹이:전머기 꽃밭:꼳빧 신발:신발",
    "23 tense": (
        "국밥:국빱 넋받이:넉빠지 삯돈:삭똔 닭장:닥짱 칡범:칙뻠 뻗대다:뻗때다 옷고름:옫꼬름 낯설다:낟썰다 "
        "밭갈이:받까리 솥전:솓쩐 곱돌:곱똘 옆집:엽찝 읊조리다:읍쪼리다 값지다:갑찌다 학교:학꾜 읽다:익따"
    ),
    "24, 25 tense stems": (
        "앉고:안꼬 얹다:언따 닮고:담꼬 젊지:점찌 굶기다:굼기다 옮겨:옴겨 넓게:널께 훑소:훌쏘 떫지:떨찌"
    ),
    "24, 25 nouns": "여덟도:여덜도 삶과:삼과 앎도:암도 닭과:닥꽈",
    "27 tense endings": "할수록:할쑤록 할지라도:할찌라도 할지언정:할찌언정 할진대:할찐대 할세라:할쎄라 할걸:할껄",
    "29 inserted ㄴ": (
        "꽃잎:꼰닙 꽃잎이:꼰니피 나뭇잎:나문닙 깻잎:깬닙 솔잎:솔립 솜이불:솜니불 홑이불:혼니불 한여름:한녀름 "
        "색연필:생년필 열여섯:열려섣 맨입:맨닙 내복약:내봉냑 직행열차:지캥녈차 늑막염:능망념 담요:담뇨 "
        "식용유:시굥뉴 백분율:백뿐뉼 설익다:설릭따 서울역:서울력 휘발유:휘발류 영업용:영엄뇽"
    ),
}
ALTERNATIVES = {
    "5": (
        "계집:계집/게집 시계:시계/시게 지혜:지혜/지헤 차례:차례 예의:예의/예이/예에 주의:주의/주이/주에 "
        "협의:혀븨/혀비/혀베 우리의:우리의/우리이/우리에 강의의:강의의/강이의/강의이/강의에/강이이/강이에 "
        "의의를:의의를/의이를 의:의 의자:의자"
    ),
    "15": "맛있다:마딛따/마싣따 멋있는:머딘는/머신는",
    "20": "기관료:기괄료/기관뇨 광한루:광할루 난로:날로 생산량:생산냥",
    "22": "되어:되어/되여 피었다:피얻따/피엳따 이오:이오/이요 아니오:아니오/아니요 오이:오이",
    "24": "삶다:삼다/삼따",
    "26": "갈등:갈등/갈뜽 물질:물질/물찔 알다:알다 달던:달던 발가락:발가락",
    "27": "할게:할게/할께 할밖에:할바께/할빠께",
    "29": "금융:금늉/그뮹 검열:검녈/거멸",
    "30": "냇가:낻까/내까 햇살:핻쌀/해쌀 콧날:콘날 옷감:옫깜 있다:읻따",
}
CODA_OF = dict.fromkeys("ㄲㅋㄳㄺ", "ㄱ") | dict.fromkeys("ㄵㄶ", "ㄴ") | dict.fromkeys("ㅅㅆㅈㅊㅌㅎ", "ㄷ")
CODA_OF |= (
    dict.fromkeys("ㄼㄽㄾㅀ", "ㄹ")
    | dict.fromkeys("ㅍㄿㅄ", "ㅂ")
    | {"ㄻ": "ㅁ"}
    | {letter: letter for letter in "ㄱㄴㄷㄹㅁㅂㅇ"}
)
INITIALS = "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ"
MEETINGS = {  # of the seven codas with the initials
    "ㄱ": "악까 악까 앙나 악따 악따 앙나 앙마 악빠 악빠 악싸 악싸 아가 악짜 악짜 악차 악카 악타 악파 아카",
    "ㄴ": "안가 안까 안나 안다 안따 알라 안마 안바 안빠 안사 안싸 아나 안자 안짜 안차 안카 안타 안파 안하",
    "ㄷ": "앋까 앋까 안나 앋따 앋따 안나 안마 앋빠 앋빠 앋싸 앋싸 아다 앋짜 앋짜 앋차 앋카 앋타 앋파 아타",
    "ㄹ": "알가 알까 알라 알다 알따 알라 알마 알바 알빠 알사 알싸 아라 알자 알짜 알차 알카 알타 알파 알하",
    "ㅁ": "암가 암까 암나 암다 암따 암나 암마 암바 암빠 암사 암싸 아마 암자 암짜 암차 암카 암타 암파 암하",
    "ㅂ": "압까 압까 암나 압따 압따 암나 암마 압빠 압빠 압싸 압싸 아바 압짜 압짜 압차 압카 압타 압파 아파",
    "ㅇ": "앙가 앙까 앙나 앙다 앙따 앙나 앙마 앙바 앙빠 앙사 앙싸 앙아 앙자 앙짜 앙차 앙카 앙타 앙파 앙하",
}
FINALS = ["", *CODA_OF]
MEDIALS = "ㅏㅐㅑㅒㅓㅔㅕㅖㅗㅘㅙㅚㅛㅜㅝㅞㅟㅠㅡㅢㅣ"
WORDS = st.text(st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3), min_size=1, max_size=6)


def rows(table: dict[str, str]) -> list[tuple[str, str, str]]:
    return [(article, *pair.split(":")) for article, pairs in table.items() for pair in pairs.split()]


@pytest.mark.parametrize(("article", "word", "pronunciation"), rows(STANDARD))
def test_words_are_said_as_the_standard_says(article: str, word: str, pronunciation: str) -> None:
    assert pronounce(word) == pronunciation


@pytest.mark.parametrize(("article", "word", "pronunciation"), rows(ALTERNATIVES))
def test_alternatives_and_no_others(article: str, word: str, pronunciation: str) -> None:
    assert "/".join(pronunciations(word)) == pronunciation


@pytest.mark.parametrize("final", list(CODA_OF))
def test_codas_meet_initials_as_in_the_table(final: str) -> None:
    """Final letters are their codas, but for those that have more to say."""
    for initial, expected in zip(INITIALS, MEETINGS[CODA_OF[final]].split(), strict=True):
        tense_behind_verbs = final in "ㄵㄻㄼㄾ" and initial in "ㄱㄷㅅㅈ"
        h = final in "ㄶㅀ" or (final == "ㅎ" and initial in "ㄱㄷㅈㅅ")
        if initial == "ㅇ" and final not in "ㄱㄴㄷㄹㅁㅂㅇ":
            continue
        if not (tense_behind_verbs or h or (final, initial) == ("ㄺ", "ㄱ")):
            assert pronounce(compose("ㅇ", "ㅏ", final) + compose(initial, "ㅏ")) == expected


@pytest.mark.parametrize("final", FINALS)
def test_every_final_and_initial_meet_in_a_form_that_can_be_said(final: str) -> None:
    for initial in INITIALS:
        for medial in MEDIALS:
            word = compose("ㅅ", "ㅜ", final) + compose(initial, medial)
            for pronunciation in pronunciations(word):
                assert len(pronunciation) == 2
                assert_can_be_said(pronunciation)


@given(WORDS)
def test_all_words_come_out_as_they_can_be_said(word: str) -> None:
    assert len(pronounce(word)) == len(word)
    for pronunciation in pronunciations(word):
        assert_can_be_said(pronunciation)


def assert_can_be_said(pronunciation: str) -> None:
    letters = [decompose(syllable) for syllable in pronunciation]
    for _, _, coda in letters:
        assert coda in ("", *"ㄱㄴㄷㄹㅁㅂㅇ")
    for (_, _, coda), (initial, medial, _) in zip(letters, letters[1:], strict=False):
        if coda:
            assert compose("ㅇ", "ㅏ", coda) + compose(initial, "ㅏ") in MEETINGS[coda].split()
        if initial in "ㅈㅉㅊ":
            assert medial not in "ㅑㅒㅕㅖㅛㅠ"


@given(WORDS)
def test_by_the_rules_what_is_said_is_said_as_it_is_spelled(word: str) -> None:
    pronunciation = by_rule(word)
    without_ui = [
        (i, "ㅣ" if m == "ㅢ" and i != "ㅇ" else m, f) for i, m, f in map(decompose, pronunciation)
    ]  # 협의: 혀븨
    assert by_rule(pronunciation) == "".join(compose(*letters) for letters in without_ui)


def by_rule(spelling: str) -> str:
    return "".join(
        compose(syllable.initial, syllable.medial, syllable.final) for syllable in pronounce_by_rules(spelling)
    )


@given(WORDS)
def test_phones_are_those_of_the_pronunciations(word: str) -> None:
    """Phones are spelled back into syllables: an initial or none, a vowel, a coda or none."""
    merged = [pronunciation.translate(str.maketrans(SAME)) for pronunciation in pronunciations(word)]
    assert [spelled(sequence) for sequence in phones(word)] == list(dict.fromkeys(merged))


SAME = {compose(i, "ㅚ", f): compose(i, "ㅞ", f) for i in INITIALS for f in ["", *"ㄱㄴㄷㄹㅁㅂㅇ"]}
LETTERS = [{phone: letter for letter, phone in table.items()} for table in (INITIAL_PHONES, VOWEL_PHONES, CODA_PHONES)]


def spelled(sequence: tuple[str, ...]) -> str:
    initials, vowels, codas = LETTERS
    syllables, initial = [], "ㅇ"
    for phone in sequence:
        if phone in vowels:
            syllables.append([initial, vowels[phone], ""])
            initial = "ㅇ"
        elif phone in codas:
            syllables[-1][2] = codas[phone]
        else:
            initial = initials[phone]
    return "".join(compose(*letters) for letters in syllables)


def test_phones() -> None:
    assert len(PHONES) == len(set(PHONES)) == 18 + 7 + 20
    assert phones("독립") == (("d", "o", "ng", "n", "i", "pf"),)
    assert phones("읽다") == (("i", "kf", "tt", "a"),)
    assert phones("시계") == (("s", "i", "g", "ye"), ("s", "i", "g", "e"))
    assert phones("과외") == phones("과웨") == (("g", "wa", "we"),)
    assert phones("되어") == (("d", "we", "eo"), ("d", "we", "yeo"))


def test_a_word_has_not_endless_alternatives() -> None:
    alternatives = pronunciations("의" * 40)
    assert len(alternatives) == len(set(alternatives)) == MOST
    assert alternatives[:2] == ("의" * 40, "의이" + "의" * 38)


@pytest.mark.parametrize(
    ("word", "character"),
    [("K팝", "'K'"), ("3개", "'3'"), ("ㅋㅋ", "'ㅋ'"), ("집 에", "' '"), ("한국語", "'語'"), ("", "none")],
)
def test_other_characters_are_named(word: str, character: str) -> None:
    for function in (pronounce, pronunciations, phones):
        with pytest.raises(InputError, match=f"{word!r}.*Hangul.*{character}"):
            function(word)


def test_syllables_may_be_written_as_their_letters() -> None:
    assert pronounce(unicodedata.normalize("NFD", "값이")) == "갑씨"
