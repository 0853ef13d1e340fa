"""Normalization of English transcripts: upper-case words, nothing else.

The policy of `normalize_english`, which is applied to references and hypotheses alike:

* Unicode NFKC, upper case. Accents stay (CAFÉ); combining marks that belong to no letter are dropped.
* Apostrophes, also typographic ones, stay inside a word (DON'T) and are dropped elsewhere (DOGS, TIS).
* Periods of abbreviations are dropped (U.S. → US); hyphens, dashes and every other mark become a space, `&` is AND.
* Digits are read as words, without AND, American style: 120 → ONE HUNDRED TWENTY. Commas may group thousands.
  Cardinals reach 10^12; larger ones, and those that begin with a zero, are read digit by digit (007).
  Years are not guessed (1984 → ONE THOUSAND NINE HUNDRED EIGHTY FOUR), nor minus signs, fractions, dates and times.
* Ordinals (1st), decimals (3.5 → THREE POINT FIVE), percentages (5 %), and amounts of $, £ and €
  ($3.50 → THREE DOLLARS AND FIFTY CENTS, £2 million → TWO MILLION POUNDS).
* Digits stuck to letters are separated from them: MP3 → MP THREE.
"""

import re
import unicodedata

ONES = (
    "ZERO ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE TEN ELEVEN TWELVE THIRTEEN FOURTEEN FIFTEEN SIXTEEN "
    "SEVENTEEN EIGHTEEN NINETEEN"
).split()
TENS = "TWENTY THIRTY FORTY FIFTY SIXTY SEVENTY EIGHTY NINETY".split()
SCALES = ((10**12, "TRILLION"), (10**9, "BILLION"), (10**6, "MILLION"), (10**3, "THOUSAND"), (10**2, "HUNDRED"))
PLAIN = re.compile("[A-Z' ]+")  # LibriSpeech's own alphabet
LARGEST = 10**12  # the largest cardinal that is read as one
IRREGULAR_ORDINALS = {
    "ONE": "FIRST",
    "TWO": "SECOND",
    "THREE": "THIRD",
    "FIVE": "FIFTH",
    "EIGHT": "EIGHTH",
    "NINE": "NINTH",
    "TWELVE": "TWELFTH",
}
CURRENCIES = {  # singular and plural, and those of a hundredth
    "$": ("DOLLAR", "DOLLARS", "CENT", "CENTS"),
    "£": ("POUND", "POUNDS", "PENNY", "PENCE"),
    "€": ("EURO", "EUROS", "CENT", "CENTS"),
}

_NUMBER = r"(?<![\d.,])(\d{1,3}(?:,\d{3})+|\d+)(?:\.(\d+))?(?![\d]|[.,]\d)"  # not part of 1.2.3 or 1,2
_AMOUNT = re.compile(rf"([$£€])\s*{_NUMBER}(?:\s+(THOUSAND|MILLION|BILLION|TRILLION)\b)?")
_ORDINAL = re.compile(r"(?<![\d.,])(\d{1,3}(?:,\d{3})+|\d+)(?:ST|ND|RD|TH)\b")
_DECIMAL = re.compile(rf"{_NUMBER}(\s*%)?")
_APOSTROPHES = re.compile(
    "[\N{RIGHT SINGLE QUOTATION MARK}\N{LEFT SINGLE QUOTATION MARK}\N{MODIFIER LETTER APOSTROPHE}`´]"
)
_STRAY_APOSTROPHE = re.compile(r"(?<![^\W\d_])'|'(?![^\W\d_])")  # not between two letters
_ABBREVIATION = re.compile(r"\b[^\W\d_](?:\.[^\W\d_])+\b(?:\.(?!\w))?")


def normalize_english(text: str) -> str:
    """Normalize English text for scoring by the policy above. The function is idempotent."""
    text = unicodedata.normalize("NFKC", _APOSTROPHES.sub("'", text)).upper()
    text = unicodedata.normalize("NFKC", _APOSTROPHES.sub("'", text))
    text = "".join(character for character in text if not unicodedata.category(character).startswith("M"))
    text = re.sub(r"\d", lambda match: str(int(match[0])), text)  # digits of other scripts
    text = re.sub(r"(?<![\w.,])\.(?=\d)", "0.", text)  # .5 is 0.5
    text = text.replace("&", " AND ")
    text = _AMOUNT.sub(lambda match: f" {_amount_words(*match.groups())} ", text)
    text = _ORDINAL.sub(lambda match: f" {ordinal_words(match[1].replace(',', ''))} ", text)
    text = _DECIMAL.sub(lambda match: f" {_decimal_words(match[1], match[2])} {'PERCENT ' if match[3] else ''}", text)
    text = re.sub(r"\d+", lambda match: f" {cardinal_words(match[0])} ", text)
    text = _ABBREVIATION.sub(lambda match: match[0].replace(".", ""), text)
    text = _STRAY_APOSTROPHE.sub(" ", text)
    text = "".join(c if c == "'" or unicodedata.category(c)[0] in "LN" else " " for c in text)
    return unicodedata.normalize("NFKC", " ".join(text.split()))  # letters that only now are neighbours may compose


def english_transcript(text: str) -> str:
    """Return a transcript as it is trained on and scored: unchanged where it is capitals and apostrophes already.

    So LibriSpeech's own transcripts stay as they are (NOTHIN'), and any other text is normalized.
    """
    return text if PLAIN.fullmatch(text) else normalize_english(text)


def cardinal_words(digits: str) -> str:
    """Read a whole number as words; digit by digit if it begins with a zero or is larger than 10^12."""
    if (len(digits) > 1 and digits[0] == "0") or len(digits) > len(str(LARGEST)) or int(digits) > LARGEST:
        return _digit_words(digits)
    return " ".join(_words(int(digits)))


def ordinal_words(digits: str) -> str:
    """Read a whole number as an ordinal: 21 → TWENTY FIRST."""
    *front, last = cardinal_words(digits).split()
    if last in IRREGULAR_ORDINALS:
        return " ".join([*front, IRREGULAR_ORDINALS[last]])
    return " ".join([*front, f"{last[:-1]}IETH" if last.endswith("Y") else f"{last}TH"])


def _words(number: int) -> list[str]:
    if number < 20:
        return [ONES[number]]
    if number < 100:
        tens, ones = divmod(number, 10)
        return [TENS[tens - 2]] + ([ONES[ones]] if ones else [])
    size, name = next((size, name) for size, name in SCALES if number >= size)
    high, low = divmod(number, size)
    return [*_words(high), name] + (_words(low) if low else [])


def _digit_words(digits: str) -> str:
    return " ".join(ONES[int(digit)] for digit in digits)


def _decimal_words(integer: str, decimals: str | None) -> str:
    words = cardinal_words(integer.replace(",", ""))
    return f"{words} POINT {_digit_words(decimals)}" if decimals else words


def _amount_words(sign: str, integer: str, decimals: str | None, scale: str | None) -> str:
    singular, plural, one_hundredth, several_hundredths = CURRENCIES[sign]
    if scale is not None or (decimals is not None and len(decimals) != 2):
        return " ".join(filter(None, (_decimal_words(integer, decimals), scale, plural)))
    integer, hundredths, parts = integer.replace(",", ""), int(decimals or 0), []
    if integer.strip("0") or not hundredths:
        parts.append(f"{cardinal_words(integer)} {singular if integer == '1' else plural}")
    if hundredths:
        parts.append(f"{cardinal_words(str(hundredths))} {one_hundredth if hundredths == 1 else several_hundredths}")
    return " AND ".join(parts)
