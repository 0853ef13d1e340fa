"""The script of the embedded corpus: a small grammar of English whose words come equally often, and voices."""

import re
import zlib
from collections.abc import Iterator

import numpy as np

from asr_lightning.errors import InputError
from data_modules.synthesis import ScriptLine, Speaker

_CHAPTER = 25  # utterances
_REPEATS = 5_000  # sentences in a row that were there before: hardly any other is left

_CLASSES: dict[str, str] = {
    "the": "the the the the the my your his her our their this that",
    "person": """woman man girl boy child teacher doctor farmer captain sailor king queen prince princess mother father
        sister brother uncle husband lady gentleman master friend soldier painter baker driver singer lawyer nurse
        hunter""",
    "name": "mary peter john alice henry susan robert helen thomas emma george anna",
    "animal": "dog cat horse bird cow sheep rabbit fox wolf lion duck mouse",
    "thing": """book letter window door table chair lamp cup knife bottle basket box key clock coat hat ring picture
        hammer ladder bell blanket candle mirror umbrella bag map stone rope bowl boat shirt garment brush
        needle camera violin""",
    "food": "bread soup cheese milk coffee tea sugar butter honey rice meat fruit",
    "did": """opened closed carried painted found lost bought sold cleaned broke dropped lifted took brought wanted
        watched stole moved liked touched""",
    "do": "open close carry paint find lose buy sell clean break drop lift take bring want watch steal move",
    "ate": "ate made cooked tasted ordered shared",
    "went": "slept laughed walked ran waited danced fell sang stood worked sat smiled returned arrived",
    "doing": "singing walking sleeping reading waiting working laughing dancing crying running talking swimming",
    "place": """garden house kitchen forest town village river church school market station street field hill mountain
        bridge castle island beach lake park hotel office factory valley cottage""",
    "at": "in near behind at beside across under over",
    "when": """yesterday today tonight|this morning|last night|every evening|on monday|on tuesday|on friday|
        on sunday|in the winter|in the summer|in the spring|after dinner|before breakfast|at noon|last week""",
    "old": """old young little tall small big strange beautiful quiet angry happy sad tired clever poor rich gentle
        brave lonely proud famous honest""",
    "red": "red blue green black white brown yellow broken heavy empty dirty new",
    "ugly": "orange empty open old",
    "how": "slowly quickly quietly carefully suddenly softly gladly loudly",
    "often": "never always often sometimes once seldom",
    "number": "two three four five six seven eight nine ten twelve twenty hundred",
    "many": "birds horses apples books letters trees children men women ships houses stars flowers",
    "weather": "sun moon wind rain snow sky sea air storm night",
    "cold": "cold warm wet dark bright clear late soft strong calm",
    "will": "will can must should may could would",
    "not": "don't can't won't didn't couldn't",
    "be": "was is",
}

_TEMPLATES: list[tuple[int, str]] = [  # how often it comes among the others, and the sentence
    (7, "{the} {old} {person} {did} {the} {thing} {when}"),
    (3, "{the} {old} {person} {did} {the} {red} {thing} {at} {the} {place}"),
    (6, "{name} {did} {the} {red} {thing} {at} {the} {place}"),
    (5, "tomorrow {the} {person} {will} {do} a {red} {thing}"),
    (4, "{name} {will} {do} an {ugly} {thing}"),
    (5, "I {not} {do} {the} {thing} {when}"),
    (4, "they {not} {do} {the} {red} {thing}"),
    (3, "please {do} {the} {thing}"),
    (4, "{the} {animal} {went} {how} {at} {the} {place}"),
    (3, "{name} {went} {how}"),
    (6, "{the} {old} {animal} {be} {doing} {at} {the} {place}"),
    (5, "where did {the} {person} {do} {the} {thing}?"),
    (3, "why {be} {the} {person} {doing} {when}?"),
    (3, "who {did} {the} {red} {thing} {when}?"),
    (5, "{the} {person} {ate} {the} {food} {when}"),
    (3, "please give me some {food} and {food}"),
    (6, "{name} saw {number} {many} {at} {the} {place}"),
    (5, "there were {number} {red} {many} {at} the {place}"),
    (4, "it's {cold} and the {weather} {be} {cold}"),
    (5, "when the {weather} was {cold}, {the} {person} {went}"),
    (3, "{name} {often} {went} with {the} {old} {person}"),
    (3, "she {often} {did} {the} {thing} from {the} {place}"),
    (3, "he {went} {how}, but {name} {be} {old}"),
    (3, "we {will} {do} {the} {thing} for {name}"),
    (3, "I'm {doing} because {the} {person} {be} {old}"),
]


def _entries(words: str) -> list[str]:
    """Split a class: `|` keeps phrases whole, and lines between them hold single words."""
    if "|" not in words:
        return words.split()
    singles, *phrases = words.split("|")
    return [*singles.split(), *(" ".join(phrase.split()) for phrase in phrases)]


def transcript(sentence: str) -> str:
    """Return the text as LibriSpeech writes it: capitals and apostrophes, no punctuation."""
    return re.sub(r"[^A-Z' ]", "", sentence.upper())


WORDS: frozenset[str] = frozenset(
    word
    for text in [*(entry for words in _CLASSES.values() for entry in _entries(words)), *(t for _, t in _TEMPLATES)]
    for word in transcript(re.sub(r"{\w+}", "", text)).split()
) | {"AN"}
"""Every word that the embedded corpus can say, in capitals."""


def english_sentences(random: np.random.Generator, words_per_class: int | None = None) -> Iterator[str]:
    """Yield sentences forever, no two alike, of 3 to 10 words, with commas and question marks.

    Words are dealt from shuffled decks, one a class, reshuffled when they run out: the words of a class come equally
    often, so that none is too rare to be learned.

    Args:
        random: Draws the sentences.
        words_per_class: Only the first words of each class are used; all if None.

    Raises:
        InputError: So few words make no more sentences.
    """
    decks: dict[str, list[str]] = {name: [] for name in _CLASSES}

    def draw_word(match: re.Match[str]) -> str:
        deck = decks[match[1]]
        if not deck:
            deck += random.permutation(_entries(_CLASSES[match[1]])[:words_per_class]).tolist()
        return deck.pop()

    templates = [template for weight, template in _TEMPLATES for _ in range(weight)]
    seen: set[str] = set()
    repeats = 0
    while repeats < _REPEATS:
        for index in random.permutation(len(templates)):
            sentence = re.sub(r"{(\w+)}", draw_word, templates[index])
            sentence = re.sub(r"\ba (?=[aeiou])", "an ", sentence)
            if transcript(sentence) not in seen:
                seen.add(transcript(sentence))
                repeats = 0
                yield sentence
            else:
                repeats += 1
    raise InputError(
        f"words_per_class={words_per_class} makes about {len(seen):,} different sentences: expected fewer minutes of "
        "speech, or more words"
    )


def _speakers(first_id: int, table: str) -> list[Speaker]:
    rows = [entry.split() for entry in table.split(",")]
    return [
        Speaker(first_id + 7 * index, sex, f"gmw/{voice}", int(pitch), int(rate))
        for index, (sex, voice, pitch, rate) in enumerate(rows)
    ]


# Variants without whisper, croak or Klatt synthesis; no variant of training is heard in evaluation.
SPEAKERS: dict[str, list[Speaker]] = {
    "train-clean-100": _speakers(
        103,
        "F en-US+f1 50 160, M en-US+m1 50 155, F en-US+f2 45 170, M en-US+m2 55 165, F en-US+f4 55 150, "
        "M en-US+m3 45 175, F en-US+f5 40 165, M en-US+m4 60 180, F en-US+linda 40 155, M en-US+m6 50 145, "
        "F en-GB-x-rp+steph 50 160, M en-GB-x-rp+m7 55 170, F en+belinda 35 175, M en+max 40 160, "
        "F en-US-nyc+Annie 35 150, M en-029+Lee 60 150, F en-US+Alicia 45 165, M en-US+Andy 55 160, "
        "F en-US+Andrea 40 170, M en-US+Denis 45 150, F en+anika 35 155, M en-US+Diogo 60 165, "
        "F en-US+steph2 55 150, M en+Henrique 50 175, F en-GB-x-rp+f1 60 170, M en-US-nyc+Marco 55 155, "
        "F en-US-nyc+f2 55 155, M en-US+Mario 65 170, F en-US+steph3 40 175, M en-US+ed 45 145, "
        "F en+f4 45 160, M en-029+iven 55 165, F en-US+f5 60 175, M en-US+john 40 155, "
        "F en-029+linda 50 165, M en-GB-x-rp+pablo 50 160, F en-US-nyc+belinda 50 180, M en-US+quincy 60 150, "
        "M en-US+antonio 50 180, M en-US+rob 60 160",
    ),
    "dev-clean": _speakers(1001, "F en-US+f3 55 160, M en-US+m8 70 155, F en-GB-x-rp+aunty 45 165, M en-US+m5 60 170"),
    "dev-other": _speakers(2003, "F en-US+shelby 60 190, M en-US+Gene 60 185, F en+f3 40 200, M en-US+Michael 40 195"),
    "test-clean": _speakers(3007, "F en-US+f3 45 155, M en-US+m5 45 165, F en-US+shelby 45 170, M en+Michael 55 160"),
    "test-other": _speakers(4001, "F en-US+aunty 60 195, M en-US+m8 60 190, F en+shelby 55 185, M en-029+Gene 45 200"),
}


def plan_english(
    minutes: float = 50, evaluation_minutes: float = 3, seed: int = 1, words_per_class: int | None = None
) -> list[ScriptLine]:
    """Write the script of the corpus without speaking it.

    Args:
        minutes: Of audio in train-clean-100, within a few percent.
        evaluation_minutes: Of audio in each of the other subsets.
        seed: Of sentences, order and sound.
        words_per_class: Only the first words of each class of the grammar are used; all if None.
    """
    stream = english_sentences(np.random.default_rng(seed), words_per_class)
    lines: list[ScriptLine] = []
    for subset, speakers in SPEAKERS.items():
        seconds = 60 * (minutes if subset == "train-clean-100" else evaluation_minutes)
        turn = 0
        while seconds > 0:
            speaker = speakers[turn % len(speakers)]
            chapter, index = divmod(turn // len(speakers), _CHAPTER)
            name = f"{speaker.id}-{1000 * speaker.id + chapter}-{index:04}"
            lines.append(ScriptLine(name, subset, speaker, next(stream), seed=zlib.crc32(f"{seed} {name}".encode())))
            # As measured over 1,000 sentences: silence at both ends, and characters at the speaker's rate.
            seconds -= 0.4 + 9.15 * len(lines[-1].sentence) / speaker.rate
            turn += 1
    return lines
