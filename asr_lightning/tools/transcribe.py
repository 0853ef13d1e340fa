"""Transcribes audio files with a trained recognizer.

Example: python -m asr_lightning.tools.transcribe --checkpoint runs/rnnt/checkpoints/last.ckpt a.wav b.flac > texts.tsv
"""

import argparse
import functools
import io
import math
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchaudio
from torch import Tensor
from tqdm import tqdm

from asr_lightning.analysis.calibration import Calibration, read_calibration
from asr_lightning.audio import reading
from asr_lightning.batch import Batch, Utterance, is_memory_error
from asr_lightning.decoding.hypothesis import Hypothesis
from asr_lightning.decoding.merging import join_words
from asr_lightning.decoding.words import POOLINGS, Pooling
from asr_lightning.errors import InputError, printable
from asr_lightning.files import regular
from asr_lightning.models.checkpoints import load_recognizer
from asr_lightning.models.experiment import read_model
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.text.timed_words import Word
from asr_lightning.tools.arguments import above_zero, whole_number
from asr_lightning.tools.transcript_files import (
    FORMATS,
    Part,
    Transcript,
    TranscriptFolder,
    as_line,
    find_sounds,
    writers,
)

WINDOW_BATCHES = 4  # so many batches of audio are held, to find pieces of similar length in them
LARGEST_RATIO = 1_000  # of resampling; its filters grow with it
RATES = (1_000, 1_000_000)  # lowest and highest number of samples per second that may be speech
PIECE_SECONDS = (20.0, 40.0)  # a longer file is cut where it is quietest between so many seconds
OVERLAP_SECONDS = 2.0  # that a piece goes on to each side of a cut: context for the encoder, and words to join by
PAUSE_SECONDS = 0.2  # of the stretch whose power is compared to find that place


@dataclass(frozen=True)
class Piece:
    """A stretch of a file.

    Attributes:
        audio: (S,) float32 in [-1, 1]; none where there is no sound in it.
        seconds: Its length.
        start: Seconds from the beginning of the file.
        border: Seconds; where the next piece takes over, though this one goes on for an overlap. Infinite for the last.
    """

    audio: Tensor
    seconds: float
    start: float
    border: float = math.inf


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
            alone = tuple(shifted(parts[0]))
            return Transcript(self.path, parts[0].hypotheses[0].text, "", alone, self.seconds, tuple(parts))
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
            while tail and words[tail - 1].end > border - 2 * OVERLAP_SECONDS:
                tail -= 1
            words[tail:] = join_words(words[tail:], shifted(part), border, OVERLAP_SECONDS)
            border = following
        text = " ".join(word.text for word in words)
        return Transcript(self.path, text, "", tuple(words), self.seconds, tuple(parts))


_Held = tuple[_File, int, Utterance, float]  # a file, the number of a piece in it, the piece, and when it begins
_Recognize = Callable[[Sequence[Utterance]], list[list[Hypothesis] | str]]


def shifted(part: Part) -> list[Word]:
    """Return the words of the best hypothesis of a piece, with times from the beginning of the file."""
    return [
        replace(word, start=part.start + word.start, end=part.start + word.end) for word in part.hypotheses[0].words
    ]


def read_pieces(path: str, sample_rate: int) -> Iterator[Piece]:
    """Read a file of any format, sample rate and number of channels that libsndfile knows.

    A file of at most 42 s is one piece. A longer one is cut at its pauses into pieces that overlap by 2 s to each side
    of a cut, and the samples of pieces without any sound are left out, so that what is in memory does not depend on its
    length, and silence costs little.

    Args:
        path: Of the file.
        sample_rate: Samples per second of the result.

    Returns:
        Pieces; their audio is the mean of the channels. The first one has its samples also without sound.

    Raises:
        InputError: It is missing, unreadable, empty, cut off, or holds impossible samples; perhaps after some pieces.
    """
    with reading.open_sound(path) as sound:
        rate = sound.samplerate
        if not RATES[0] <= rate <= RATES[1]:
            raise InputError(f"expected {RATES[0]:,} to {RATES[1]:,} samples per second, its header says {rate:,}")
        empty = True
        for audio, start, border in cut_at_pauses(reading.read_blocks(sound), rate):
            reading.check_samples(audio)
            kept = audio if audio.any() or empty else audio[:0]
            yield Piece(
                change_rate(torch.from_numpy(kept), rate, sample_rate) if len(kept) else torch.zeros(0),
                len(audio) / rate,
                start / rate,
                math.inf if border is None else border / rate,
            )
            empty = False
    if empty:
        raise InputError("there is no audio in the file")


def cut_at_pauses(blocks: Iterable[np.ndarray], sample_rate: int) -> Iterator[tuple[np.ndarray, int, int | None]]:
    """Put blocks of audio (S,) together to pieces that are cut at pauses and overlap there.

    Args:
        blocks: One behind the other.
        sample_rate: Samples per second.

    Returns:
        Audio (S,) of a piece, its first sample, and the sample at which it was cut; None for the last piece, which is
        the only one where the audio is short.
    """
    shortest, longest = (round(seconds * sample_rate) for seconds in PIECE_SECONDS)
    overlap = round(OVERLAP_SECONDS * sample_rate)
    held: list[np.ndarray] = []
    samples, start, lead = 0, 0, 0  # held; before them; of them, those that the piece before has too
    for block in blocks:
        held.append(block)
        samples += len(block)
        while samples > lead + longest + overlap:
            audio = np.concatenate(held)
            cut = lead + shortest + quietest(audio[lead + shortest : lead + longest], sample_rate)
            yield audio[: cut + overlap], start, start + cut
            rest = max(0, cut - overlap)
            held, samples, start, lead = [audio[rest:]], samples - rest, start + rest, cut - rest
    if samples:
        yield np.concatenate(held), start, None


def quietest(audio: np.ndarray, sample_rate: int) -> int:
    """Return the middle of the stretch of 0.2 s with the least power in audio (S,); the first of several."""
    hop, frames = sample_rate // 100, round(100 * PAUSE_SECONDS)
    powers = np.square(audio[: len(audio) // hop * hop].reshape(-1, hop), dtype=np.float64).sum(axis=1)  # (T,)
    sums = np.concatenate([[0.0], np.cumsum(powers)])
    return (int(np.argmin(sums[frames:] - sums[:-frames])) + frames // 2) * hop


def change_rate(audio: Tensor, before: int, after: int) -> Tensor:
    """Resample audio (S,) from one rate in hertz to another; odd ratios to within a millionth."""
    # The filters of 16,000 / 22,254 would fill gigabytes, those of 663 / 922 do not.
    ratio = Fraction(before, after).limit_denominator(LARGEST_RATIO)
    return torchaudio.functional.resample(audio, max(1, ratio.numerator), ratio.denominator)


def transcribe(
    recognizer: Recognizer,
    paths: Iterable[str],
    batch_seconds: float,
    pooling: Pooling = "product",
    heard: Callable[[float], object] = lambda seconds: None,
) -> Iterator[Transcript]:
    """Transcribe files; transcripts come in the order of the paths, problems as soon as they are met.

    Args:
        recognizer: In evaluation mode, on its device.
        paths: Read one after another; about four batches of audio are held.
        batch_seconds: Seconds of audio, padding included, of a batch of several pieces.
        pooling: How the confidence of a word follows from the probabilities of its tokens.
        heard: Called with the seconds of each piece that is read.
    """
    rate = recognizer.features.sample_rate
    recognize = functools.partial(_recognize, recognizer, pooling)
    files: deque[_File] = deque()  # whose transcripts are to come
    window: list[_Held] = []
    held = 0.0  # seconds
    for path in paths:
        file = _File(path)
        files.append(file)
        try:
            for piece in read_pieces(path, rate):
                heard(piece.start + piece.seconds - file.seconds)
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
            held = sum(len(one.audio) / rate for _, _, one, _ in window)
        yield from _take_ready(files)
    yield from _transcribe_window(recognize, window, files, batch_seconds)


def _transcribe_window(
    recognize: _Recognize, window: Sequence[_Held], files: deque[_File], batch_seconds: float
) -> Iterator[Transcript]:
    seconds = [len(one.audio) / one.sample_rate for _, _, one, _ in window]
    for numbers in plan_batches(seconds, batch_seconds):
        for number, found in zip(numbers, recognize([window[n][2] for n in numbers]), strict=True):
            file, place, _, start = window[number]
            if isinstance(found, str):
                file.problem = file.problem or found
            else:
                file.parts[place] = Part(start, start + seconds[number], tuple(found))
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


def prepare(checkpoint: Path, device: str, beam: int | None, config: Path | None = None) -> Recognizer:
    """Return the recognizer of a checkpoint, ready to transcribe.

    Args:
        checkpoint: As `lightning fit` saves it.
        device: `auto`, `cpu` or `cuda`.
        beam: Replaces its beam, where it has one.
        config: An experiment, which decides everything but the weights, as in `lightning test`. None, or one without a
            model: the checkpoint's own configuration is taken.

    Raises:
        InputError: The checkpoint or the experiment cannot be used, they are of different networks, there is no such
            device, or the recognizer has no beam.
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


def keep_hypotheses(recognizer: Recognizer, number: int) -> None:
    """Let a search find so many hypotheses, at least.

    Raises:
        InputError: It cannot find more than one.
    """
    search: Any = getattr(recognizer, "search", None)
    name = "hypotheses" if hasattr(search, "hypotheses") else "beam"
    if not hasattr(search, name):
        raise InputError(f"--n-best: a {type(recognizer).__name__} has no beam; leave the option out")
    setattr(search, name, max(number, getattr(search, name)))


def write_transcripts(
    transcripts: Callable[[Callable[[float], object]], Iterable[Transcript]],
    files: int,
    write: Callable[[Transcript], object],
) -> bool:
    """Write transcripts, name bad files on stderr, and say whether all files were good.

    Args:
        transcripts: Called once, with what is to be told the seconds of audio that are read.
        files: How many transcripts there will be.
        write: Called with each transcript.
    """
    good, seconds = True, 0.0
    with tqdm(total=files, unit="file", disable=not sys.stderr.isatty()) as bar:

        def count(more: float) -> None:
            nonlocal seconds
            seconds += more
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


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m asr_lightning.tools.transcribe",
        description="Transcribe audio files: one line `path<TAB>text` per file, in the order given, or files in other "
        r"formats. Tabs, ends of lines and controls in a path are written as \t, \n and \x1b.",
        epilog="A file that cannot be used, or is cut off, has no transcript: it is named on stderr with the reason, "
        "and the rest goes on. A file of more than 42 s is recognized in overlapping pieces of 20 to 44 s, cut at "
        "pauses and joined by the times of their words. Exit status: 0, 1 if any file was bad, 2 if the checkpoint or "
        "an option cannot be used.",
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="a .ckpt file that `lightning fit` has written")
    parser.add_argument(
        "--config", type=Path, metavar="YAML",
        help="an experiment of the same network, whose model holds, as its search (default: what is in the checkpoint)",
    )  # fmt: skip
    parser.add_argument(
        "audio", nargs="*", metavar="AUDIO",
        help="WAV, FLAC, OGG, MP3, …; any sample rate, channels are mixed to one. Or folders with such files",
    )  # fmt: skip
    parser.add_argument("--list", type=Path, metavar="FILE", help="more of them, a path a line; - for standard input")
    parser.add_argument(
        "--formats", nargs="+", choices=FORMATS, default=["txt"], metavar="F",
        help=f"of {', '.join(FORMATS)}; without --output one of txt, json, ctm, on standard output (default: txt)",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER",
        help="gets FOLDER/NAME.FORMAT for every file; files that have all of theirs are left alone",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="transcribe files again that have their transcripts")
    parser.add_argument(
        "--n-best", type=whole_number(1), default=1, metavar="N", help="hypotheses of each piece in json (default: 1)"
    )
    parser.add_argument(
        "--confidence", choices=tuple(POOLINGS), default="product",
        help="of a word, from the probabilities of its tokens (default: product)",
    )  # fmt: skip
    parser.add_argument(
        "--calibration", type=Path, metavar="JSON", help="of these confidences, as tools.confidence writes it"
    )
    parser.add_argument(
        "--beam", type=whole_number(1), metavar="N",
        help="hypotheses kept in decoding (default: as experiment or checkpoint say)",
    )  # fmt: skip
    parser.add_argument(
        "--batch-seconds", type=above_zero(float), default=100.0, metavar="S",
        help="seconds of audio that are recognized at once; a longer piece goes alone (default: 100)",
    )  # fmt: skip
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto, a GPU where there is one"
    )
    return parser


def calibrated(transcript: Transcript, calibration: Calibration) -> Transcript:
    """Return a transcript with calibrated confidences."""
    known = [word.confidence for word in transcript.words if word.confidence is not None]
    values = iter(calibration(np.array(known)).tolist())
    words = (word if word.confidence is None else replace(word, confidence=next(values)) for word in transcript.words)
    return replace(transcript, words=tuple(words))


def _read_list(path: Path) -> list[str]:
    try:
        text = sys.stdin.read() if str(path) == "-" else regular(path).read_text("utf-8", errors="surrogateescape")
    except OSError as error:
        raise InputError(f"--list: cannot read {path}: {error.strerror}") from error
    return [line for line in text.splitlines() if line.strip()]


def _run(options: argparse.Namespace) -> int:
    given = [*options.audio, *(_read_list(options.list) if options.list is not None else [])]
    if not given:
        raise InputError("expected audio files, folders or a --list of them, got none")
    formats = list(dict.fromkeys(options.formats))
    if options.output is None and (len(formats) > 1 or formats[0] not in ("txt", "json", "ctm")):
        raise InputError(f"--formats {' '.join(formats)}: expected an --output folder for them, since each is a file")
    if options.n_best > 1 and "json" not in formats:
        raise InputError("--n-best: only --formats json has more than the best hypothesis")
    paths: Sequence[str] = given
    if options.output is not None:
        folder = TranscriptFolder(options.output, formats, find_sounds(given), options.n_best, options.overwrite)
        paths, write = folder.unfinished(), folder.write
        if done := len(folder.names) - len(paths):
            print(f"{done} of {len(folder.names)} files have their transcripts; --overwrite makes them anew",
                  file=sys.stderr)  # fmt: skip
    else:
        paths = [name for path in given for name in (find_sounds([path]) if Path(path).is_dir() else [path])]
        terminal = sys.stdout.isatty()
        make = {
            "txt": lambda one: as_line(one, terminal),
            **{name: writers(options.n_best)[name] for name in ("json", "ctm")},
        }[formats[0]]

        def write(transcript: Transcript) -> None:
            print(make(transcript), end="", flush=True)

    calibration = None if options.calibration is None else read_calibration(options.calibration)
    recognizer = prepare(options.checkpoint, options.device, options.beam, options.config)
    if options.n_best > 1:
        keep_hypotheses(recognizer, options.n_best)

    def transcripts(heard: Callable[[float], object]) -> Iterable[Transcript]:
        found = transcribe(recognizer, paths, options.batch_seconds, options.confidence, heard)
        return found if calibration is None else (calibrated(one, calibration) for one in found)

    return 0 if write_transcripts(transcripts, len(paths), write) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = make_parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may be in any encoding
            stream.reconfigure(errors="surrogateescape")
    try:
        return _run(options)
    except InputError as error:  # also of a language model that the search needs
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # as by `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
