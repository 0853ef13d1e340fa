"""Reading of audio files, and checks of headers, lengths, samples and channels."""

import os
import re
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile

from asr_lightning.errors import InputError
from asr_lightning.files import regular

BLOCK_SAMPLES = 1 << 16  # decoded at a time, of all channels together
TOLERANCE = 0.025  # seconds between what is promised and what is delivered; some MP3 encoders are off by a frame
LOUDEST = 100.0  # of a sample, where full scale is 1: no recording is 40 dB above full scale
UNKNOWN = 1 << 62  # samples; libsndfile gives more than that where a header gives no number, as in a FLAC stream
# Sizes in bytes that programs write before they know the true one, as when a WAV file goes into a pipe.
PLACEHOLDERS = (range(0x7FFF_0000, 0x8000_0001), range(0xFFFF_0000, 0x1_0000_0000))
CANCELLED = 0.05  # of the channels' power is left in their mean: channels that have nothing in common leave half
SILENCE = 1e-9  # power of a sample that is none: -90 dB of full scale
SLACK = 4096  # bytes after the end that a header gives: tags, or a frame that was not counted
OGG_PAGE = 65_307  # bytes of the longest page

# In the log of libsndfile: sizes that the header of a WAV, AIFF, W64 or AU file promises, and the true ones.
_SHORTER = re.compile(r"^ *(?:data|SSND|riff|Data Size) *: *(\d+) \(should be (\d+)\)", re.MULTILINE)
_SHORTER_RF64 = re.compile(r"from 'ds64' chunk of (\d+)")  # in samples
_BEHIND_WAV = re.compile(r"Unknown chunk marker .* at position (\d+)")


class Header(NamedTuple):
    """The header of an audio file; `samples` are those of one channel."""

    sample_rate: int
    samples: int
    channels: int


class Sound(soundfile.SoundFile):
    """An audio file that is read from its beginning to its end."""

    def seekable(self) -> bool:
        """Return False: soundfile would seek after every block, and fail at the end of a FLAC of unknown length."""
        return False

    @property
    def can_seek(self) -> bool:
        """Whether it can be read from a later sample on: not all codecs can, as GSM in WAV."""
        return super().seekable()


@contextmanager
def open_sound(source: str | BinaryIO) -> Iterator[Sound]:
    """Open an audio file of any format that libsndfile knows.

    Args:
        source: A path, or an open file.

    Raises:
        InputError: It is missing, unreadable, empty, no audio, or not of the length that its header promises.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(regular(Path(source)).open("rb")) if isinstance(source, str) else source
            if file.seekable() and not file.seek(0, os.SEEK_END):
                raise InputError("the file is empty")
            file.seek(0)
            sound = stack.enter_context(Sound(file))
            _check_length(sound, file)
            if sound.format == "MP3":
                sound.seek(0)  # else its decoder begins a little otherwise, and rounds other samples
        except OSError as error:
            raise InputError(error.strerror or str(error)) from error
        except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: named .raw, and so without a header
            raise InputError(
                f"expected a sound file that libsndfile reads, as WAV, FLAC, OGG or MP3: {_detail(error)} "
                f"{_advice(file)}"
            ) from error
        yield sound


def read_header(source: str | BinaryIO) -> Header:
    """Read the header of an audio file; one that gives no length is decoded to count its samples.

    A FLAC file is also asked for its last sample, which one that is cut off does not have: 0.1 ms.

    Raises:
        InputError: The file cannot be used.
    """
    with open_sound(source) as sound:
        samples = sound.frames
        if samples >= UNKNOWN:
            samples = sum(len(block) for block in read_blocks(sound))
        elif sound.format == "FLAC" and samples:
            try:
                sound.seek(samples - 1)
                last = len(sound.read(1))
            except soundfile.LibsndfileError:
                last = 0
            if not last:
                raise InputError(f"cut off: it ends before the {samples / sound.samplerate:.2f} s of its header")
        return Header(sound.samplerate, samples, sound.channels)


def read_audio(
    source: str | BinaryIO, channel: int | None = None, first: int = 0, samples: int | None = None
) -> tuple[np.ndarray, int]:
    """Read an audio file or a part of it: (S,) float32 in [-1, 1], and samples per second.

    Args:
        source: A path, or an open file.
        channel: The channel to take, from 0; None for the mean of all.
        first: The sample that the part begins with; of what lies before, nothing is decoded where the format allows it.
        samples: Of the part; None for all up to the end.

    Raises:
        InputError: The file cannot be used, delivers less than its header promises, has impossible samples, or has
            channels that cancel each other.
    """
    with open_sound(source) as sound:
        if first and sound.can_seek:
            try:
                sound.seek(first)
            except soundfile.LibsndfileError as error:
                raise InputError(f"there is no sample {first:,} in it: {_detail(error)}") from error
        elif first:
            samples = max(0, sound.frames - first) if samples is None else samples
            for _ in read_blocks(sound, channel, first):
                pass
        audio = np.concatenate([np.zeros(0, np.float32), *read_blocks(sound, channel, samples)])
        check_samples(audio)
        return audio, sound.samplerate


def read_blocks(sound: Sound, channel: int | None = None, samples: int | None = None) -> Iterator[np.ndarray]:
    """Decode a file block by block from where it stands: (S,) float32 each, one channel.

    Args:
        sound: The file.
        channel: The channel to take, from 0; None for the mean of all.
        samples: How many; None for all up to the end.

    Raises:
        InputError: It cannot be decoded to its end, the end comes before the header says, there is no such channel, or
            the channels cancel each other, as a left and a right one of opposite phase.
    """
    if channel is not None and not 0 <= channel < sound.channels:
        raise InputError(f"expected a channel {channel}, counted from 0, found {sound.channels} channels")
    rate, delivered = sound.samplerate, 0
    has_length = sound.frames < UNKNOWN
    begin = sound.tell() if has_length and sound.can_seek else 0
    total = samples if samples is not None else sound.frames - begin if has_length else UNKNOWN
    promised = f" of {total / rate:.2f} s" if total < UNKNOWN else ""
    buffer = np.empty((max(1, BLOCK_SAMPLES // sound.channels), sound.channels), np.float32)
    powers = np.zeros(2)  # of the mean of the channels, and the mean of theirs
    while delivered < total:
        try:  # a view of what was delivered: the rest of the buffer is old
            block = sound.read(out=buffer[: min(len(buffer), total - delivered)])
        except soundfile.LibsndfileError as error:
            raise InputError(
                f"damaged or cut off: decoding ends after {delivered / rate:.2f} s{promised}: {_detail(error)}"
            ) from error
        if not len(block):
            break
        delivered += len(block)
        if sound.channels == 1 or channel is not None:
            yield block[:, channel or 0].copy()
            continue
        mixed = block.mean(axis=1)
        powers += np.square(mixed, dtype=np.float64).sum(), np.square(block, dtype=np.float64).sum() / sound.channels
        yield mixed
    if promised and total - delivered > TOLERANCE * rate:
        raise InputError(f"cut off: it delivers {delivered / rate:.2f} s{promised}")
    check_phase(float(powers[0]), float(powers[1]), delivered)


def check_phase(mixed: float, apart: float, samples: int) -> None:
    """Check that the channels of a file do not cancel each other.

    Args:
        mixed: The sum of squares of the mean of the channels.
        apart: The mean of the channels' sums of squares.
        samples: Of each channel.

    Raises:
        InputError: They do.
    """
    if apart > SILENCE * samples and mixed < CANCELLED * apart:
        raise InputError(
            f"the channels are of opposite phase: their mean keeps {mixed / apart:.2%} of their power. Choose one of "
            "them by its number, as with --data.init_args.channel 0, or turn one around"
        )


def check_samples(audio: np.ndarray) -> None:
    """Check that samples are numbers of a possible size.

    Raises:
        InputError: Some are infinite, not a number, or far outside [-1, 1].
    """
    loudest = np.abs(audio).max(initial=0.0)
    if not np.isfinite(loudest):
        raise InputError("the audio has samples that are infinite or not a number")
    if loudest > LOUDEST:
        raise InputError(
            f"the audio has samples of up to {loudest:.3g}, expected [-1, 1]: divide floats that were scaled as 16-bit "
            "integers by 32,768"
        )


def _detail(error: Exception) -> str:
    return " ".join(getattr(error, "error_string", str(error)).split()) or "no reason is given"


def _advice(file: BinaryIO) -> str:
    """What to do about a file that is no audio: text, as a page that was saved in its place, or another format."""
    line = _read(file, 0, 40).partition(b"\n")[0].strip()
    if line.isascii() and line.decode().isprintable():
        return f"It is a text, {line.decode()!r}: fetch it again"
    return "Convert it, as with `ffmpeg -i OLD NEW.flac`"


def _check_length(sound: Sound, file: BinaryIO) -> None:
    """Compare the length in the header with that of the file, as far as formats tell it without decoding."""
    log, samples = sound.extra_info, sound.frames
    position, size = file.tell(), file.seek(0, os.SEEK_END)
    promised: float = samples
    if match := _SHORTER.search(log):
        promised_bytes, actual_bytes = int(match[1]), int(match[2])
        if not any(promised_bytes in sizes for sizes in PLACEHOLDERS):
            promised = samples * promised_bytes / max(1, actual_bytes)
    elif match := _SHORTER_RF64.search(log):
        promised = int(match[1])
    elif sound.format == "NIST":  # of which libsndfile logs nothing
        file.seek(0)
        count = re.search(rb"sample_count -i (\d+)", file.read(1024))
        promised = int(count[1]) if count else samples
    if promised - samples > TOLERANCE * sound.samplerate:
        seconds = f"{samples / sound.samplerate:.2f} s of {promised / sound.samplerate:.2f} s"
        raise InputError(f"cut off: {seconds} that its header promises are there")
    trailing = _BEHIND_WAV.search(log) if sound.format in ("WAV", "WAVEX") else None
    if trailing and size - int(trailing[1]) > SLACK:
        raise InputError(
            f"its header promises {samples / sound.samplerate:.2f} s, but the file is longer: maybe the recording "
            "was not closed. Rewrite the header, as with `sox --ignore-length OLD.wav NEW.wav`"
        )
    if sound.format == "OGG":
        _check_ogg(file, size)
    elif sound.format == "MP3":
        _check_mp3(file, size)
    file.seek(position)


def _check_ogg(file: BinaryIO, size: int) -> None:
    """Check that the last page of an Ogg stream, which is marked as such, exists and is of the first stream."""
    head, tail = _read(file, 0, SLACK), _read(file, max(0, size - OGG_PAGE), OGG_PAGE)
    page = tail[tail.rfind(b"OggS") :]
    segments = page[27 : 27 + page[26]] if len(page) > 26 else b""
    if not segments or len(page) < 27 + len(segments) + sum(segments) or not page[5] & 4:
        raise InputError("cut off: the end of the Ogg stream is missing")
    streams = {head[match.start() + 14 : match.start() + 18] for match in re.finditer(b"OggS", head)}
    if page[14:18] not in streams:
        raise InputError("its Ogg stream is followed by another one: joined files? Encode it anew as one")


def _check_mp3(file: BinaryIO, size: int) -> None:
    """Compare the number of bytes that a Xing or VBRI header gives with those of the file."""
    start, head = 0, _read(file, 0, 10)
    while head[:3] == b"ID3":  # a tag; seven bits of each byte are its size
        start += 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=False))
        head = _read(file, start, 10)
    head = _read(file, start, 64)
    if len(head) < 64 or head[0] != 0xFF or head[1] < 0xE0:
        return
    mono, first_version = head[3] >> 6 == 3, head[1] & 0x18 == 0x18
    offset = 4 + ((17 if mono else 32) if first_version else (9 if mono else 17))  # after the frame's side information
    flags = struct.unpack_from(">I", head, offset + 4)[0]
    if head[offset : offset + 4] in (b"Xing", b"Info") and flags & 2:
        promised = struct.unpack_from(">I", head, offset + (12 if flags & 1 else 8))[0]
    elif head[36:40] == b"VBRI":
        promised = struct.unpack_from(">I", head, 46)[0]
    else:
        return
    if start + promised - size > promised // 100:  # tags may be counted or not
        raise InputError(f"cut off: {size - start:,} bytes of {promised:,} that its header promises are there")
    if size - start - promised > SLACK + promised // 100 and _read(file, start + promised, 2) == head[:2]:
        raise InputError(
            f"its header promises {promised:,} bytes, but the audio goes on to {size - start:,}: joined files? "
            "Encode it anew as one"
        )


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)
