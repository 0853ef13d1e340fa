import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr_lightning.text.english import cardinal_words, normalize_english, ordinal_words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don’t stop—now, it's 5:30!", "DON'T STOP NOW IT'S FIVE THIRTY"),
        ("'tis the dogs' ‘café’, rock 'n' roll", "TIS THE DOGS CAFÉ ROCK N ROLL"),
        ("O'Neill''s", "O'NEILL S"),
        ("well-known mid–range", "WELL KNOWN MID RANGE"),
        ("The U.S.A., e.g. at 9 a.m. The end.Start", "THE USA EG AT NINE AM THE END START"),
        ("  a \t b\n\nc ", "A B C"),
        ("ﬁne ＡＢＣ", "FINE ABC"),
        ("salt & pepper / snake_case [x]", "SALT AND PEPPER SNAKE CASE X"),
        ("1,000,000 people in 1984", "ONE MILLION PEOPLE IN ONE THOUSAND NINE HUNDRED EIGHTY FOUR"),
        ("007 and 0", "ZERO ZERO SEVEN AND ZERO"),
        ("3.5 .5 1,234.05", "THREE POINT FIVE ZERO POINT FIVE ONE THOUSAND TWO HUNDRED THIRTY FOUR POINT ZERO FIVE"),
        ("1.2.3", "ONE TWO THREE"),
        ("I have 3, 4. And 5", "I HAVE THREE FOUR AND FIVE"),
        ("the 21st, 2ND and 1,000th", "THE TWENTY FIRST SECOND AND ONE THOUSANDTH"),
        ("5% or 2.5 %", "FIVE PERCENT OR TWO POINT FIVE PERCENT"),
        ("$1 $3.50 $0.01 $1.00 $.25", "ONE DOLLAR THREE DOLLARS AND FIFTY CENTS ONE CENT ONE DOLLAR TWENTY FIVE CENTS"),
        ("£2 £1.01 €0", "TWO POUNDS ONE POUND AND ONE PENNY ZERO EUROS"),
        ("$3.5 million, £2 billion", "THREE POINT FIVE MILLION DOLLARS TWO BILLION POUNDS"),
        ("$3 millionaire", "THREE DOLLARS MILLIONAIRE"),
        ("MP3 4x4", "MP THREE FOUR X FOUR"),
        ("٣", "THREE"),
        ("", ""),
        ("?!", ""),
    ],
)
def test_policy(text: str, expected: str) -> None:
    assert normalize_english(text) == expected


@pytest.mark.parametrize(
    ("digits", "words"),
    [
        ("0", "ZERO"),
        ("13", "THIRTEEN"),
        ("20", "TWENTY"),
        ("99", "NINETY NINE"),
        ("100", "ONE HUNDRED"),
        ("110", "ONE HUNDRED TEN"),
        ("1001", "ONE THOUSAND ONE"),
        ("40000", "FORTY THOUSAND"),
        ("123456789", "ONE HUNDRED TWENTY THREE MILLION FOUR HUNDRED FIFTY SIX THOUSAND SEVEN HUNDRED EIGHTY NINE"),
        ("1000000000000", "ONE TRILLION"),
        ("1000000000001", "ONE" + " ZERO" * 11 + " ONE"),
        ("9" * 5000, " ".join(["NINE"] * 5000)),
    ],
)
def test_cardinals(digits: str, words: str) -> None:
    assert cardinal_words(digits) == words


def test_ordinals() -> None:
    numbers = [1, 2, 3, 4, 5, 8, 9, 12, 13, 20, 21, 100, 112, 1000000]
    expected = (
        "FIRST SECOND THIRD FOURTH FIFTH EIGHTH NINTH TWELFTH THIRTEENTH TWENTIETH TWENTY-FIRST ONE-HUNDREDTH "
        "ONE-HUNDRED-TWELFTH ONE-MILLIONTH"
    )
    assert [ordinal_words(str(number)) for number in numbers] == [w.replace("-", " ") for w in expected.split()]


@given(st.integers(0, 10**12))
def test_a_cardinal_read_back_is_itself(number: int) -> None:
    assert read(cardinal_words(str(number)).split()) == number


@given(st.text() | st.text(alphabet="aBuS1230.,'’$£%- &stndrh½\u0345ŉ\0가\u1100\u1161\u0301ßﬁ"))
def test_normal_text_stays_as_it_is(text: str) -> None:
    normal = normalize_english(text)
    assert normalize_english(normal) == normal
    assert normal == " ".join(normal.split())
    assert all(character.isalnum() or character in " '" for character in normal)
    assert not any(character.isdecimal() for character in normal)


def read(words: list[str]) -> int:
    """The number that words stand for, written independently of the code under test."""
    small = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    values = {word.upper(): value for value, word in enumerate([*small.split(), "seventeen", "eighteen", "nineteen"])}
    values |= {
        word: 10 * n for n, word in enumerate("TWENTY THIRTY FORTY FIFTY SIXTY SEVENTY EIGHTY NINETY".split(), 2)
    }
    total = group = 0
    for word in words:
        if word == "HUNDRED":
            group *= 100
        elif word in values:
            group += values[word]
        else:
            total += group * {"THOUSAND": 10**3, "MILLION": 10**6, "BILLION": 10**9, "TRILLION": 10**12}[word]
            group = 0
    return total + group
