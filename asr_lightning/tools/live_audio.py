"""Audio that is still coming: from a microphone, a pipe of raw samples, or a file that is played."""

import importlib
import math
import os
import queue
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from asr_lightning.audio.reading import check_samples, open_sound, read_blocks
from asr_lightning.audio.resampling import SAMPLE_RATES
from asr_lightning.errors import InputError, reason

PCM = {"s16le": "<i2", "s16be": ">i2", "s32le": "<i4", "f32le": "<f4"}  # as ffmpeg calls them
PIECE_SECONDS = 0.1  # of a file that is played
BLOCK_BYTES = 1 << 16  # read from a pipe at a time, at most
MICROPHONE_SECONDS = 60.0  # that are kept while recognition falls behind
HEADERS = {b"RIFF": "WAV", b"fLaC": "FLAC", b"OggS": "Ogg", b"ID3\x03": "MP3", b"ID3\x04": "MP3"}


def decode_pcm(data: bytes, pcm: str) -> np.ndarray:
    """Return raw samples as (S,) float32 in [-1, 1].

    Args:
        data: A whole number of samples.
        pcm: A name of `PCM`.

    Raises:
        InputError: Samples are infinite, not a number, or far outside [-1, 1].
    """
    samples = np.frombuffer(data, PCM[pcm])
    if samples.dtype.kind == "f":
        audio = samples.astype(np.float32)
        check_samples(audio)
        return audio
    return (samples / -float(np.iinfo(samples.dtype).min)).astype(np.float32)


def read_pipe(pcm: str) -> Iterator[np.ndarray]:
    """Yield the samples (S,) of standard input as they come.

    Args:
        pcm: A name of `PCM`.

    Raises:
        InputError: Standard input is a terminal or a file with a header, or ends within a sample.
    """
    descriptor = sys.stdin.fileno()
    if os.isatty(descriptor):
        raise InputError(
            "expected raw samples from a pipe, found a terminal: ffmpeg -i SOURCE -f s16le -ac 1 -ar 16000 - | "
            "asr listen CHECKPOINT -"
        )
    size = np.dtype(PCM[pcm]).itemsize
    waiting, begun = b"", False
    while data := os.read(descriptor, BLOCK_BYTES):
        waiting += data
        if not begun and len(waiting) >= 4:
            begun = True
            if kind := HEADERS.get(waiting[:4]):
                raise InputError(
                    f"standard input: expected raw samples, found the header of {kind}: use --file for a file, or let "
                    "ffmpeg decode it: ffmpeg -i SOURCE -f s16le -ac 1 -ar 16000 -"
                )
        complete = len(waiting) // size * size
        if complete:
            yield decode_pcm(waiting[:complete], pcm)
        waiting = waiting[complete:]
    if waiting:
        raise InputError(
            f"standard input ends within a sample: expected a multiple of {size} bytes of {pcm}, found {len(waiting)} "
            "more. The text of the audio before is complete"
        )


def read_file(path: str) -> tuple[int, Iterator[np.ndarray]]:
    """Return the samples per second of a file, and its samples piece by piece.

    Raises:
        InputError: The file cannot be used; perhaps after some pieces.
    """
    with open_sound(path) as sound:
        rate = sound.samplerate
    if not SAMPLE_RATES[0] <= rate <= SAMPLE_RATES[1]:
        raise InputError(
            f"{path}: expected {SAMPLE_RATES[0]:,} to {SAMPLE_RATES[1]:,} samples per second, its header says {rate:,}"
        )
    return rate, _pieces(path, rate)


def _pieces(path: str, rate: int) -> Iterator[np.ndarray]:
    size = max(1, round(PIECE_SECONDS * rate))
    try:
        with open_sound(path) as sound:
            for block in read_blocks(sound):
                check_samples(block)
                yield from (block[start : start + size] for start in range(0, len(block), size))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def played(pieces: Iterable[np.ndarray], sample_rate: int) -> Iterator[np.ndarray]:
    """Yield pieces (S,) each when its last sample would be heard, if the first one were heard now."""
    begun, samples = time.monotonic(), 0
    for piece in pieces:
        samples += len(piece)
        time.sleep(max(0.0, begun + samples / sample_rate - time.monotonic()))
        yield piece


@contextmanager
def microphone(name: str | None, sample_rate: int) -> Iterator[tuple[int, Iterator[np.ndarray]]]:
    """Open a microphone.

    Args:
        name: Its number or a part of its name; the usual one of this machine if None.
        sample_rate: Wanted samples per second.

    Yields:
        Its samples per second, which are its own where it does not have the wanted ones, and its samples piece by
        piece, without end.

    Raises:
        InputError: There is no such microphone, or the library for it is missing.
    """
    sounddevice = _sounddevice()
    device: int | str | None = int(name) if name is not None and name.isdigit() else name
    rate = sample_rate
    try:
        try:
            sounddevice.check_input_settings(device=device, channels=1, dtype="float32", samplerate=rate)
        except sounddevice.PortAudioError:
            rate = round(sounddevice.query_devices(device, "input")["default_samplerate"])
        blocks: queue.Queue[np.ndarray] = queue.Queue(math.ceil(MICROPHONE_SECONDS / PIECE_SECONDS))
        lost = 0

        def put(block: np.ndarray, frames: int, times: object, status: object) -> None:
            nonlocal lost
            try:
                blocks.put_nowait(block[:, 0].copy())
            except queue.Full:
                lost += frames

        def pieces() -> Iterator[np.ndarray]:
            nonlocal lost
            while True:
                yield blocks.get()
                if lost:
                    seconds, lost = lost / rate, 0
                    print(f"{seconds:.1f} s of audio are lost: recognition is slower than speech", file=sys.stderr)

        with sounddevice.InputStream(
            device=device, samplerate=rate, channels=1, dtype="float32", blocksize=round(PIECE_SECONDS * rate),
            callback=put,
        ):  # fmt: skip
            yield rate, pieces()
    except (sounddevice.PortAudioError, ValueError) as error:  # ValueError: no device, or several, of this name
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"no microphone can be opened: {reason(error)}. `python -m sounddevice` lists them; --microphone names one"
        ) from error


def _sounddevice() -> Any:  # noqa: ANN401 - a module that may be missing
    try:
        return importlib.import_module("sounddevice")
    except ImportError as error:
        raise InputError(
            "a microphone needs the package sounddevice: pip install 'asr_lightning[listen]'; or send raw samples "
            "through a pipe: asr listen CHECKPOINT -"
        ) from error
    except OSError as error:
        raise InputError(
            f"sounddevice finds no PortAudio ({reason(error)}): apt install libportaudio2, or send raw samples through "
            "a pipe: asr listen CHECKPOINT -"
        ) from error
