"""`asr listen` as processes: pipes, signals, the server and its page."""

import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from playwright.sync_api import sync_playwright
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from asr_lightning.asr import main
from asr_lightning.audio.resampling import resample
from asr_lightning.batch import Batch, Utterance
from asr_lightning.models.rnn_transducer import RNNTransducer
from asr_lightning.tools.listen import FORMATS, Display, cells, uninterrupted
from asr_lightning.tools.live import Line, Partial
from asr_lightning.tools.live_audio import PCM
from tests.support.browser import ARGUMENTS, CHROMIUM
from tests.support.streaming_recognizer import babble, save, streaming_recognizer

CLIENTS = 3


@pytest.fixture(scope="module")
def recognizer() -> RNNTransducer:
    return streaming_recognizer()


@pytest.fixture(scope="module")
def checkpoint(recognizer: RNNTransducer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(recognizer, tmp_path_factory.mktemp("streaming") / "last.ckpt")


def whole(recognizer: RNNTransducer, audio: np.ndarray) -> str:
    return recognizer.transcribe(Batch.collate([Utterance("x", torch.from_numpy(audio), 16_000)]))[0]


def as_pcm(audio: np.ndarray, kind: str = "<i2") -> bytes:
    scale = 1.0 if kind == "<f4" else 32_768.0
    return (audio * scale).astype(kind).tobytes()


def start(checkpoint: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "asr_lightning.asr", "listen", str(checkpoint), "--device", "cpu", *arguments]
    pipe = subprocess.PIPE
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)


def test_a_pipe_is_written_as_the_whole_file_would_be(recognizer: RNNTransducer, checkpoint: Path) -> None:
    audio = babble(3, 5)
    command = start(checkpoint, "-", "--pcm", "s16le", "--rate", "16000", "--silence", "0", "--format", "json")
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
    assert line["text"] == whole(recognizer, audio) == " ".join(word["word"] for word in line["words"])
    assert line["text"] and 0 <= line["start"] < line["end"] <= 3


def test_ctrl_c_writes_what_is_known(recognizer: RNNTransducer, checkpoint: Path) -> None:
    audio = babble(3, 6)
    command = start(checkpoint, "-")
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
    assert line.split("\t")[2] == whole(recognizer, audio)


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
    expected = whole(recognizer, resample(audio, 44_100, 16_000))
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
    assert output.strip().split("\t")[2] == whole(recognizer, resample(babble(1.5, 9, 48_000), 48_000, 16_000))

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


# The server.


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address of the server, as HOST:PORT, and its process."""
    command = start(checkpoint, "--serve", "--port", "0", "--clients", str(CLIENTS), "--silence", "0")
    try:
        assert command.stdout is not None
        line = command.stdout.readline().decode()
        address = re.match(r"http://(127\.0\.0\.1:\d+) \(Ctrl-C ends it\)\n", line)
        assert address, (line, command.stderr and command.stderr.read())
        yield address[1], command
    finally:
        command.kill()
        command.wait()


def client(server: tuple[str, object], rate: str = "16000", **options: Any) -> ClientConnection:
    return connect(f"ws://{server[0]}/listen?rate={rate}", open_timeout=60, ping_interval=None, **options)


def receive(connection: ClientConnection) -> dict[str, Any]:
    return json.loads(connection.recv(timeout=100))


def text_of(server: tuple[str, object], audio: np.ndarray, step: int = 3_200) -> str:
    """The lines that a client gets, after it has seen how they grow."""
    data, lines, partials = as_pcm(audio), [], []
    with client(server) as connection:
        for begin in range(0, len(data), step):
            connection.send(data[begin : begin + step])
        connection.send("end")
        while (message := receive(connection))["type"] != "end":
            if message["type"] == "line":
                lines.append(message["text"])
            elif message["type"] == "partial":
                partials.append(message["stable"] + message["rest"])
    assert len(partials) > 1 and lines[-1].startswith(partials[0].split()[0])
    return " ".join(lines)


def refused(connection: ClientConnection) -> tuple[str, int]:
    """The sentence and the code with which the server ends a connection."""
    message = receive(connection)
    while message["type"] in ("ready", "partial", "line"):
        message = receive(connection)
    with pytest.raises(ConnectionClosed) as closed:
        connection.recv(timeout=60)
    assert closed.value.rcvd is not None
    return message["message"], closed.value.rcvd.code


def test_clients_at_once_get_the_text_that_each_would_get_alone(
    recognizer: RNNTransducer, server: tuple[str, subprocess.Popen[bytes]]
) -> None:
    audios = [babble(2 + 0.5 * seed, seed) for seed in range(CLIENTS)]
    texts: dict[int, str] = {}

    def talk(number: int) -> None:
        texts[number] = text_of(server, audios[number], step=3_200 + 998 * number)

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    assert texts == {number: whole(recognizer, audio) for number, audio in enumerate(audios)}
    assert len(set(texts.values())) == CLIENTS


def test_places_are_taken_and_given_back_also_by_clients_that_die(
    recognizer: RNNTransducer, server: tuple[str, subprocess.Popen[bytes]]
) -> None:
    stack = contextlib.ExitStack()
    connections = [stack.enter_context(client(server)) for _ in range(CLIENTS - 1)]
    for connection in connections:
        assert receive(connection) == {"type": "ready"}
    code = (
        "import sys, time; from websockets.sync.client import connect\n"
        f"connection = connect('ws://{server[0]}/listen?rate=16000'); print(connection.recv(), flush=True)\n"
        "while True: connection.send(bytes(3200)); time.sleep(0.05)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as dying:
        assert dying.stdout is not None and b"ready" in dying.stdout.readline()
        with client(server) as connection:
            assert refused(connection) == (f"all {CLIENTS} connections are in use; try again later", 1013)
        dying.kill()
    for connection in connections:
        connection.socket.shutdown(socket.SHUT_RDWR)  # gone without a word
    stack.close()
    audio = babble(1, 3)
    deadline = time.monotonic() + 60
    while True:
        with client(server) as connection:
            if receive(connection)["type"] == "ready":
                break
        assert time.monotonic() < deadline, "the places were not given back"
        time.sleep(0.2)
    assert text_of(server, audio) == whole(recognizer, audio)


def test_what_no_client_should_send_ends_its_connection_alone(
    recognizer: RNNTransducer, server: tuple[str, subprocess.Popen[bytes]]
) -> None:
    for message, sentence, code in (
        ("hello\x1b", "expected binary messages with samples, or the text end, got the text 'hello", 1003),
        (b"odd", "expected samples of 16 bits, got a message of 3 bytes, an odd number", 1007),
    ):
        with client(server) as connection:
            connection.send(message)
            text, closed = refused(connection)
            assert text.startswith(sentence) and "\x1b" not in text and closed == code
    for rate in ("1", "0", "-16000", "16000.5", "x" * 1_000, "", "99999999999"):
        with client(server, rate) as connection:
            text, closed = refused(connection)
            assert text.startswith("expected a rate of 8000, 11025") and len(text) < 400 and closed == 1008
    with client(server) as connection, pytest.raises((ConnectionClosed, OSError)):
        for _ in range(3):
            connection.send(bytes(10_000_000))
        while True:
            connection.recv(timeout=60)
    with pytest.raises(InvalidStatus), client(server, origin="http://elsewhere.example"):
        pass
    with client(server, origin=f"http://{server[0]}") as connection:
        assert receive(connection) == {"type": "ready"}
    host, port = server[0].split(":")
    with socket.create_connection((host, int(port)), timeout=60) as raw:
        raw.sendall(b"\x00\xff" * 50_000)
    with client(server) as connection:
        connection.send(b"")
        for _ in range(20):
            connection.send(bytes(64_000))  # silence
        connection.send("end")
        messages = []
        while (message := receive(connection))["type"] != "end":
            messages.append(message["type"])
    assert set(messages) <= {"ready", "partial", "line"}
    audio = babble(1, 4)
    assert text_of(server, audio) == whole(recognizer, audio)


def test_a_port_in_use_is_named(server: tuple[str, subprocess.Popen[bytes]], listen: Callable) -> None:
    port = server[0].split(":")[1]
    status, output, errors = listen("--serve", "--port", port)
    assert (status, output) == (2, "")
    assert errors == (
        f"error: cannot listen at port {port} of 127.0.0.1: Address already in use; choose another --port or --host\n"
    )
    status, _, errors = listen("--serve", "--host", "no.such.host.invalid")
    assert status == 2 and "expected an address of this machine" in errors


def fake_microphone(path: Path, audio: np.ndarray) -> list[str]:
    """The arguments with which Chromium has a file as its microphone, again and again."""
    soundfile.write(path, audio, 16_000, subtype="PCM_16")
    return [
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={path}",
    ]


def until(condition: Callable[[], bool], seconds: float = 250) -> None:
    """Wait; the page forbids Playwright's own way of waiting, which evaluates strings."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def contrast(first: str, second: str) -> float:
    """The contrast of two colors [WCAG 2.1] as browsers write them, `rgb(1, 2, 3)`."""

    def luminance(color: str) -> float:
        values = [int(value) / 255 for value in re.findall(r"\d+", color)[:3]]
        linear = [value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.timeout(900)
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_the_page_writes_what_the_microphone_hears(server: tuple[str, subprocess.Popen[bytes]], tmp_path: Path) -> None:
    arguments = [*ARGUMENTS, *fake_microphone(tmp_path / "microphone.wav", babble(6, 5))]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        page = browser.new_page(viewport={"width": 400, "height": 700}, color_scheme="dark")
        problems, requests, sent = [], [], []
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.on("websocket", lambda opened: opened.on("framesent", lambda frame: sent.append(frame)))
        page.goto(f"http://{server[0]}/")
        assert page.evaluate("document.activeElement.id") == "record"
        page.keyboard.press("Enter")
        until(lambda: page.text_content("#status") == "Listening.")
        until(lambda: len(page.text_content("#stable") or "") > 8)
        growing = page.evaluate("[stable, rest].map((part) => part.textContent)")
        for dark in (True, False):
            colors = page.evaluate(
                "['body', '#status', '#rest', '#theme', '#record'].map((name) => {"
                "const style = getComputedStyle(document.querySelector(name)); return [style.color,"
                "name === 'body' || name[1] === 's' || name[1] === 'r' && name !== '#record'"
                "? getComputedStyle(document.body).backgroundColor : style.backgroundColor]; })"
            )
            assert min(contrast(*pair) for pair in colors) >= 4.5, colors
            assert (contrast(colors[0][1], "rgb(0, 0, 0)") < 2) == dark
            page.click("#theme")
        assert page.evaluate("document.documentElement.scrollWidth <= 400")
        page.focus("#record")
        page.keyboard.press("Space")
        until(lambda: page.text_content("#status") == "The microphone is off.")
        text = " ".join(page.locator("#lines li span").all_text_contents())
        assert growing[0].strip() in text
        assert re.fullmatch("0:0[0-9]", str(page.locator("#lines time").first.text_content())), "when it was spoken"
        assert page.text_content("#partial") == "" and page.is_enabled("#copy")
        page.click("#clear")
        assert page.locator("#lines li").count() == 0
        assert not problems
        assert all(url.startswith((f"http://{server[0]}/", "data:")) for url in requests)
        audio_frames = [frame for frame in sent if isinstance(frame, bytes)]
        rate = page.evaluate("new AudioContext().sampleRate")
        browser.close()
    assert sent[-1] == "end" and {len(frame) for frame in audio_frames} == {2 * round(rate / 10)}
    # What the server wrote is what another client gets for the same samples.
    samples = np.frombuffer(b"".join(audio_frames), "<i2")
    assert np.abs(samples).max() > 3_000, "the file is heard"
    with client(server, str(rate)) as connection:
        for frame in audio_frames:
            connection.send(frame)
        connection.send("end")
        lines = []
        while (message := receive(connection))["type"] != "end":
            lines += [message["text"]] if message["type"] == "line" else []
    assert " ".join(lines) == text


def test_ctrl_c_ends_the_server(server: tuple[str, subprocess.Popen[bytes]]) -> None:
    command = server[1]
    with client(server) as connection:
        assert receive(connection) == {"type": "ready"}
        command.send_signal(signal.SIGINT)
        with pytest.raises(ConnectionClosed):
            while True:
                connection.recv(timeout=60)
    assert command.wait(timeout=60) == 130
    assert command.stderr is not None
    errors = command.stderr.read().decode()
    assert errors.endswith("stopped\n") and "Traceback" not in errors, errors
