import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr_lightning.scoring.word_edits import WordEdits, correct_words, display_width, find_word_edits, format_word_edits

TEXTS = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=8).map(" ".join)


def test_each_kind_of_error_has_its_place() -> None:
    assert find_word_edits(" a  b c d e f g h ", "x a b d e y g h z") == WordEdits(
        tuple("abcdefgh"), ("a", "b", None, "d", "e", "y", "g", "h"), (("x",), *[()] * 7, ("z",))
    )
    assert find_word_edits("", "a b") == WordEdits((), (), (("a", "b"),))
    assert find_word_edits("a b", "") == WordEdits(("a", "b"), (None, None), ((), (), ()))
    assert find_word_edits("", "").errors == 0


@given(TEXTS, TEXTS)
def test_an_alignment_holds_both_texts_and_the_fewest_errors(reference: str, hypothesis: str) -> None:
    alignment = find_word_edits(reference, hypothesis)
    words = [*alignment.insertions[0]]
    for word, inserted in zip(alignment.recognized, alignment.insertions[1:], strict=True):
        words += [word, *inserted] if word is not None else inserted
    assert " ".join(alignment.reference) == reference
    assert " ".join(words) == hypothesis
    counts = jiwer.process_words(reference, hypothesis)
    assert alignment.errors == counts.substitutions + counts.deletions + counts.insertions


def test_words_stand_under_each_other() -> None:
    reference = "the cat sat on a mat"
    rows = [
        ("base", find_word_edits(reference, "the cut sat now on a mat here too")),
        ("wide", find_word_edits(reference, "the cat on a")),
    ]
    assert format_word_edits(rows).splitlines() == [
        "REF   the cat   sat ***** on a mat ****** *****",
        "base  the *cut* sat *now* on a mat *here* *too*",
        "wide  the cat   ***       on a ***",
    ]


def test_hangul_takes_two_columns() -> None:
    assert [display_width(text) for text in ("가을에", "ㅂㄴ", "a가", "é", "e\u0301", "\u1100\u1161\u11a8")] == [
        *(6, 4, 3, 1, 1, 2)
    ]
    reference = "말은 뭐 춤췄어"
    lines = format_word_edits(
        [("a", find_word_edits(reference, "말은 춤췄어")), ("b", find_word_edits(reference, "말 뭐 춤췄어"))]
    ).splitlines()
    assert lines == ["REF  말은 뭐 춤췄어", "a    말은 ** 춤췄어", "b    *말* 뭐 춤췄어"]


def test_long_sentences_are_broken_at_the_same_place() -> None:
    reference = "one two three four five"
    rows = [
        ("a", find_word_edits(reference, "one two threes four five")),
        ("b", find_word_edits(reference, "one three four five")),
    ]
    assert format_word_edits(rows, line_width=22).splitlines() == [
        *("REF  one two three", "a    one two *threes*", "b    one *** three", ""),
        *("REF  four five", "a    four five", "b    four five"),
    ]
    assert len(format_word_edits(rows, line_width=1).split("\n\n")) == 5  # a word is never broken


def test_other_references_are_refused() -> None:
    with pytest.raises(ValueError, match="expected alignments to one reference"):
        format_word_edits([("a", find_word_edits("a", "a")), ("b", find_word_edits("b", "a"))])
    with pytest.raises(ValueError, match="expected alignments to one reference, got \\[\\]"):
        format_word_edits([])


def test_words_of_a_hypothesis_are_right_or_wrong() -> None:
    assert correct_words("A B C", "X A B D E") == [False, True, True, False, False]
    assert correct_words("A B", "") == []
    assert correct_words("", "A A") == [False, False]
    assert correct_words("A B C", "A C") == [True, True]
