"""`asr listen` with pipes, files, a microphone and terminals, and its signals."""

import io
import json
import os
import re
import signal
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from asr_lightning.asr import main
from asr_lightning.audio.resampling import resample
from asr_lightning.models.rnn_transducer import RNNTransducer
from asr_lightning.tools.listen import FORMATS, Display, cells, uninterrupted
from asr_lightning.tools.live import Line, Partial
from asr_lightning.tools.live_audio import PCM
from tests.support.streaming_recognizer import as_pcm, babble, save, start_listening, streaming_recognizer, text_at_once


@pytest.fixture(scope="module")
def recognizer() -> RNNTransducer:
    return streaming_recognizer()


@pytest.fixture(scope="module")
def checkpoint(recognizer: RNNTransducer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(recognizer, tmp_path_factory.mktemp("streaming") / "last.ckpt")


def test_a_pipe_is_written_as_the_whole_file_would_be(recognizer: RNNTransducer, checkpoint: Path) -> None:
    audio = babble(3, 5)
    command = start_listening(
        checkpoint, "-", "--pcm", "s16le", "--rate", "16000", "--silence", "0", "--format", "json"
    )
    assert command.stdin is not None
    data, sizes = as_pcm(audio), [1, 6_000, 3, 777, 20_001]
    while data:
        sizes = sizes[1:] + sizes[:1]
        command.stdin.write(data[: sizes[0]])
        command.stdin.flush()
        data = data[sizes[0] :]
    output, errors = command.communicate(timeout=200)
    assert command.returncode == 0, errors
    [line] = map(json.loads, output.decode().splitlines())
    assert line["text"] == text_at_once(recognizer, audio) == " ".join(word["word"] for word in line["words"])
    assert line["text"] and 0 <= line["start"] < line["end"] <= 3


def test_ctrl_c_writes_what_is_known(recognizer: RNNTransducer, checkpoint: Path) -> None:
    audio = babble(3, 6)
    command = start_listening(checkpoint, "-")
    assert command.stdin is not None
    command.stdin.write(as_pcm(audio))
    command.stdin.flush()
    descriptor, begun = command.stdin.fileno(), time.monotonic()
    while not empty(descriptor) and time.monotonic() < begun + 200:  # read by the command
        time.sleep(0.1)
    time.sleep(1.0)
    command.send_signal(signal.SIGINT)
    output, errors = command.communicate(timeout=100)
    assert command.returncode == 130 and errors.decode().splitlines() == ["stopped"]
    [line] = output.decode().splitlines()
    assert line.split("\t")[2] == text_at_once(recognizer, audio)


def empty(descriptor: int) -> bool:
    """Whether all that was written into a pipe has been read."""
    import fcntl
    import termios

    return int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)), sys.byteorder) == 0


class Input(io.BytesIO):
    """Standard input that is a pipe."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        read, write = os.pipe()
        threading.Thread(target=self.fill, args=(write, data), daemon=True).start()
        self.descriptor = read

    def fill(self, descriptor: int, data: bytes) -> None:
        with os.fdopen(descriptor, "wb") as pipe:
            pipe.write(data)

    def fileno(self) -> int:
        return self.descriptor


@pytest.fixture
def listen(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command in this process: exit status, standard output and error."""

    def run(*arguments: object, data: bytes = b"", path: Path = checkpoint) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", Input(data))
        status = main(["listen", str(path), "--device", "cpu", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def test_files_and_rates_and_formats(recognizer: RNNTransducer, listen: Callable, tmp_path: Path) -> None:
    audio = babble(1.5, 8, rate=44_100)
    soundfile.write(tmp_path / "a.wav", audio, 44_100)
    expected = text_at_once(recognizer, resample(audio, 44_100, 16_000))
    begun = time.monotonic()
    status, output, _ = listen("--file", tmp_path / "a.wav", "--silence", 0)
    assert time.monotonic() - begun > 1.5, "in real time"
    assert status == 0 and output.splitlines()[0].split("\t")[2] == expected
    for arguments, data in (
        (("--file", tmp_path / "a.wav", "--fast"), b""),
        (("-", "--pcm", "f32le", "--rate", 44_100), as_pcm(audio, "<f4")),
        (("-", "--pcm", "s16be", "--rate", 44_100), as_pcm(audio, ">i2")),
    ):
        status, repeated, _ = listen(*arguments, "--silence", 0, data=data)
        assert (status, repeated) == (0, output)
    assert list(FORMATS) == list(PCM)


def test_input_that_is_none_is_refused_in_a_sentence(
    listen: Callable, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write(tmp_path / "a.wav", babble(1, 8), 16_000)
    status, output, errors = listen("-", data=(tmp_path / "a.wav").read_bytes())
    assert status == 2 and not output and "expected raw samples, found the header of WAV: use --file" in errors
    status, output, errors = listen("-", data=as_pcm(babble(2, 5)) + b"x")
    assert status == 2 and "ends within a sample: expected a multiple of 2 bytes" in errors and output
    nan = np.array([0.0, np.nan], np.float32).tobytes() * 4
    assert "infinite or not a number" in listen("-", "--pcm", "f32le", data=nan)[2]
    assert listen("--file", tmp_path / "none.wav")[0] == 2
    for arguments, message in (
        (("--fast",), "--fast: only --file has it"),
        (("--rate", 8_000), "--rate: only - has it"),
        (("--port", 1), "--port: only --serve has it"),
        (("-", "--serve"), "expected audio from one source, got - and --serve"),
        (("--serve", "--format", "json"), "--format: --serve sends JSON"),
        (("--serve", "--port", 70_000), "--port: expected 0 to 65535"),
        (("-", "--rate", 2_000_000), "--rate: expected 1,000 to 1,000,000"),
    ):
        status, output, errors = listen(*arguments)
        assert (status, output) == (2, "") and message in errors
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert "pip install 'asr_lightning[listen]'" in listen()[2]


class Stream:
    """`sounddevice.InputStream` with 1.5 s of speech, and Ctrl-C three seconds later."""

    def __init__(self, samplerate: int, blocksize: int, callback: Callable, **options: Any) -> None:
        assert options == {"device": "usb", "channels": 1, "dtype": "float32"}
        self.arguments = samplerate, blocksize, callback

    def __enter__(self) -> None:
        rate, size, callback = self.arguments
        audio = babble(1.5, 9, rate)
        for begin in range(0, len(audio) // size * size, size):
            callback(audio[begin : begin + size, None], size, None, None)
        threading.Timer(3.0, os.kill, (os.getpid(), signal.SIGINT)).start()

    def __exit__(self, *error: object) -> None:
        pass


def test_a_microphone_with_a_rate_of_its_own(
    recognizer: RNNTransducer, listen: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PortAudioError(Exception):
        pass

    def check(**settings: Any) -> None:
        raise PortAudioError("Invalid sample rate")

    fake: Any = types.ModuleType("sounddevice")
    fake.PortAudioError, fake.check_input_settings, fake.InputStream = PortAudioError, check, Stream
    fake.query_devices = lambda device, kind: {"default_samplerate": 48_000.0}
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    status, output, errors = listen("--microphone", "usb", "--silence", 0)
    assert status == 130 and "listening; Ctrl-C ends it" in errors
    assert output.strip().split("\t")[2] == text_at_once(recognizer, resample(babble(1.5, 9, 48_000), 48_000, 16_000))

    def no_device(device: object, kind: str) -> None:
        raise ValueError("No input device matching 'usb'")

    fake.query_devices = no_device
    status, output, errors = listen("--microphone", "usb")
    assert status == 2 and "no microphone can be opened: No input device matching 'usb'" in errors


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("colored", [True, False])
def test_a_terminal_shows_the_line_that_goes_on(colored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", terminal := Terminal())
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "" if colored else "1")
    display = Display(as_json=False)
    display.show([], Partial("TURN ", "ON"))
    first = terminal.getvalue()
    assert first == ("TURN \x1b[36mON\x1b[0m" if colored else "TURN ON")
    display.show([], Partial("TURN ", "ON"))
    assert terminal.getvalue() == first, "nothing is drawn again that is the same"
    long = "ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE TEN "
    beginnings = set()
    for size in range(4, len(long)):
        display.show([], Partial(long[:size], "X"))
        shown = re.sub(r"\x1b\[\d*[mK]", "", terminal.getvalue().rpartition("\r")[2])
        assert cells(shown) < 30 and shown.endswith(long[max(0, size - 10) : size] + "X")
        beginnings.add(shown[:5])
    assert len(beginnings) < 6, "a long line does not move with every letter"
    display.show([Line(0.5, 1.0, "TURN ON\x1b", ())], Partial())
    assert terminal.getvalue().endswith("\r\x1b[K0.50\t1.00\tTURN ON\\x1b\n")
    assert cells("각é") == 3


def test_a_pipe_gets_final_lines_alone(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(as_json=False)
    display.show([], Partial("TURN ", "ON"))
    display.show([Line(0.5, 1.0, "TURN ON", ())], Partial("THE ", "L"))
    assert capsys.readouterr().out == "0.50\t1.00\tTURN ON\n"


def test_ctrl_c_waits_for_the_end_of_a_step() -> None:
    steps = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        steps.append("done")
    assert steps == ["done"]
