"""Samples of a file against the number in its header: in every format, cut off anywhere, and joined."""

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr_lightning.audio import reading
from asr_lightning.audio.reading import Header, read_audio, read_header
from asr_lightning.errors import InputError

RATE = 16_000
SECONDS = 4
SAMPLES = RATE * SECONDS
FORMATS: dict[str, dict[str, str]] = {
    "WAV": {"format": "WAV"},
    "WAV of floats": {"format": "WAV", "subtype": "FLOAT"},
    "WAV extensible": {"format": "WAVEX"},
    "RF64": {"format": "RF64"},
    "W64": {"format": "W64"},
    "AIFF": {"format": "AIFF"},
    "AU": {"format": "AU"},
    "NIST": {"format": "NIST"},
    "FLAC": {"format": "FLAC"},
    "Vorbis": {"format": "OGG"},
    "Opus": {"format": "OGG", "subtype": "OPUS"},
    "MP3": {"format": "MP3"},
}


def encode(name: str, audio: np.ndarray | None = None) -> bytes:
    noise = 0.1 * np.random.default_rng(0).standard_normal(SAMPLES)
    file = io.BytesIO()
    soundfile.write(file, noise if audio is None else audio, RATE, **FORMATS[name])
    return file.getvalue()


def read(content: bytes) -> np.ndarray:
    return read_audio(io.BytesIO(content))[0]


@pytest.mark.parametrize("name", FORMATS)
def test_a_whole_file_is_read_as_its_header_says(name: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(encode(name))
    assert read_header(str(tmp_path / "x")) == Header(RATE, SAMPLES, 1)
    audio, rate = read_audio(str(tmp_path / "x"))
    expected, _ = soundfile.read(tmp_path / "x", dtype="float32")
    assert rate == RATE
    np.testing.assert_array_equal(audio, expected)


@pytest.mark.parametrize("share", [0.5, 0.8, 0.97])
@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_is_cut_off_is_named(name: str, share: float) -> None:
    content = encode(name)
    for look in (read_header, read_audio):
        with pytest.raises(InputError, match="cut off"):
            look(io.BytesIO(content[: int(share * len(content))]))  # type: ignore[operator]


def test_what_is_not_delivered_is_not_filled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the number of bytes in its header is right, only decoding shows that an MP3 is cut off."""
    content = encode("MP3")
    size, offset = len(content) * 8 // 10, content.index(b"Xing") + 12
    cut = content[:offset] + struct.pack(">I", size) + content[offset + 4 : size]
    assert read_header(io.BytesIO(cut)).samples == SAMPLES
    with pytest.raises(InputError, match=r"cut off: it delivers 3\.\d\d s of 4\.00 s"):
        read(cut)
    monkeypatch.setattr(reading, "BLOCK_SAMPLES", 1_000)
    with reading.open_sound(io.BytesIO(cut)) as sound:
        reader = reading.read_blocks(sound)
        blocks = [next(reader) for _ in range(50)]
        with pytest.raises(InputError, match="cut off"):
            while True:
                blocks.append(next(reader))
    delivered = np.concatenate(blocks)
    assert 0.7 * SAMPLES < len(delivered) < 0.9 * SAMPLES
    np.testing.assert_allclose(delivered[:50_000], read(content)[:50_000], atol=1e-6)


def with_wav_size(size: int) -> bytes:
    content = encode("WAV")
    offset = content.index(b"data") + 4
    return content[:offset] + struct.pack("<I", size) + content[offset + 4 :]


@pytest.mark.parametrize("size", [0xFFFF_FFFF, 0x7FFF_FFFF, 0x8000_0000, 0x7FFF_EFDC, 0xFFFF_FFFE, 2 * SAMPLES + 1])
def test_a_wav_that_went_through_a_pipe_is_read_whole(size: int) -> None:
    assert read_header(io.BytesIO(with_wav_size(size))).samples == SAMPLES
    np.testing.assert_array_equal(read(with_wav_size(size)), read(encode("WAV")))


@pytest.mark.parametrize("size", [0, 1_000])
def test_a_wav_that_was_not_closed_is_named(size: int) -> None:
    for look in (read_header, read_audio):
        with pytest.raises(InputError, match="but the file is longer"):
            look(io.BytesIO(with_wav_size(size)))  # type: ignore[operator]


def with_flac_samples(samples: int) -> bytes:
    content = bytearray(encode("FLAC"))
    content[21] = content[21] & 0xF0 | samples >> 32
    content[22:26] = struct.pack(">I", samples & 0xFFFF_FFFF)
    return bytes(content)


def test_a_flac_of_unknown_length_is_read_whole() -> None:
    content = with_flac_samples(0)
    assert read_header(io.BytesIO(content)) == Header(RATE, SAMPLES, 1)
    np.testing.assert_array_equal(read(content), read(encode("FLAC")))


def test_a_flac_that_promises_years_is_named() -> None:
    for look in (read_header, read_audio):
        with pytest.raises(InputError, match="cut off"):
            look(io.BytesIO(with_flac_samples(2**36 - 1)))  # type: ignore[operator]


def other_serial(content: bytes) -> bytes:
    return content.replace(content[14:18], b"\1\2\3\4")


JOINED: dict[str, Callable[[], bytes]] = {
    "MP3": lambda: encode("MP3") * 2,
    "Vorbis": lambda: encode("Vorbis") + other_serial(encode("Vorbis")),
}


@pytest.mark.parametrize("name", JOINED)
def test_a_file_that_goes_on_behind_its_end_is_named(name: str) -> None:
    with pytest.raises(InputError, match="joined files"):
        read_header(io.BytesIO(JOINED[name]()))


def test_tags_around_an_mp3_are_no_audio() -> None:
    tagged = b"ID3\x04\0\0\0\0\x01\0" + bytes(128) + encode("MP3") + b"TAG" + bytes(125)
    assert read_header(io.BytesIO(tagged)).samples == SAMPLES
    assert len(read(tagged)) == SAMPLES


def test_channels_are_mixed() -> None:
    stereo = np.random.default_rng(1).uniform(-0.5, 0.5, (SAMPLES, 2)).astype(np.float32)
    np.testing.assert_allclose(read(encode("WAV of floats", stereo)), stereo.mean(axis=1), atol=1e-7)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e19, -1e30, 32_767.0, 1e300])
def test_samples_that_no_recording_has_are_refused(value: float) -> None:
    audio = np.zeros(SAMPLES)
    audio[-5] = value
    with pytest.raises(InputError, match="the audio has samples"):
        read(encode("WAV of floats", audio))


def test_samples_a_little_too_loud_are_read() -> None:
    assert read(encode("WAV of floats", np.full(SAMPLES, 3.5))).max() == 3.5


def test_parts_of_a_file_that_cannot_seek(tmp_path: Path) -> None:
    path = str(tmp_path / "call.wav")
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(24_000), 8_000, subtype="GSM610")
    whole, _ = read_audio(path)
    assert len(whole) == read_header(path).samples == 24_320  # frames of 320
    np.testing.assert_array_equal(read_audio(path, first=5_000, samples=3_000)[0], whole[5_000:8_000])
    np.testing.assert_array_equal(read_audio(path, first=5_000)[0], whole[5_000:])


def test_a_page_in_the_place_of_audio_is_shown() -> None:
    with pytest.raises(InputError, match="It is a text, '<!DOCTYPE html>': fetch it again"):
        read_header(io.BytesIO(b"<!DOCTYPE html>\n<html>not found</html>"))
