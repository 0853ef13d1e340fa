"""The script of the embedded Korean corpus: a small grammar, KsponSpeech's annotation, and voices."""

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from asr_lightning.text.korean import normalize_korean
from data_modules.synthesis import ScriptLine, Speaker

_FOLDER = 1_000  # utterances, as in KsponSpeech

# Numbers and foreign words are dual transcriptions, as they are written and as they are said.
_CLASSES: dict[str, list[str]] = {
    name: [entry.strip() for entry in words.split("," if "," in words else " ") if entry.strip()]
    for name, words in {
        "person": "선생님 아이 친구 어머니 아버지 할머니 의사 농부 동생 누나 삼촌 가수 화가 학생 이모 손님",
        "animal": "강아지 고양이 토끼 말 오리 여우 곰 사자 나비 돼지",
        "thing": "책 편지 의자 책상 가방 모자 시계 우산 사진 연필 접시 신발 열쇠 그림 지도 거울 바구니 이불 상자 공",
        "food": "빵 밥 우유 커피 사과 국수 과일 고기 김치 포도 감자 두부",
        "place": "집 학교 시장 공원 바다 병원 도서관 교회 마을 다리 마당 극장 식당 농장",
        "when": "어제 오늘 아침에 저녁에 주말에 밤에 봄에 여름에 가을에 겨울에",
        "how": "천천히 빨리 조용히 다시 자주 가끔 혼자 같이 열심히 몰래",
        "did": "샀어 팔았어 찾았어 잃어버렸어 그렸어 고쳤어 숨겼어 던졌어 보냈어 버렸어 빌렸어 주웠어",
        "ate": "먹었어 만들었어 나눴어 시켰어 남겼어",
        "went": "잤어 웃었어 울었어 뛰었어 걸었어 노래했어 일했어 쉬었어 춤췄어 기다렸어",
        "what": "작은 큰 예쁜 오래된 빨간 파란 하얀 검은 무거운 가벼운 낡은 비싼",
        "weather": "비가 온다,눈이 내린다,바람이 분다,날씨가 춥다,날씨가 덥다,하늘이 맑다,안개가 많다",
        "hour": """(1시)/(한 시),(2시)/(두 시),(3시)/(세 시),(4시)/(네 시),(5시)/(다섯 시),(6시)/(여섯 시),
            (7시)/(일곱 시),(8시)/(여덟 시),(9시)/(아홉 시),(10시)/(열 시),(12시)/(열두 시)""",
        "count": """(2개)/(두 개),(3개)/(세 개),(4개)/(네 개),(5개)/(다섯 개),(7개)/(일곱 개),(10개)/(열 개),
            (20개)/(스무 개)""",
        "month": """(1월)/(일 월),(3월)/(삼 월),(4월)/(사 월),(5월)/(오 월),(7월)/(칠 월),(8월)/(팔 월),
            (10월)/(시 월)""",
        "price": """(500원)/(오백 원),(천원)/(천 원),(2000원)/(이천 원),(만원)/(만 원),(30만원)/(삼십만 원),
            (900원)/(구백 원)""",
        "share": "(10%)/(십 퍼센트),(50%)/(오십 퍼센트),(70%)/(칠십 프로),(100%)/(백 프로),(3.5%)/(삼 점 오 퍼센트)",
        "machine": "(TV)/(티비),(PC)/(피씨),(CD)/(씨디),컴퓨터,전화기,냉장고,라디오",
        "why": "(왜)/(웨),언제,어디서",
    }.items()
}

_TEMPLATES = (  # |은 and so on: the particle that fits the word before it
    "{person}|은 {when} {thing}|을 {did}",
    "{what} {thing}|은 {person}|이 {did}",
    "{person}|은 {place}에서 {thing}|을 {did}",
    "{when} {person}|이 {place}에서 {went}",
    "{animal}|은 {place}에서 {how} {went}",
    "{what} {animal}|이 {how} {went}",
    "{person}|은 {food}|을 {count} {ate}",
    "{when} {food}|을 {how} {ate}",
    "{hour}에 {person}|을 {place}에서 만났어",
    "{month}에 {weather}",
    "{when} {weather}",
    "{thing}|은 {price}|이야",
    "{person}|은 {what} {machine}|을 {did}",
    "{food}|은 {share} 다 팔았어",
    "{why} {thing}|을 {did}?",
    "{person}|은 {hour}까지 {place}에서 {went}",
    "{place}에 {what} {thing}|이 {count} 있어",
)
_PARTICLES = {"은": "는", "이": "가", "을": "를", "이야": "야"}  # after a consonant, after a vowel
_FILLERS = ("음/", "어/", "그/", "뭐/", "아/")


def korean_sentences(random: np.random.Generator) -> Iterator[str]:
    """Yield annotated sentences forever, no two of which are spoken alike.

    Words are dealt from shuffled decks, one a class, so that the words of a class come equally often.
    """
    decks: dict[str, list[str]] = {name: [] for name in _CLASSES}

    def draw_word(match: re.Match[str]) -> str:
        deck = decks[match[1]]
        if not deck:
            deck += random.permutation(_CLASSES[match[1]]).tolist()
        return deck.pop()

    seen: set[str] = set()
    while True:
        for index in random.permutation(len(_TEMPLATES)):
            sentence = _annotated(_with_particles(re.sub(r"{(\w+)}", draw_word, _TEMPLATES[index])), random)
            spoken = normalize_korean(sentence)
            if spoken not in seen:
                seen.add(spoken)
                yield sentence


def _with_particles(sentence: str) -> str:
    """Choose every particle by the last letter that is spoken before it."""

    def choose(match: re.Match[str]) -> str:
        closed = (ord(match[1]) - 0xAC00) % 28 > 0
        return f"{match[1]}{match[2]}{match[3] if closed else _PARTICLES[match[3]]}"

    return re.sub(r"([가-힣])(\)?)\|(이야|은|이|을)", choose, sentence)


def _annotated(sentence: str, random: np.random.Generator) -> str:
    """Put fillers, repetitions, unclear words and noises in, about as often as KsponSpeech has them."""
    words = sentence.split()
    candidates = [index for index, word in enumerate(words) if re.fullmatch("[가-힣]{2,}", word)]
    if candidates and random.random() < 0.15:
        index = int(random.choice(candidates))
        words[index] = f"{words[index][0]}+ {words[index]}"
    elif candidates and random.random() < 0.05:
        words[int(random.choice(candidates))] += "*"
    if random.random() < 0.2:
        words.insert(int(random.integers(min(2, len(words)))), str(random.choice(_FILLERS)))
    if not words[-1].endswith("?"):
        words[-1] += "."
    if random.random() < 0.25:
        words.insert(0, str(random.choice(["b/", "n/", "o/", "b/ n/"])))
    if random.random() < 0.25:
        words.append(str(random.choice(["b/", "n/", "l/"])))
    return " ".join(words)


def _speakers(first_id: int, voices: str) -> list[Speaker]:
    rows = [entry.split() for entry in voices.split(",")]
    return [
        Speaker(first_id + number, sex, f"ko+{variant}", int(pitch), int(rate))
        for number, (sex, variant, pitch, rate) in enumerate(rows)
    ]


# No variant of training is heard in evaluation.
SPEAKERS: dict[str, list[Speaker]] = {
    "train": _speakers(
        1,
        "F f1 50 160, M m1 50 155, F f2 45 170, M m2 55 165, F f4 55 150, M m3 45 175, F f5 40 165, M m4 60 180, "
        "F linda 40 155, M m6 50 145, F steph 50 160, M m7 55 170, F belinda 35 175, M max 40 160, F Annie 35 150, "
        "M Lee 60 150, F Alicia 45 165, M Andy 55 160, F Andrea 40 170, M Denis 45 150, F anika 35 155, "
        "M Diogo 60 165, F steph2 55 150, M Henrique 50 175, F f1 60 170, M Marco 55 155, F f2 55 155, M Mario 65 170, "
        "F steph3 40 175, "
        "M ed 45 145, F f4 45 160, M iven 55 165, F f5 60 175, M john 40 155, "
        "F linda 50 165, M pablo 50 160",
    ),
    "dev": _speakers(101, "F f3 55 160, M m8 70 155"),
    "eval_clean": _speakers(201, "F f3 45 155, M m5 45 165, F shelby 45 170, M Michael 55 160"),
    "eval_other": _speakers(301, "F aunty 60 195, M m8 60 190, F shelby 55 185, M Gene 45 200"),
}


@dataclass(frozen=True)
class KoreanLine(ScriptLine):
    """A line with its annotation and its folder in the corpus; `sentence` is what is spoken."""

    annotation: str
    folder: str


def plan_korean(minutes: float = 50, evaluation_minutes: float = 3, seed: int = 1) -> list[KoreanLine]:
    """Write the script of the corpus without speaking it.

    Args:
        minutes: Of audio in `train`, within a tenth.
        evaluation_minutes: Of audio in each of the other subsets.
        seed: Of sentences, order and sound.
    """
    stream = korean_sentences(np.random.default_rng(seed))
    lines: list[KoreanLine] = []
    for subset, speakers in SPEAKERS.items():
        seconds = 60 * (minutes if subset == "train" else evaluation_minutes)
        turn = 0
        while seconds > 0:
            speaker = speakers[turn % len(speakers)]
            folder, number = _folder_and_number(subset, turn)
            annotation = next(stream)
            sentence = normalize_korean(annotation) + ("?" if "?" in annotation else "")
            entropy = zlib.crc32(f"{seed} {subset} {number}".encode())
            name = f"KsponSpeech_{number}"
            lines.append(KoreanLine(name, subset, speaker, sentence, entropy, annotation, folder))
            # As measured over 1,000 sentences: silence at both ends, and syllables at the speaker's rate.
            seconds -= 0.6 + 29.2 * len(re.findall("[가-힣]", sentence)) / speaker.rate
            turn += 1
    return lines


def _folder_and_number(subset: str, turn: int) -> tuple[str, str]:
    """Return the folder and the number of an utterance, as the official parts have them."""
    if subset.startswith("eval"):
        return f"KsponSpeech_eval/{subset}", f"E{turn + 1 + 3_000 * (subset == 'eval_other'):05}"
    number = turn + (620_000 if subset == "dev" else 0)
    archive = 5 if subset == "dev" else 1
    return f"KsponSpeech_{archive:02}/KsponSpeech_{number // _FOLDER + 1:04}", f"{number + 1:06}"
