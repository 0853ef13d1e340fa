"""Transcripts of audio files of any length, format and sample rate."""

import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from asr_lightning.audio import reading
from asr_lightning.audio.resampling import RATES, resample
from asr_lightning.batch import Batch, Utterance, is_memory_error
from asr_lightning.errors import InputError, printable
from asr_lightning.models.checkpoints import load_recognizer
from asr_lightning.models.experiment import read_model
from asr_lightning.models.recognizer import Recognizer

WINDOW_BATCHES = 4  # so many batches of audio are held, to find pieces of similar length in them
PIECE_SECONDS = (20.0, 40.0)  # a longer file is cut where it is quietest between so many seconds
PAUSE_SECONDS = 0.2  # of the stretch whose power is compared to find that place


@dataclass(frozen=True)
class Transcript:
    """What was heard in one file, or why nothing could be."""

    path: str
    text: str = ""
    problem: str = ""


@dataclass(eq=False)
class _File:
    """A file whose pieces are being recognized.

    Attributes:
        path: Where it is.
        texts: Of the pieces read so far; None where a piece is not recognized yet.
        complete: Whether all pieces are read.
        problem: Why there is no transcript.
    """

    path: str
    texts: list[str | None] = field(default_factory=list)
    complete: bool = False
    problem: str = ""

    def transcript(self) -> Transcript | None:
        """Return what was heard in it; None where pieces are missing."""
        if self.problem:
            return Transcript(self.path, problem=self.problem)
        if not self.complete or None in self.texts:
            return None
        return Transcript(self.path, " ".join(text for text in self.texts if text))


Piece = tuple[_File, int, Utterance]
"""A file, the number of a piece in it, and the piece."""


def read_pieces(path: str, sample_rate: int) -> Iterator[Tensor]:
    """Read a file of any format, sample rate and number of channels that libsndfile knows.

    A file of at most 40 s is one piece. A longer one is cut at its pauses, and pieces without any sound are left out,
    so that what is in memory does not depend on its length.

    Args:
        path: Where it is.
        sample_rate: Samples per second of the result.

    Returns:
        Pieces (S,) float32 in [-1, 1], the mean of the channels.

    Raises:
        InputError: It is missing, unreadable, empty, cut off, or holds impossible samples; perhaps after some pieces.
    """
    with reading.open_sound(path) as sound:
        rate = sound.samplerate
        if not RATES[0] <= rate <= RATES[1]:
            raise InputError(f"expected {RATES[0]:,} to {RATES[1]:,} samples per second, its header says {rate:,}")
        samples = 0
        for piece in cut_at_pauses(reading.read_blocks(sound), rate):
            reading.check_samples(piece)
            if piece.any() or not samples:
                yield torch.from_numpy(resample(piece, rate, sample_rate))
            samples += len(piece)
    if not samples:
        raise InputError("there is no audio in the file")


def cut_at_pauses(blocks: Iterable[np.ndarray], sample_rate: int) -> Iterator[np.ndarray]:
    """Put blocks of audio (S,) together to pieces (S,) that begin and end in pauses, where there is more than one."""
    shortest, longest = (round(seconds * sample_rate) for seconds in PIECE_SECONDS)
    held, samples = [], 0
    for block in blocks:
        held.append(block)
        samples += len(block)
        while samples > longest:
            audio = np.concatenate(held)
            end = shortest + quietest(audio[shortest:longest], sample_rate)
            yield audio[:end]
            held, samples = [audio[end:]], samples - end
    if samples:
        yield np.concatenate(held)


def quietest(audio: np.ndarray, sample_rate: int) -> int:
    """Return the middle of the stretch of 0.2 s with the least power in audio (S,); the first of several."""
    hop, frames = sample_rate // 100, round(100 * PAUSE_SECONDS)
    powers = np.square(audio[: len(audio) // hop * hop].reshape(-1, hop), dtype=np.float64).sum(axis=1)  # (T,)
    sums = np.concatenate([[0.0], np.cumsum(powers)])
    return (int(np.argmin(sums[frames:] - sums[:-frames])) + frames // 2) * hop


def transcribe(recognizer: Recognizer, paths: Iterable[str], batch_seconds: float) -> Iterator[Transcript]:
    """Transcribe files; texts come in the order of the paths, problems as soon as they are met.

    Args:
        recognizer: In evaluation mode, on its device.
        paths: Read one after another; about four batches of audio are held.
        batch_seconds: Seconds of audio, padding included, of a batch of several pieces.
    """
    rate = recognizer.features.sample_rate
    files: deque[_File] = deque()  # whose transcripts are to come
    window: list[Piece] = []
    held = 0.0  # seconds
    for path in paths:
        file = _File(path)
        files.append(file)
        try:
            for audio in read_pieces(path, rate):
                window.append((file, len(file.texts), Utterance(path, audio, rate)))
                file.texts.append(None)
                held += len(audio) / rate
                if held >= WINDOW_BATCHES * batch_seconds:
                    yield from _transcribe_window(recognizer, window, files, batch_seconds)
                    window, held = [], 0.0
                if file.problem:
                    break
            file.complete = True
        except InputError as error:
            file.problem = str(error)
            window = [piece for piece in window if piece[0] is not file]
            held = sum(len(one.audio) / rate for _, _, one in window)
        yield from _take_ready(files)
    yield from _transcribe_window(recognizer, window, files, batch_seconds)


def _transcribe_window(
    recognizer: Recognizer, window: Sequence[Piece], files: deque[_File], batch_seconds: float
) -> Iterator[Transcript]:
    for numbers in plan_batches([len(one.audio) / one.sample_rate for *_, one in window], batch_seconds):
        for number, heard in zip(numbers, _recognize(recognizer, [window[n][2] for n in numbers]), strict=True):
            file, place, _ = window[number]
            file.texts[place] = heard.text
            file.problem = file.problem or heard.problem
        yield from _take_ready(files)


def _take_ready(files: deque[_File]) -> Iterator[Transcript]:
    """Take out the files with a problem, and of the others those that are ready up to the first that is not."""
    for file in [file for file in files if file.problem]:
        files.remove(file)
        yield Transcript(file.path, problem=file.problem)
    while files and (ready := files[0].transcript()) is not None:
        files.popleft()
        yield ready


def plan_batches(seconds: Sequence[float], batch_seconds: float) -> list[list[int]]:
    """Put pieces of similar length together.

    Args:
        seconds: Lengths of pieces.
        batch_seconds: Most seconds of a batch of several pieces, with every piece padded to the longest.

    Returns:
        The numbers of the pieces of each batch; the batch of the first piece comes first.
    """
    batches: list[list[int]] = []
    for number in sorted(range(len(seconds)), key=lambda one: seconds[one]):
        if batches and seconds[number] * (len(batches[-1]) + 1) <= batch_seconds:
            batches[-1].append(number)
        else:
            batches.append([number])
    return sorted(batches, key=min)


def _recognize(recognizer: Recognizer, utterances: Sequence[Utterance]) -> list[Transcript]:
    """Transcribe a batch; one that does not fit into memory is halved, until a single file is too long."""
    try:
        with torch.inference_mode():
            texts = recognizer.transcribe(Batch.collate(utterances).to(recognizer.device))
        return [Transcript(one.id, text) for one, text in zip(utterances, texts, strict=True)]
    except (RuntimeError, MemoryError) as error:
        if not is_memory_error(error):
            raise
    if len(utterances) > 1:
        half = len(utterances) // 2
        return _recognize(recognizer, utterances[:half]) + _recognize(recognizer, utterances[half:])
    seconds = len(utterances[0].audio) / utterances[0].sample_rate
    return [Transcript(utterances[0].id, problem=f"{seconds:.0f} s are too long for the memory; cut the file")]


def prepare(checkpoint: Path, device: str, beam: int | None, config: Path | None = None) -> Recognizer:
    """Return the recogniser of a checkpoint, ready to transcribe.

    Args:
        checkpoint: As `lightning fit` saves it.
        device: `auto`, `cpu` or `cuda`.
        beam: Replaces its beam, where it has one.
        config: An experiment, which decides everything but the weights, as in `lightning test`. None, or one without a
            model: the checkpoint's own configuration is taken.

    Raises:
        InputError: The checkpoint or the experiment cannot be used, they are of different networks, there is no such
            device, or the recogniser has no beam.
    """
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise InputError("--device cuda: torch finds no GPU here; use --device cpu")
    try:
        experiment = read_model(config)
    except InputError as error:
        raise InputError(f"{config}: {error}") from error
    try:
        recognizer = load_recognizer(checkpoint, experiment)
    except ValueError as error:  # its parts have their own
        raise InputError(str(error)) from error
    if beam is not None:
        search: Any = getattr(recognizer, "search", None)
        if not hasattr(search, "beam"):
            raise InputError(f"--beam: a {type(recognizer).__name__} has no beam; leave the option out")
        search.beam = beam
    return recognizer.to("cuda" if available and device != "cpu" else "cpu")


def write_transcripts(recognizer: Recognizer, paths: Sequence[str], batch_seconds: float, output: TextIO) -> bool:
    """Write `path<TAB>text` lines, name bad files on stderr, and say whether all files were good."""
    good = True
    with tqdm(total=len(paths), unit="file", disable=not sys.stderr.isatty()) as bar:
        for transcript in transcribe(recognizer, paths, batch_seconds):
            bar.update()
            with bar.external_write_mode():
                if transcript.problem:
                    good = False
                    print(printable(f"{transcript.path}: {transcript.problem}"), file=sys.stderr, flush=True)
                else:
                    name = printable(transcript.path) if output.isatty() else as_column(transcript.path)
                    print(f"{name}\t{printable(transcript.text)}", file=output, flush=True)
    return good


def as_column(path: str) -> str:
    """Write a path for other programs: what would end a column or line is escaped, bytes that are no UTF-8 stay."""
    return re.sub("[^\udc80-\udcff]+", lambda match: printable(match[0]), path)
