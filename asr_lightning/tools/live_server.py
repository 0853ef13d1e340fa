"""Live recognition for many clients: a WebSocket that takes samples and sends text, and a page with a microphone.

A client opens `/listen?rate=16000` and sends binary messages with samples of 16 bits, little-endian, one channel, of at
most 256 KiB; then the text `end`. It gets JSON:

    {"type": "ready"}
    {"type": "partial", "stable": "TURN ON THE ", "rest": "LIG"}
    {"type": "line", "start": 0.42, "end": 1.91, "text": "TURN ON THE LIGHT", "words": [...]}
    {"type": "end"}
    {"type": "error", "message": "..."}

An error ends the connection, and so does a minute without a message. Networks compute in one thread, half a second of a
client's audio at a time; who sends faster than that is read more slowly, so that nothing piles up.
"""

import asyncio
import functools
import logging
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np

from asr_lightning.errors import InputError, printable, shown
from asr_lightning.tools.live import Line, LiveRecognizer, Partial, Stream
from asr_lightning.tools.live_audio import decode_pcm

try:
    import uvicorn
    import websockets  # noqa: F401 - uvicorn needs it for its WebSockets
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route, WebSocketRoute
    from starlette.websockets import WebSocket, WebSocketDisconnect
except ImportError as error:
    raise InputError(
        f"--serve needs starlette, uvicorn and websockets ({error.name} is missing): pip install 'asr_lightning[serve]'"
    ) from error

BROWSER_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 88_200, 96_000, 176_400,
                 192_000)  # fmt: skip
MESSAGE_BYTES = 1 << 18  # of a client's message, at most
STEP_SECONDS = 0.5  # of a client's audio before it is another one's turn
IDLE_SECONDS = 60.0  # without a message, or until a client takes one
FILES = {"/": ("listen.html", "text/html"), "/listen.js": ("listen.js", "text/javascript"),
         "/microphone.js": ("microphone.js", "text/javascript"), "/listen.css": ("listen.css", "text/css")}  # fmt: skip
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

Result = TypeVar("Result")


class ClientError(Exception):
    """A client that cannot be served: a sentence for it, and the code of WebSocket's close."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """Listen at an address; clients wait until `serve` takes them.

    Args:
        host: Name or number.
        port: 0 for any that is free.

    Raises:
        InputError: The port is in use, or the address is not of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host}: expected an address of this machine: {error}") from error
    with listening:
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MESSAGE_BYTES)  # else the kernel takes minutes
            listening.bind(address)
            listening.listen(128)
        except OSError as error:
            raise InputError(
                f"cannot listen at port {port} of {host}: {error.strerror}; choose another --port or --host"
            ) from error
        yield listening


def serve(live: LiveRecognizer, listening: socket.socket, clients: int) -> None:
    """Serve page and WebSocket until Ctrl-C or SIGTERM.

    Args:
        live: The recognizer of all clients.
        listening: As `bound` gives it.
        clients: At once, at most.
    """
    server = LiveServer(live, clients)
    config = uvicorn.Config(
        server.application(), log_level="warning", lifespan="off", loop="asyncio", http="h11", ws="websockets-sansio",
        ws_max_size=MESSAGE_BYTES, ws_per_message_deflate=False, proxy_headers=False, server_header=False,
        # A pong waits behind audio that is not read yet; clients that are gone are found by IDLE_SECONDS.
        ws_ping_interval=None, timeout_graceful_shutdown=3,
    )  # fmt: skip
    logging.getLogger("uvicorn.error").addFilter(_is_of_server)
    host, port = listening.getsockname()[:2]
    print(f"http://{f'[{host}]' if ':' in host else host}:{port} (Ctrl-C ends it)", flush=True)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        server.worker.shutdown(cancel_futures=True)


class LiveServer:
    """Clients with a stream each, one network, and one thread in which it computes.

    Args:
        live: The recognizer.
        clients: At once, at most.
    """

    def __init__(self, live: LiveRecognizer, clients: int) -> None:
        self.live, self.clients = live, clients
        self.active = 0
        self.worker = ThreadPoolExecutor(1, "recognition")

    def application(self) -> Starlette:
        """Return what a server of ASGI runs."""
        pages = [Route(path, functools.partial(_send_file, *file), methods=["GET"]) for path, file in FILES.items()]
        return Starlette(routes=[*pages, WebSocketRoute("/listen", self._serve_client)])

    async def _serve_client(self, client: WebSocket) -> None:
        try:
            await self._admit(client)
        except (WebSocketDisconnect, TimeoutError):  # it is gone, or does not take what it is sent
            pass
        except asyncio.CancelledError:  # the server ends, and does not wait for the audio that is there
            pass

    async def _admit(self, client: WebSocket) -> None:
        """Recognize what a client sends, if it may and there is a place for it."""
        origin = client.headers.get("origin")  # of browsers alone: which page it is that listens
        if origin is not None and urlsplit(origin).netloc != client.headers.get("host"):
            await client.close()
            return
        await client.accept()
        counted = self.active < self.clients
        self.active += counted
        try:
            if not counted:
                raise ClientError(f"all {self.clients} connections are in use; try again later", 1013)
            await self._recognize(client)
        except ClientError as refusal:
            await self._send(client, {"type": "error", "message": str(refusal)})
            await client.close(refusal.code)
        finally:
            self.active -= counted

    async def _recognize(self, client: WebSocket) -> None:
        """Read the audio of a client to its end; send its text."""
        rate = _rate(client.query_params.get("rate", str(self.live.sample_rate)), self.live.sample_rate)
        stream = await self._compute(lambda: self.live.stream(rate))
        step = 2 * max(1, round(STEP_SECONDS * rate))  # bytes
        previous = Partial()
        await self._send(client, {"type": "ready"})
        while (data := await _receive(client)) is not None:
            for start in range(0, len(data), step):
                audio = decode_pcm(data[start : start + step], "s16le")
                lines, partial = await self._compute(functools.partial(_read, stream, audio))
                await self._send_lines(client, lines)
                if partial != previous:
                    await self._send(client, {"type": "partial", **partial._asdict()})
                previous = partial
        await self._send_lines(client, await self._compute(stream.finish))
        await self._send(client, {"type": "end"})
        await client.close()

    async def _compute(self, work: Callable[[], Result]) -> Result:
        """Compute in the thread of the network, after what others wait for."""
        return await asyncio.get_running_loop().run_in_executor(self.worker, work)

    async def _send_lines(self, client: WebSocket, lines: list[Line]) -> None:
        for line in lines:
            await self._send(client, {"type": "line", **line.as_json()})

    async def _send(self, client: WebSocket, message: dict[str, Any]) -> None:
        await asyncio.wait_for(client.send_json(message), IDLE_SECONDS)


def _is_of_server(record: logging.LogRecord) -> bool:
    """Whether a line of the log is no stack trace of text that a client has sent, and that is no UTF-8."""
    return record.exc_info is None or not isinstance(record.exc_info[1], UnicodeDecodeError)


def _read(stream: Stream, audio: np.ndarray) -> tuple[list[Line], Partial]:
    return stream.read(audio), stream.partial


async def _receive(client: WebSocket) -> bytes | None:
    """Return the next samples of a client; None where it ends.

    Raises:
        Refused: It sends something else, or nothing.
        WebSocketDisconnect: It is gone.
    """
    try:
        message = await asyncio.wait_for(client.receive(), IDLE_SECONDS)
    except TimeoutError:
        raise ClientError(f"no message in {IDLE_SECONDS:.0f} s", 1008) from None
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))
    text, data = message.get("text"), message.get("bytes")
    if text == "end":
        return None
    if data is None:
        raise ClientError(f"expected binary messages with samples, or the text end, got the text {_quote(text)}", 1003)
    if len(data) % 2:
        raise ClientError(f"expected samples of 16 bits, got a message of {len(data)} bytes, an odd number", 1007)
    return bytes(data)


def _rate(text: str, default: int) -> int:
    """Return the sample rate that a client names.

    Raises:
        Refused: It is not usual. A filter is kept for every rate, so that any rate at all would fill the memory.
    """
    rates = sorted({*BROWSER_RATES, default})
    if text in map(str, rates):
        return int(text)
    raise ClientError(f"expected a rate of {', '.join(map(str, rates))} samples per second, got {_quote(text)}", 1008)


def _quote(text: str | None) -> str:
    return repr(printable(shown(text or "")))


async def _send_file(name: str, kind: str, request: Request) -> Response:
    content = Path(__file__).with_name(name).read_bytes()
    return Response(content, media_type=kind, headers=HEADERS)
