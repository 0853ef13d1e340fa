"""Drawing of phones: IPA symbol, class, color of the class, and a shape for each phone of a class."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from asr_lightning.text.phones import SILENCE

# IPA of ARPAbet [Shoup 1980], and of the codes that TIMIT adds [Garofolo et al. 1993].
ARPABET = dict(
    pair.split(":")
    for pair in (
        "AA:ɑ AE:æ AH:ʌ AO:ɔ AW:aʊ AX:ə AXR:ɚ AY:aɪ EH:ɛ ER:ɝ EY:eɪ IH:ɪ IX:ɨ IY:i OW:oʊ OY:ɔɪ UH:ʊ UW:u UX:ʉ "
        "B:b CH:tʃ D:d DH:ð DX:ɾ EL:l̩ EM:m̩ EN:n̩ F:f G:ɡ HH:h HV:ɦ JH:dʒ K:k L:l M:m N:n NG:ŋ NX:ɾ̃ P:p Q:ʔ R:ɹ "
        "S:s SH:ʃ T:t TH:θ V:v W:w WH:ʍ Y:j Z:z ZH:ʒ"
    ).split()
)
# IPA of the Korean phones of `asr_lightning.text.korean_pronunciation`.
KOREAN = dict(
    pair.split(":")
    for pair in (
        "g:k kk:k͈ n:n d:t tt:t͈ r:ɾ m:m b:p pp:p͈ s:s ss:s͈ j:tɕ jj:t͈ɕ ch:tɕʰ k:kʰ t:tʰ p:pʰ h:h kf:k̚ nf:n tf:t̚ lf:l "
        "mf:m pf:p̚ ng:ŋ a:a ae:ɛ ya:ja yae:jɛ eo:ʌ e:e yeo:jʌ ye:je o:o wa:wa wae:wɛ yo:jo u:u wo:wʌ we:we wi:wi "
        "yu:ju eu:ɯ ui:ɰi i:i"
    ).split()
)
# IPA of the English mnemonics of espeak-ng, as its American voice writes it; `I#` and `;` in symbols of the IPA.
ESPEAK = dict(
    pair.split("=")
    for pair in (
        "0=ɑː 3=ɚ 3:=ɜː ?=ʔ @=ə @2=ə @L=əl A:=ɑː A@=ɑːɹ D=ð E=ɛ I=ɪ I#=ɪ I2=ɪ N=ŋ O=ɔ O2=ɔ O:=ɔː O@=ɔːɹ OI=ɔɪ S=ʃ "
        "T=θ U=ʊ U@=ʊɹ V=ʌ Z=ʒ a=æ a#=ɐ aI=aɪ aI3=aɪɚ aI@=aɪə aU=aʊ aa=æ b=b d=d d#=d dZ=dʒ e@=ɛɹ eI=eɪ f=f g=ɡ h=h "
        "i=i i:=iː i@=iə i@3=ɪɹ j=j ;=j k=k l=l l#=ɬ m=m n=n o@=ɔːɹ oU=oʊ p=p r=ɹ r-=ɹ s=s t=t t#=ɾ t2=t t[=t̪ tS=tʃ "
        "u:=uː v=v w=w x=x z=z"
    ).split()
)
# By the first letter of the IPA symbol; affricates, which begin with a plosive, are told by their second letter.
CLASSES = {
    "vowel": "aeiouyɑæʌɔəɛɝɚɜɪʊɨʉɯɒɐøœɤɵɘɶʏ",
    "plosive": "pbtdkɡgʔcɟqɢʈɖ",
    "affricate": "",
    "fricative": "fvθðszʃʒhɦxɣçʝɕʑʂʐβɸħʕχʁɬɮ",
    "nasal": "mnŋɱɲɳɴ",
    "liquid or glide": "lɹrɾɫwjʍɥɰʋɻɭʎʟ",
    "silence": "",
    "other": "",
}
# Okabe and Ito's colors, darkened until each has a contrast of 3 : 1 or more with white and with the dark page.
COLORS = {
    "vowel": "#d55e00",
    "plosive": "#0072b2",
    "affricate": "#3a8fc4",
    "fricative": "#009e73",
    "nasal": "#b85c93",
    "liquid or glide": "#a67c00",
    "silence": "#8c8c8c",
    "other": "#7a6652",
}
SHAPES = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "star", "pentagon", "hexagram")
MATPLOTLIB = dict(zip((*SHAPES, "x"), "osD^vP*phx", strict=True))
SILENT_PHONE = re.compile(r"(sil|spn|sp|pau|epi|h#|[a-z]+cl|)", re.IGNORECASE)  # [bdgptk]cl: closures of TIMIT


@dataclass(frozen=True)
class PhoneStyle:
    """How a phone is drawn.

    Attributes:
        ipa: Its symbol in the International Phonetic Alphabet; the corpus's code if that is unknown.
        phone_class: Key of `COLORS`.
        color: Of the class.
        shape: Of the phone within its class; an item of `SHAPES`.
    """

    ipa: str
    phone_class: str
    color: str
    shape: str


def ipa_symbols(phones: Iterable[str]) -> dict[str, str]:
    """Return the IPA symbol of every phone, or the code itself if no alphabet of this module has all of the phones.

    The same code stands for different sounds in several of them.
    """
    codes = sorted(set(phones))
    spoken = [code for code in codes if not SILENT_PHONE.fullmatch(code)]
    for alphabet, base in ((ARPABET, lambda code: code.rstrip("012").upper()), (KOREAN, str), (ESPEAK, str)):
        if all(base(code) in alphabet for code in spoken):
            return {code: alphabet.get(base(code), code) for code in codes}
    return {code: code for code in codes}


def phone_class(phone: str) -> str:
    """Return the class of a phone by its IPA symbol."""
    if phone == SILENCE or SILENT_PHONE.fullmatch(phone):
        return "silence"
    letters = [letter for letter in phone if letter.isalpha() and not "ʰ" <= letter <= "˿"]
    if not letters:
        return "other"
    if len(letters) > 1 and letters[0] in CLASSES["plosive"] and letters[1] in CLASSES["fricative"]:
        return "affricate"
    if len(letters) > 1 and letters[0] in "jwɰ" and letters[1] in CLASSES["vowel"]:  # Korean diphthongs
        return "vowel"
    return next((name for name, members in CLASSES.items() if letters[0] in members), "other")


def phone_styles(phones: Iterable[str]) -> dict[str, PhoneStyle]:
    """Return the style of every phone, in the order of classes; the result depends on the set of phones only."""
    symbols = ipa_symbols(phones)
    styles = {}
    for name, color in COLORS.items():
        members = [phone for phone, symbol in symbols.items() if phone_class(symbol) == name]
        for index, phone in enumerate(members):
            shape = "x" if name == "silence" else SHAPES[index % len(SHAPES)]
            styles[phone] = PhoneStyle(symbols[phone], name, color, shape)
    return styles
