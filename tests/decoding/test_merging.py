import random

import pytest

from asr_lightning.decoding.merging import join_words
from asr_lightning.text.timed_words import Word


def words(text: str, start: float = 0.0, step: float = 0.5, delay: float = 0.0) -> list[Word]:
    return [Word(word, start + step * n + delay, start + step * n + delay + 0.4) for n, word in enumerate(text.split())]


def texts(joined: list[Word]) -> str:
    return " ".join(word.text for word in joined)


def test_pieces_are_joined_at_a_word_that_both_have() -> None:
    first = words("A B C D E", 0.0)
    second = words("C D E F G", 1.0, delay=0.1)
    assert texts(join_words(first, second, 1.7, 2.0)) == "A B C D E F G"
    wrong_at_the_edges = join_words(words("A B C D X", 0.0), words("Y D E F", 1.0), 1.7, 2.0)
    assert texts(wrong_at_the_edges) == "A B C D E F", "ends of pieces are heard without what follows"


def test_a_repeated_word_is_joined_with_itself() -> None:
    first, second = words("NO NO NO NO", 0.0), words("NO NO NO NO", 1.0, delay=0.05)
    assert len(join_words(first, second, 1.5, 1.0)) == 6


def test_without_a_common_word_the_border_decides() -> None:
    joined = join_words(words("A B C", 0.0), words("X Y Z", 0.5), 1.0, 1.0)
    assert texts(joined) == "A B Y Z"
    assert join_words([], words("X"), 0.0, 2.0) == words("X")
    assert join_words(words("A"), [], 5.0, 2.0) == words("A")
    assert texts(join_words(words("A"), words("A", 9.0), 5.0, 2.0)) == "A A", "the same word at another time is another"


@pytest.mark.parametrize("seed", range(20))
def test_words_that_are_dated_a_little_differently_come_once_and_in_order(seed: int) -> None:
    draw = random.Random(seed)
    spoken = [(draw.choice("ABC"), 0.35 * n) for n in range(60)]
    joined: list[Word] = []
    for begin in range(0, 21, 5):  # pieces of 5 s with 2 s more to each side
        piece = []
        for text, start in spoken:
            if begin - 2.0 <= start and start + 0.3 <= begin + 7.0:
                start += draw.uniform(-0.04, 0.04)
                piece.append(Word(text, start, start + 0.3))
        joined = join_words(joined, piece, float(begin), 2.0)
    assert [word.text for word in joined] == [text for text, _ in spoken]
    assert [word.start for word in joined] == pytest.approx([start for _, start in spoken], abs=0.05)
