"""Words with their times, and how CTM, SRT, WebVTT and TextGrid write them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from asr_lightning.errors import printable

CAPTION_SECONDS = 6.0  # of a caption at most, where it has more than one word
CAPTION_CHARACTERS = 84  # of a caption: two lines of 42
PAUSE_SECONDS = 1.0  # between words after which a new caption begins


@dataclass
class Word:
    """A recognized word.

    Attributes:
        text: As it is written.
        start: Seconds from the beginning of the audio.
        end: The same; never before the start.
        confidence: Estimated probability that the word is right; None where it is not known.
    """

    text: str
    start: float
    end: float
    confidence: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the word for `json.dumps`: times in milliseconds' precision."""
        confidence = None if self.confidence is None else round(self.confidence, 4)
        return {
            "word": self.text, "start": round(self.start, 3), "end": round(self.end, 3), "confidence": confidence
        }  # fmt: skip


def as_ctm(name: str, words: Sequence[Word]) -> str:
    """Return lines `NAME 1 START DURATION WORD CONFIDENCE` of NIST's CTM; without confidence the last column is absent.

    White space in the name would separate columns, and is written `_`.
    """
    name = re.sub(r"\s", "_", printable(name))
    lines = []
    for word in words:
        columns = [name, "1", f"{word.start:.3f}", f"{word.end - word.start:.3f}", printable(word.text)]
        lines.append(" ".join(columns if word.confidence is None else [*columns, f"{word.confidence:.4f}"]))
    return "".join(f"{line}\n" for line in lines)


def as_srt(words: Sequence[Word]) -> str:
    """Return SubRip captions."""
    return "\n".join(
        f"{number}\n{_clock(caption[0].start, ',')} --> {_clock(caption[-1].end, ',')}\n{_line(caption)}\n"
        for number, caption in enumerate(captions(words), 1)
    )


def as_vtt(words: Sequence[Word]) -> str:
    """Return WebVTT captions; `&`, `<` and `>` are escaped, as the format asks for."""
    cues = [
        f"\n{_clock(caption[0].start, '.')} --> {_clock(caption[-1].end, '.')}\n"
        f"{_line(caption).replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')}\n"
        for caption in captions(words)
    ]
    return "".join(["WEBVTT\n", *cues])


def as_textgrid(words: Sequence[Word], seconds: float) -> str:
    """Return a TextGrid of Praat with a tier `words`; time without a word is an empty interval.

    Args:
        words: In the order of time. Of words that overlap, the later one begins where the earlier one ends; words
            without a duration are left out, since Praat has no such intervals.
        seconds: Length of the audio.
    """
    intervals: list[tuple[float, float, str]] = []
    covered = 0.0
    for word in words:
        start, end = max(covered, word.start), min(seconds, word.end)
        if end <= start:
            continue
        if start > covered:
            intervals.append((covered, start, ""))
        intervals.append((start, end, word.text))
        covered = end
    if covered < seconds:
        intervals.append((covered, seconds, ""))
    lines = [
        'File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {seconds:.6f}",
        "tiers? <exists>", "size = 1", "item []:", "    item [1]:", '        class = "IntervalTier"',
        '        name = "words"', "        xmin = 0", f"        xmax = {seconds:.6f}",
        f"        intervals: size = {len(intervals)}",
    ]  # fmt: skip
    for number, (start, end, text) in enumerate(intervals, 1):
        quoted = printable(text).replace('"', '""')
        lines += [
            f"        intervals [{number}]:", f"            xmin = {start:.6f}", f"            xmax = {end:.6f}",
            f'            text = "{quoted}"',
        ]  # fmt: skip
    return "\n".join(lines) + "\n"


def captions(words: Sequence[Word]) -> Iterator[list[Word]]:
    """Group words into captions: a new one after a pause, and where one would be too long to read."""
    caption: list[Word] = []
    for word in words:
        if caption and (
            word.start - caption[-1].end > PAUSE_SECONDS
            or word.end - caption[0].start > CAPTION_SECONDS
            or len(_line([*caption, word])) > CAPTION_CHARACTERS
        ):
            yield caption
            caption = []
        caption.append(word)
    if caption:
        yield caption


def _line(caption: Sequence[Word]) -> str:
    return " ".join(printable(word.text) for word in caption)


def _clock(seconds: float, mark: str) -> str:
    """Return `HH:MM:SS,mmm`."""
    milliseconds = round(1000 * seconds)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}{mark}{milliseconds % 1000:03}"
