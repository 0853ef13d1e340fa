"""One sequence of words from those of pieces of audio that overlap."""

from collections.abc import Sequence

from asr_lightning.text.timed_words import Word

SAME_SECONDS = 0.3  # between the middles of a word in two pieces; the two searches differ a little in its time
DISTANCE_WEIGHT = 0.1  # of the seconds to the border, beside those between the two middles


def join_words(before: Sequence[Word], after: Sequence[Word], border: float, overlap: float) -> list[Word]:
    """Join the words of two pieces of audio that overlap.

    The pieces are joined at a word that both have at the same time; of several such words, at one that is near the
    border and has almost the same time in both. Where there is none, words before the border are of the first piece,
    others of the second.

    Args:
        before: Of the first piece, in the order of time.
        after: Of the second piece, with times of the same clock.
        border: Seconds; where the audio was cut, in the middle of the overlap.
        overlap: Seconds that each piece goes on beyond the border.
    """
    first = max((n for n, word in enumerate(before) if _middle(word) < border - overlap), default=-1) + 1
    near = sum(_middle(word) <= border + overlap for word in after)
    pairs = [
        (abs(_middle(left) - _middle(right)) + DISTANCE_WEIGHT * abs(_middle(left) - border), i, j)
        for i, left in enumerate(before[first:], first)
        for j, right in enumerate(after[:near])
        if left.text == right.text and abs(_middle(left) - _middle(right)) <= SAME_SECONDS
    ]
    if pairs:
        _, i, j = min(pairs)
        return [*before[: i + 1], *after[j + 1 :]]
    return [
        *(word for word in before if _middle(word) < border),
        *(word for word in after if _middle(word) >= border),
    ]


def _middle(word: Word) -> float:
    return (word.start + word.end) / 2
