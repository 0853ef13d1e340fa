"""Transcripts of audio files of any length, format and sample rate."""

import functools
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from tqdm import tqdm

from asr_lightning.analysis.calibration import Calibration
from asr_lightning.batch import Batch, Utterance, is_memory_error
from asr_lightning.decoding.hypothesis import Hypothesis
from asr_lightning.decoding.merging import join_words
from asr_lightning.decoding.words import Pooling
from asr_lightning.errors import InputError, printable
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.text.timed_words import Word
from asr_lightning.tools.audio_pieces import OVERLAP_SECONDS, PIECE_SECONDS, read_pieces
from asr_lightning.tools.transcript_files import Part, Transcript

WINDOW_BATCHES = 4  # so many batches of audio are held, to find pieces of similar length in them


@dataclass(eq=False)
class _File:
    """A file whose pieces are being recognized.

    Attributes:
        path: Of the file.
        parts: Of the pieces read so far; None where a piece is not recognized yet.
        borders: Of the same pieces, in seconds.
        complete: Whether all pieces are read.
        problem: Why there is no transcript.
        seconds: Read so far.
    """

    path: str
    parts: list[Part | None] = field(default_factory=list)
    borders: list[float] = field(default_factory=list)
    complete: bool = False
    problem: str = ""
    seconds: float = 0.0

    def transcript(self) -> Transcript | None:
        """Return the transcript; None where pieces are missing."""
        if self.problem:
            return Transcript(self.path, problem=self.problem)
        parts = [part for part in self.parts if part is not None]
        if not self.complete or len(parts) < len(self.parts):
            return None
        if len(parts) == 1:
            piece_words = tuple(shifted(parts[0]))
            return Transcript(self.path, parts[0].hypotheses[0].text, "", piece_words, self.seconds, tuple(parts))
        words: list[Word] = []
        border = 0.0
        for part, following in zip(parts, self.borders, strict=True):
            best = part.hypotheses[0]
            if best.text and not best.words:
                problem = (
                    "expected times of words, by which the pieces of a long file are joined, found none: use a search "
                    "that knows them (a GraphSearch with `hypotheses: 1`), or cut the file"
                )
                return Transcript(self.path, problem=problem)
            tail = len(words)  # so that a day of words is not copied for every piece
            while part.start < border and tail and words[tail - 1].end > border - 2 * OVERLAP_SECONDS:
                tail -= 1
            words[tail:] = join_words(words[tail:], shifted(part), border, OVERLAP_SECONDS)
            border = following
        text = " ".join(word.text for word in words)
        return Transcript(self.path, text, "", tuple(words), self.seconds, tuple(parts))


_QueuedPiece = tuple[_File, int, Utterance, float]  # a file, the number of a piece in it, the piece, and when it begins
_Recognize = Callable[[Sequence[Utterance]], list[list[Hypothesis] | str]]


def shifted(part: Part) -> list[Word]:
    """Return the words of the best hypothesis of a piece, with times from the beginning of the file."""
    return [
        replace(word, start=part.start + word.start, end=part.start + word.end) for word in part.hypotheses[0].words
    ]


def transcribe(
    recognizer: Recognizer,
    paths: Iterable[str],
    batch_seconds: float,
    pooling: Pooling = "product",
    report_seconds: Callable[[float], object] = lambda seconds: None,
    piece_seconds: float = PIECE_SECONDS,
) -> Iterator[Transcript]:
    """Transcribe files; transcripts come in the order of the paths, problems as soon as they are met.

    Args:
        recognizer: In evaluation mode, on its device.
        paths: Read one after another; about four batches of audio are held.
        batch_seconds: Seconds of audio, padding included, of a batch of several pieces.
        pooling: How the confidence of a word follows from the probabilities of its tokens.
        report_seconds: Called with the seconds of each piece that is read.
        piece_seconds: Most seconds between two cuts of a long file.
    """
    rate = recognizer.features.sample_rate
    recognize = functools.partial(_recognize, recognizer, pooling)
    files: deque[_File] = deque()  # whose transcripts are to come
    window: list[_QueuedPiece] = []
    held = 0.0  # seconds
    for path in paths:
        file = _File(path)
        files.append(file)
        try:
            for piece in read_pieces(path, rate, piece_seconds):
                report_seconds(piece.start + piece.seconds - file.seconds)
                file.seconds = piece.start + piece.seconds
                if not len(piece.audio):
                    continue
                window.append((file, len(file.parts), Utterance(path, piece.audio, rate), piece.start))
                file.parts.append(None)
                file.borders.append(piece.border)
                held += piece.seconds
                if held >= WINDOW_BATCHES * batch_seconds:
                    yield from _transcribe_window(recognize, window, files, batch_seconds)
                    window, held = [], 0.0
                if file.problem:
                    break
            file.complete = True
        except InputError as error:
            file.problem = str(error)
            window = [piece for piece in window if piece[0] is not file]
            held = sum(len(utterance.audio) / rate for _, _, utterance, _ in window)
        yield from _pop_finished(files)
    yield from _transcribe_window(recognize, window, files, batch_seconds)


def _transcribe_window(
    recognize: _Recognize, window: Sequence[_QueuedPiece], files: deque[_File], batch_seconds: float
) -> Iterator[Transcript]:
    seconds = [len(utterance.audio) / utterance.sample_rate for _, _, utterance, _ in window]
    for numbers in batch_pieces(seconds, batch_seconds):
        for number, outcome in zip(numbers, recognize([window[n][2] for n in numbers]), strict=True):
            file, index, _, start = window[number]
            if isinstance(outcome, str):
                file.problem = file.problem or outcome
            else:
                file.parts[index] = Part(start, start + seconds[number], tuple(outcome))
        yield from _pop_finished(files)


def _pop_finished(files: deque[_File]) -> Iterator[Transcript]:
    """Remove and yield files with a problem, and finished transcripts up to the first that is not finished."""
    for file in [file for file in files if file.problem]:
        files.remove(file)
        yield Transcript(file.path, problem=file.problem)
    while files and (ready := files[0].transcript()) is not None:
        files.popleft()
        yield ready


def batch_pieces(seconds: Sequence[float], batch_seconds: float) -> list[list[int]]:
    """Put pieces of similar length together.

    Args:
        seconds: Lengths of pieces.
        batch_seconds: Most seconds of a batch of several pieces, with every piece padded to the longest.

    Returns:
        The numbers of the pieces of each batch; the batch of the first piece comes first.
    """
    batches: list[list[int]] = []
    for number in sorted(range(len(seconds)), key=lambda index: seconds[index]):
        if batches and seconds[number] * (len(batches[-1]) + 1) <= batch_seconds:
            batches[-1].append(number)
        else:
            batches.append([number])
    return sorted(batches, key=min)


def _recognize(
    recognizer: Recognizer, pooling: Pooling, utterances: Sequence[Utterance]
) -> list[list[Hypothesis] | str]:
    """Recognize a batch; one that does not fit into memory is halved, until a single piece is too long.

    Returns:
        The hypotheses of each utterance, or why there are none.
    """
    try:
        with torch.inference_mode():
            return [*recognizer.recognize_words(Batch.collate(utterances).to(recognizer.device), pooling)]
    except (RuntimeError, MemoryError) as error:
        if not is_memory_error(error):
            raise
    if len(utterances) > 1:
        half = len(utterances) // 2
        return _recognize(recognizer, pooling, utterances[:half]) + _recognize(recognizer, pooling, utterances[half:])
    seconds = len(utterances[0].audio) / utterances[0].sample_rate
    return [f"{seconds:.0f} s are too long for the memory; cut the file"]


def write_transcripts(
    transcripts: Callable[[Callable[[float], object]], Iterable[Transcript]],
    files: int,
    write: Callable[[Transcript], object],
) -> bool:
    """Write transcripts, name bad files on stderr, and return whether all files were good.

    Args:
        transcripts: Called once, with a function that it calls with the seconds of audio that are read.
        files: How many transcripts there will be.
        write: Called with each transcript.
    """
    good, seconds = True, 0.0
    with tqdm(total=files, unit="file", disable=not sys.stderr.isatty()) as bar:

        def count(added: float) -> None:
            nonlocal seconds
            seconds += added
            bar.set_postfix_str(f"{seconds / 60:.1f} min of audio read")

        for transcript in transcripts(count):
            bar.update()
            with bar.external_write_mode():
                if transcript.problem:
                    good = False
                    print(printable(f"{transcript.path}: {transcript.problem}"), file=sys.stderr, flush=True)
                else:
                    write(transcript)
    return good


def calibrated(transcript: Transcript, calibration: Calibration) -> Transcript:
    """Return a transcript with calibrated confidences."""
    confidences = [word.confidence for word in transcript.words if word.confidence is not None]
    values = iter(calibration(np.array(confidences)).tolist())
    words = (word if word.confidence is None else replace(word, confidence=next(values)) for word in transcript.words)
    return replace(transcript, words=tuple(words))
