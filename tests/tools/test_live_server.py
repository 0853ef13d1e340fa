"""`asr listen --serve` as a process: clients, what ends a connection, the page."""

import asyncio
import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import soundfile
from playwright.sync_api import sync_playwright
from starlette.websockets import WebSocketDisconnect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from asr_lightning.asr import main
from asr_lightning.models.rnn_transducer import RNNTransducer
from asr_lightning.tools.live import LiveRecognizer
from asr_lightning.tools.live_server import LiveServer
from tests.support.browser import ARGUMENTS, CHROMIUM
from tests.support.streaming_recognizer import as_pcm, babble, save, start_listening, streaming_recognizer, text_at_once

CLIENTS = 3


@pytest.fixture(scope="module")
def recognizer() -> RNNTransducer:
    return streaming_recognizer()


@pytest.fixture(scope="module")
def checkpoint(recognizer: RNNTransducer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(recognizer, tmp_path_factory.mktemp("streaming") / "last.ckpt")


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address of the server, as HOST:PORT, and its process."""
    command = start_listening(checkpoint, "--serve", "--port", "0", "--clients", str(CLIENTS), "--silence", "0")
    try:
        assert command.stdout is not None
        line = command.stdout.readline().decode()
        address = re.match(r"http://(127\.0\.0\.1:\d+) \(Ctrl-C ends it\)\n", line)
        assert address, (line, command.stderr and command.stderr.read())
        yield address[1], command
    finally:
        command.kill()
        command.wait()


class Gone:
    """A client that dies when it has sent a message."""

    headers: ClassVar[dict[str, str]] = {}
    query_params: ClassVar[dict[str, str]] = {}

    def __init__(self, dies_at: str) -> None:
        self.dies_at = dies_at

    async def accept(self) -> None:
        if self.dies_at == "accept":
            raise WebSocketDisconnect(1006)

    async def receive(self) -> dict[str, Any]:
        return {"type": "websocket.receive", "text": "nonsense"}

    async def send_json(self, message: dict[str, Any]) -> None:
        if message["type"] == self.dies_at:
            raise WebSocketDisconnect(1006)

    async def close(self, code: int = 1000) -> None:
        if self.dies_at == "close":
            raise WebSocketDisconnect(1006)


@pytest.mark.parametrize("dies_at", ["accept", "ready", "error", "close"])
def test_a_client_that_dies_leaves_no_stack_trace_and_no_place_taken(recognizer: RNNTransducer, dies_at: str) -> None:
    served = LiveServer(LiveRecognizer(recognizer), clients=1)
    asyncio.run(served._serve_client(Gone(dies_at)))  # type: ignore[arg-type] # what it raises is in the server's log
    assert served.active == 0


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
    assert texts == {number: text_at_once(recognizer, audio) for number, audio in enumerate(audios)}
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
    assert text_of(server, audio) == text_at_once(recognizer, audio)


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
    with client(server) as connection:
        assert receive(connection) == {"type": "ready"}
        connection.send(b"\xff", text=True)  # no UTF-8; the last test looks for a stack trace
        with pytest.raises(ConnectionClosed) as closed_by:
            connection.recv(timeout=60)
        assert closed_by.value.rcvd is not None and closed_by.value.rcvd.code == 1007
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
    assert text_of(server, audio) == text_at_once(recognizer, audio)


def test_a_port_in_use_is_named(
    server: tuple[str, subprocess.Popen[bytes]], checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, port = ["listen", str(checkpoint), "--device", "cpu", "--serve"], server[0].split(":")[1]
    assert main([*arguments, "--port", port]) == 2
    assert capsys.readouterr() == (
        "",
        f"error: cannot listen at port {port} of 127.0.0.1: Address already in use; choose another --port or --host\n",
    )
    assert main([*arguments, "--host", "no.such.host.invalid"]) == 2
    assert "expected an address of this machine" in capsys.readouterr().err


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
