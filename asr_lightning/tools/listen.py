"""Transcribe live audio, by a transducer that streams.

Example:
    asr listen runs/streaming/checkpoints/last.ckpt
    ffmpeg -i rtsp://camera/1 -f s16le -ac 1 -ar 16000 - | asr listen runs/streaming/checkpoints/last.ckpt -
    asr listen runs/streaming/checkpoints/last.ckpt --file talk.wav --fast --format json > talk.jsonl
    asr listen runs/streaming/checkpoints/last.ckpt --serve --port 8000

The audio comes from a microphone, from a pipe (`-`, raw samples of one channel), or from a file, in real time or with
--fast at full speed. A terminal shows the current line while it grows: words in the plain color no longer change; the
last one, in another color, may still change. NO_COLOR in the environment turns colors off.

A final line is `START<TAB>END<TAB>TEXT`, in seconds from the beginning. A line ends after a silence, or at the end of a
word when it is longer than --longest. After Ctrl-C the remaining words are written, and the exit status is 130.

With --serve a web page at http://127.0.0.1:8000 uses the microphone of the browser, and programs send samples of 16
bits through a WebSocket. [Live recognition](listen.md) has what they send and get.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from asr_lightning.asr import main
from asr_lightning.errors import InputError, printable
from asr_lightning.tools.arguments import above_zero, add_device, add_int8, whole_number

if TYPE_CHECKING:
    import numpy as np

    from asr_lightning.tools.live import Line, LiveRecognizer, Partial

FORMATS = ("s16le", "s16be", "s32le", "f32le")
GROWING, PLAIN, CLEAR = "\x1b[36m", "\x1b[0m", "\x1b[K"  # cyan; the usual color; the rest of the line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a .ckpt file of a transducer that streams")
    parser.add_argument("-", dest="pipe", action="store_true", help="read raw samples of one channel from a pipe")
    parser.add_argument("--pcm", choices=FORMATS, help="how they are written (default: s16le)")
    parser.add_argument(
        "--rate", type=whole_number(1_000), metavar="HZ", help="samples per second of them (default: the recognizer's)"
    )
    parser.add_argument("--file", metavar="AUDIO", help="play a WAV, FLAC, OGG, MP3, … file in real time")
    parser.add_argument("--fast", action="store_true", help="read the file as fast as can be")
    parser.add_argument("--microphone", metavar="NAME", help="part of its name, or its number (default: the usual one)")
    parser.add_argument(
        "--silence", type=from_zero, default=0.8, metavar="S",
        help="seconds without a new word that end a line; 0: none does (default: 0.8)",
    )  # fmt: skip
    parser.add_argument(
        "--longest", type=above_zero(float), default=30.0, metavar="S", help="seconds of a line (default: 30)"
    )
    parser.add_argument("--format", choices=("txt", "json"), help="of lines; json has words with times (default: txt)")
    parser.add_argument("--serve", action="store_true", help="serve a web page and a WebSocket")
    parser.add_argument("--host", help="address to listen at (default: 127.0.0.1, this machine alone)")
    parser.add_argument("--port", type=whole_number(0), help="0: any that is free (default: 8000)")
    parser.add_argument("--clients", type=whole_number(1), metavar="N", help="at once, at most (default: 8)")
    add_device(parser)
    add_int8(parser)


def from_zero(text: str) -> float:
    """Return a finite number from 0."""
    number = float(text)
    if not 0 <= number < float("inf"):
        raise ValueError
    return number


from_zero.__name__ = "number from 0"  # as argparse names it in messages


def run(options: argparse.Namespace) -> int:
    """Write or serve the text of what is said; return the exit status."""
    _check(options)
    if options.serve:
        from asr_lightning.tools.live_server import bound, serve

        with bound(options.host or "127.0.0.1", 8000 if options.port is None else options.port) as socket:
            serve(_prepare(options), socket, options.clients or 8)
        return 0
    from asr_lightning.tools import live_audio

    if options.file is not None:
        rate, pieces = live_audio.read_file(options.file)
        live = _prepare(options)
        return _listen(live, rate, pieces if options.fast else live_audio.played(pieces, rate), options)
    live = _prepare(options)
    if options.pipe:
        return _listen(live, options.rate or live.sample_rate, live_audio.read_pipe(options.pcm or "s16le"), options)
    with live_audio.microphone(options.microphone, live.sample_rate) as (rate, pieces):
        print("listening; Ctrl-C ends it", file=sys.stderr, flush=True)
        return _listen(live, rate, pieces, options)


def _check(options: argparse.Namespace) -> None:
    """Refuse options that would be ignored."""
    sources = [name for name, value in (("-", options.pipe), ("--file", options.file), ("--serve", options.serve),
               ("--microphone", options.microphone)) if value]  # fmt: skip
    if len(sources) > 1:
        raise InputError(f"expected audio from one source, got {' and '.join(sources)}")
    for name, source, value in (
        ("--pcm", "-", options.pcm), ("--rate", "-", options.rate), ("--fast", "--file", options.fast or None),
        ("--host", "--serve", options.host), ("--port", "--serve", options.port),
        ("--clients", "--serve", options.clients),
    ):  # fmt: skip
        if value is not None and source not in sources:
            raise InputError(f"{name}: only {source} has it; give both or leave it out")
    if options.serve and options.format is not None:
        raise InputError("--format: --serve sends JSON; leave it out")
    if options.port is not None and options.port > 65_535:
        raise InputError(f"--port: expected 0 to 65535, got {options.port}")
    if options.rate is not None and options.rate > 1_000_000:
        raise InputError(f"--rate: expected 1,000 to 1,000,000 samples per second, got {options.rate:,}")


def _prepare(options: argparse.Namespace) -> "LiveRecognizer":
    from asr_lightning.tools.live import LiveRecognizer
    from asr_lightning.tools.prepared_recognizer import prepare_recognizer

    recognizer = prepare_recognizer(options.checkpoint, options.device, None, int8=options.int8)
    try:
        return LiveRecognizer(recognizer, options.silence, options.longest)
    except InputError as error:
        raise InputError(f"{options.checkpoint}: {error}") from error


def _listen(
    live: "LiveRecognizer", sample_rate: int, pieces: Iterable["np.ndarray"], options: argparse.Namespace
) -> int:
    """Write lines as pieces (S,) of audio complete them; what remains is written also after Ctrl-C and an error."""
    stream, display = live.stream(sample_rate), Display(options.format == "json")
    try:
        for piece in pieces:
            with uninterrupted():
                display.show(stream.read(piece), stream.partial)
    finally:
        display.show(stream.finish(), stream.partial)
    return 0


class Display:
    """Final lines on standard output; on a terminal, the line that is going on below them.

    Args:
        as_json: Write lines as JSON.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self.colored = self.terminal and not os.environ.get("NO_COLOR")
        self.shown = ""
        self.hidden = 0  # characters at the beginning of the growing line, for which there is no room

    def show(self, lines: Iterable["Line"], partial: "Partial") -> None:
        """Write lines that are final, and the text of the one that is going on."""
        text = "".join(map(self._line, lines))
        if text:
            self.hidden = 0
        growing = self._visible_end(partial) if self.terminal else ""
        if text or growing != self.shown:  # in one piece, so that nothing is seen in between
            erased = f"\r{CLEAR}" if self.shown else ""
            sys.stdout.write(f"{erased}{text}{growing}")
            sys.stdout.flush()
        self.shown = growing

    def _line(self, line: "Line") -> str:
        if self.as_json:
            return json.dumps(line.as_json(), ensure_ascii=False) + "\n"
        return f"{line.start:.2f}\t{line.end:.2f}\t{printable(line.text)}\n"

    def _visible_end(self, partial: "Partial") -> str:
        """Return the growing text; of a long one only the end, which moves by half a line at a time."""
        stable = printable(partial.stable)
        text = stable + printable(partial.rest)
        room = shutil.get_terminal_size().columns - 2  # for an ellipsis, and the cursor
        if len(text) <= self.hidden:
            self.hidden = 0
        if cells(text[self.hidden :]) > room:
            self.hidden = len(text) - len(last_cells(text, room // 2))
        border = max(self.hidden, len(stable))
        fixed, growing = text[self.hidden : border], text[border:]
        dots = "…" if self.hidden else ""
        return f"{dots}{fixed}{GROWING}{growing}{PLAIN}" if self.colored and growing else f"{dots}{fixed}{growing}"


def cells(text: str) -> int:
    """Return the width of a text on a terminal, where Korean letters have two cells and marks none."""
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def last_cells(text: str, room: int) -> str:
    """Return the longest end of a text that is at most so wide."""
    while text and cells(text) > room:
        text = text[1:]
    return text


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C, SIGTERM and SIGHUP to the end of the block, so that no step of a network is left half done."""
    delayed: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        delayed.append(number)

    handlers = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if delayed:
            signal.raise_signal(delayed[0])


if __name__ == "__main__":
    sys.exit(main(["listen", *sys.argv[1:]]))
