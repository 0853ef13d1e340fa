"""Sentences chosen by name or by text, and the longest ones where none matches."""

from asr_lightning.analysis.chosen_sentences import choose_sentences, find_sentences

ROWS = {
    "672-1": {"speaker": "672", "reference": "OH THAT MADE HIM SO ANGRY", "hypothesis": "OH"},
    "672-2": {"speaker": "672", "reference": "I'M LATE", "hypothesis": ""},
    "672-3": {"speaker": "672", "reference": "NEVER", "hypothesis": ""},
    "19-1": {"speaker": "19", "reference": "", "hypothesis": "HELLO"},
    "19-2": {"speaker": "19", "reference": "OH THAT MADE HIM SO ANGRY", "hypothesis": ""},
}
SIZES = {"672-1": 30, "672-2": 90, "672-3": 90, "19-1": 200, "19-2": 30}


def test_names_and_texts_are_found_whatever_their_case_and_marks() -> None:
    sentences = ["672-3", "i'm late!", "hello", "Oh, that made him so angry.", "never again"]
    assert find_sentences(sentences, ROWS) == {
        "672-3": "672-3", "i'm late!": "672-2", "hello": "19-1", "Oh, that made him so angry.": "19-2",
        "never again": None,
    }  # fmt: skip


def test_the_longest_of_the_speaker_stand_in_and_say_so() -> None:
    chosen = choose_sentences(["never again", "never", "nor this", "nor that"], ROWS, SIZES, "672")
    assert [(sentence.utterance, bool(sentence.note)) for sentence in chosen] == [
        ("672-2", True),
        ("672-3", False),
        ("672-1", True),
    ]
    assert chosen[0].caption == (
        "I'M LATE (the longest sentence of speaker 672: there is no 'never again' with phones in these data)"
    )
    assert chosen[1].caption == "NEVER" and chosen[1].speaker == "672"


def test_sentences_without_frames_that_can_be_drawn_are_as_missing() -> None:
    sizes = {name: size for name, size in SIZES.items() if name != "672-3"}
    [sentence] = choose_sentences(["never"], ROWS, sizes, "672")
    assert sentence.utterance == "672-2" and "no 'never' with phones" in sentence.note
