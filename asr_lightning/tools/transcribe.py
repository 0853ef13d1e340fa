"""Transcribes audio files with a trained recogniser.

Example: python -m asr_lightning.tools.transcribe --checkpoint runs/rnnt/checkpoints/last.ckpt a.wav b.flac > texts.tsv
"""

import argparse
import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import soundfile
import torch
import torchaudio
from torch import Tensor
from tqdm import tqdm

from asr_lightning.batch import Batch, Utterance, is_memory_error
from asr_lightning.errors import InputError
from asr_lightning.files import regular
from asr_lightning.models.checkpoints import load_recognizer
from asr_lightning.models.experiment import read_model
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.tools.arguments import above_zero, whole_number

BLOCK_FRAMES = 1 << 20  # decoded at a time: of a file with many channels, only the mix is held whole
WINDOW_BATCHES = 4  # so many batches of audio are held, to find files of similar length in them
LARGEST_RATIO = 1_000  # of resampling; its filters grow with it


@dataclass(frozen=True)
class Transcript:
    """What was heard in one file, or why nothing could be."""

    path: str
    text: str = ""
    problem: str = ""


def read_audio(path: str, sample_rate: int) -> Tensor:
    """Read a file of any format, sample rate and number of channels that libsndfile knows.

    Args:
        path: Where it is.
        sample_rate: Samples per second of the result.

    Returns:
        (S,) float32 in [-1, 1], the mean of the channels.

    Raises:
        InputError: It is missing, unreadable, empty, or holds samples that are not finite.
    """
    try:
        with regular(Path(path)).open("rb") as file:
            if file.seekable() and not file.seek(0, os.SEEK_END):
                raise InputError("the file is empty")
            file.seek(0)
            with soundfile.SoundFile(file) as sound:
                rate = sound.samplerate
                blocks = sound.blocks(BLOCK_FRAMES, dtype="float32", always_2d=True)
                mixed = [block.mean(axis=1) for block in blocks]
    except OSError as error:
        raise InputError(error.strerror or str(error)) from error
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: named .raw, and so without a header
        detail = " ".join(getattr(error, "error_string", str(error)).split())
        raise InputError(f"expected a sound file that libsndfile reads, as WAV, FLAC, OGG or MP3: {detail}") from error
    audio = torch.from_numpy(np.concatenate(mixed or [np.zeros(0, np.float32)]))
    if not len(audio):
        raise InputError("there is no audio in the file")
    if not audio.isfinite().all():
        raise InputError("the audio has samples that are infinite or not a number")
    return change_rate(audio, rate, sample_rate)


def change_rate(audio: Tensor, before: int, after: int) -> Tensor:
    """Resample audio (S,) from one rate in hertz to another; odd ratios to within a millionth."""
    # The filters of 16,000 / 22,254 would fill gigabytes, those of 663 / 922 do not.
    ratio = Fraction(before, after).limit_denominator(LARGEST_RATIO)
    return torchaudio.functional.resample(audio, max(1, ratio.numerator), ratio.denominator)


def transcribe(recognizer: Recognizer, paths: Iterable[str], batch_seconds: float) -> Iterator[Transcript]:
    """Transcribe files; texts come in the order of the paths, problems as soon as they are met.

    Args:
        recognizer: In evaluation mode, on its device.
        paths: Read one after another; about four batches of audio are held, or one file if it is longer.
        batch_seconds: Seconds of audio, padding included, of a batch of several files.
    """
    rate = recognizer.features.sample_rate
    window: list[Utterance] = []
    held = 0.0  # seconds
    for path in paths:
        try:
            audio = read_audio(path, rate)
        except InputError as error:
            yield Transcript(path, problem=str(error))
            continue
        window.append(Utterance(path, audio, rate))
        held += len(audio) / rate
        if held >= WINDOW_BATCHES * batch_seconds:
            yield from _transcribe_window(recognizer, window, batch_seconds)
            window, held = [], 0.0
    yield from _transcribe_window(recognizer, window, batch_seconds)


def _transcribe_window(
    recognizer: Recognizer, window: Sequence[Utterance], batch_seconds: float
) -> Iterator[Transcript]:
    done: dict[int, Transcript] = {}
    following = 0
    for numbers in plan_batches([len(one.audio) / one.sample_rate for one in window], batch_seconds):
        texts = _recognize(recognizer, [window[number] for number in numbers])
        done |= dict(zip(numbers, texts, strict=True))
        while following in done:
            yield done.pop(following)
            following += 1


def plan_batches(seconds: Sequence[float], batch_seconds: float) -> list[list[int]]:
    """Put files of similar length together.

    Args:
        seconds: Lengths of files.
        batch_seconds: Most seconds of a batch of several files, with every file padded to the longest.

    Returns:
        The numbers of the files of each batch; the batch of the first file comes first.
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
                    print(f"{transcript.path}: {transcript.problem}", file=sys.stderr, flush=True)
                else:
                    print(f"{transcript.path}\t{transcript.text}", file=output, flush=True)
    return good


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m asr_lightning.tools.transcribe",
        description="Transcribe audio files: one line `path<TAB>text` per file, in the order given.",
        epilog="A file that cannot be used is named on stderr, and the rest goes on. Exit status: 0, 1 if any file was "
        "bad, 2 if the checkpoint or an option cannot be used.",
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="a .ckpt file that `lightning fit` has written")
    parser.add_argument(
        "--config", type=Path, metavar="YAML",
        help="an experiment of the same network, whose model holds, as its search (default: what is in the checkpoint)",
    )  # fmt: skip
    parser.add_argument(
        "audio", nargs="+", metavar="AUDIO", help="WAV, FLAC, OGG, MP3, …; any sample rate, channels are mixed to one"
    )
    parser.add_argument(
        "--beam", type=whole_number(1), metavar="N",
        help="hypotheses kept in decoding (default: as experiment or checkpoint say)",
    )  # fmt: skip
    parser.add_argument(
        "--batch-seconds", type=above_zero(float), default=100.0, metavar="S",
        help="seconds of audio that are recognised at once; a longer file goes alone (default: 100)",
    )  # fmt: skip
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto, a GPU where there is one"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = make_parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may be in any encoding
            stream.reconfigure(errors="surrogateescape")
    try:
        recognizer = prepare(options.checkpoint, options.device, options.beam, options.config)
        return 0 if write_transcripts(recognizer, options.audio, options.batch_seconds, sys.stdout) else 1
    except InputError as error:  # also of a language model that the search needs
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # as by `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
