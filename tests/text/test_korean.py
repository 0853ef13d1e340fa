"""Lines of our own, in the grammar of KsponSpeech's annotation."""

import random
import re

import pytest

from asr_lightning.text.korean import AnnotationError, normalize_korean

LINES = [  # line, as written, as spoken
    ("오늘은 비가 온다", "오늘은 비가 온다", "오늘은 비가 온다"),
    # noise
    ("b/ 오늘은 l/ 비가 n/ 온다 u/", "오늘은 비가 온다", "오늘은 비가 온다"),
    ("o/ 비가 온다.b/", "비가 온다", "비가 온다"),
    ("비가 온다 b/.", "비가 온다", "비가 온다"),
    ("b/n/ 비가 온다", "비가 온다", "비가 온다"),
    ("비가b/온다", "비가 온다", "비가 온다"),
    ("n/", "", ""),
    ("", "", ""),
    # fillers, repetitions, unclear words
    ("음/ 비가+ 비가 온다*", "음 비가 비가 온다", "음 비가 비가 온다"),
    ("음/어/ 그래", "음 어 그래", "음 어 그래"),
    ("비+비가 온다", "비 비가 온다", "비 비가 온다"),
    ("음/. 그래", "음 그래", "음 그래"),
    ("비+/ 비가", "비 비가", "비 비가"),
    ("비가 / 온다 * 그래 +", "비가 온다 그래", "비가 온다 그래"),
    # Latin words before a slash are no noise
    ("snob/ 이야", "SNOB 이야", "SNOB 이야"),
    ("n/a 라고", "N/A 라고", "N/A 라고"),
    ("B/ 라고", "B 라고", "B 라고"),
    # two sides
    ("(4월)/(사 월)에 가", "4월에 가", "사 월에 가"),
    ("(4월)/(사 월 )중에 가", "4월중에 가", "사 월 중에 가"),
    ("(4월)/(사 월) (9일)/(구 일)", "4월 9일", "사 월 구 일"),
    ("(4월)/(사 월)(9일)/(구 일)", "4월9일", "사 월구 일"),
    ("(4G)/(포 쥐)* 없어", "4G 없어", "포 쥐 없어"),
    ("(왜)/(웨)/ 그래", "왜 그래", "웨 그래"),
    ("(왜+ 왜냐)/(웨+ 웨냐) 하면", "왜 왜냐 하면", "웨 웨냐 하면"),
    ("(그러면)/(그름*)은 가", "그러면은 가", "그름은 가"),
    ("(9시/)/(아홉 시)에", "9시에", "아홉 시에"),
    ("(4, 5월)/(사 b/ 오 월)", "4 5월", "사 오 월"),
    ("((4월)/(사 월) 초)/(그때) 봐", "4월 초 봐", "그때 봐"),
    ("(4월 (9일)/(구 일)) 초", "4월 9일 초", "4월 구 일 초"),
    # signs and numbers
    ("(9%)/(구 프로) 아니 9%가", "9% 아니 9%가", "구 프로 아니 9퍼센트가"),
    ("d# 알아?", "D# 알아", "D샵 알아"),
    ("4/1 아니 1/4 쯤", "4/1 아니 1/4 쯤", "4/1 아니 1/4 쯤"),
    ("(3*3)/(삼 삼) 은 9", "3*3 은 9", "삼 삼 은 9"),
    ("1+1 행사, J-POP+ 노래.", "1+1 행사 J-POP 노래", "1+1 행사 J-POP 노래"),
    ("3.5배에 12,000원, 4:30", "3.5배에 12000원 4:30", "3.5배에 12000원 4:30"),
    ("R&D 랑 A/S", "R&D 랑 A/S", "R&D 랑 A/S"),
    ("이거 - 저거 ~ 그거… “뭐” #1 ㅋㅋ", "이거 저거 그거 뭐 #1 ㅋㅋ", "이거 저거 그거 뭐 샵1 ㅋㅋ"),
    ("\uff14\u1112\u1161\u11ab", "4한", "4한"),  # full-width digit, decomposed syllable
    # repairs, one for each rule
    ("(9%)/((구 프로) 쯤", "9% 쯤", "구 프로 쯤"),
    ("(9%))/(구 프로) 쯤", "9% 쯤", "구 프로 쯤"),
    ("(9만/(구 만) 원", "9만 원", "구 만 원"),
    (")R&D)/(알앤디) 예산", "R&D 예산", "알앤디 예산"),
    ("(9회)/구 회) 에", "9회 에", "구 회 에"),
    ("(9월)/(구 월( 에", "9월 에", "구 월 에"),
    # what is well-formed enough without a repair
    ("(9시) / (아홉 시)에", "9시에", "아홉 시에"),
    ("(9조)(구 조) 원", "9조 원", "구 조 원"),
    ("((9월)/(구 월))에 봐", "9월에 봐", "구 월에 봐"),
]  # fmt: skip

MALFORMED = {
    "(9월)/(구 월 에 봐": "without a closing one",
    "9월) 에 봐": "without an opening one",
    "(9월) 에 봐": "without a second side",
    "()/(구 월)": "empty side",
    "(9월)/( )": "empty side",
    "(9월)(구 월)/(구월)": "without a second side",
    "((9월)/(구 월) 에 (": "without a closing one",
}


@pytest.mark.parametrize(("line", "spelling", "pronunciation"), LINES)
def test_lines_come_out_as_written_and_as_spoken(line: str, spelling: str, pronunciation: str) -> None:
    assert normalize_korean(line, "spelling") == spelling
    assert normalize_korean(line, "pronunciation") == pronunciation


@pytest.mark.parametrize(("line", "reason"), MALFORMED.items())
@pytest.mark.parametrize("side", ["spelling", "pronunciation"])
def test_malformed_lines_are_named(line: str, reason: str, side: str) -> None:
    with pytest.raises(AnnotationError, match=reason) as error:
        normalize_korean(line, side)  # type: ignore[arg-type]
    assert repr(line) in str(error.value)


def test_a_sign_can_be_read_in_another_way() -> None:
    assert normalize_korean("한 9% 쯤", "pronunciation", percent="프로") == "한 9프로 쯤"
    assert normalize_korean("한 9% 쯤", "spelling", percent="프로") == "한 9% 쯤"


ALPHABET = [*"가나다 ()()//+*%#.,-:'&~bnlou9A4ㅋ", ")/(", ") ", " (", "/ "]


def random_lines(count: int) -> list[str]:
    generator = random.Random(0)
    return ["".join(generator.choices(ALPHABET, k=generator.randint(0, 14))) for _ in range(count)]


def hangul(text: str) -> str:
    return "".join(re.findall("[가-힣ㄱ-ㅎ]", text))


def test_any_line_is_normalized_once_and_for_all_or_refused() -> None:
    refused = 0
    for line in random_lines(20_000):
        for side in ("spelling", "pronunciation"):
            try:
                text = normalize_korean(line, side)  # type: ignore[arg-type]
            except AnnotationError:
                refused += 1
                assert set(line) & set("()")
                continue
            assert normalize_korean(text, side) == text  # type: ignore[arg-type]
            assert not set(text) & set("()?!,"), (line, text)
            assert not re.search(r"(?<![A-Z0-9])[/+*]|[/+*](?![A-Z0-9])", text), (line, text)
            assert side == "spelling" or not set(text) & set("%#")
            if not set(line) & set("()"):
                assert hangul(text).replace("퍼센트", "").replace("샵", "") == hangul(line), (line, text)
    assert 1_000 < refused < 30_000


def test_no_letter_of_either_side_is_lost() -> None:
    generator = random.Random(1)
    for _ in range(2_000):
        words = ["".join(generator.choices("가나다라", k=3)) + generator.choice(["", "+", "*", "/"]) for _ in range(6)]
        sides = "".join(generator.choices("마바사", k=4)), "".join(generator.choices("아자차", k=4))
        marks = generator.sample(["b/", "n/", "l/"], 2)
        line = " ".join([*words[:2], marks[0], f"({sides[0]})/({sides[1]})을", *words[2:], marks[1]])
        for side, chosen in zip(("spelling", "pronunciation"), sides, strict=True):
            expected = hangul("".join([*words[:2], chosen, "을", *words[2:]]))
            assert hangul(normalize_korean(line, side)) == expected  # type: ignore[arg-type]
