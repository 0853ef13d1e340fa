"""Memory and speed of `asr listen --serve` under several clients that send as fast as it reads.

    python benchmarks/server_soak.py CHECKPOINT FOLDER [--minutes 60] [--clients 8]

Every client sends the audio files under the folder, one behind the other with 0.6 s of silence, over and over, from a
file of its own on. Memory is the resident memory of the server, every minute of audio of all clients together. A
client more dies in every minute without a word. Memory is flat where the second half of the run grows by less than
10 MB per hour of audio beyond the noise of the first half; the exit status says so.
"""

import argparse
import contextlib
import itertools
import json
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import soundfile
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

PAUSE_SECONDS = 0.6
MESSAGE_SECONDS = 0.5
MOST_GROWTH = 10.0  # MB per hour of audio


class Client(threading.Thread):
    """A client that sends audio to its end, and counts the lines that come back."""

    def __init__(self, address: str, audio: np.ndarray, rate: int, seconds: float) -> None:
        super().__init__()
        self.address, self.audio, self.rate, self.seconds = address, audio, rate, seconds
        self.sent = self.written = 0.0  # seconds: sent, and up to the last line
        self.lines = self.words = 0
        self.ended = False

    def run(self) -> None:
        """Send and receive."""
        with connect(
            f"{self.address}?rate={self.rate}", open_timeout=300, max_queue=None, ping_interval=None
        ) as connection:
            reader = threading.Thread(target=self.read, args=(connection,))
            reader.start()
            step = round(MESSAGE_SECONDS * self.rate)
            for number in itertools.count():
                if self.sent >= self.seconds:
                    break
                begin = number * step % (len(self.audio) - step)
                connection.send(self.audio[begin : begin + step].tobytes())
                self.sent += MESSAGE_SECONDS
            connection.send("end")
            reader.join()

    def read(self, connection: ClientConnection) -> None:
        """Count lines and words."""
        for text in connection:
            message = json.loads(text)
            if message["type"] == "line":
                self.lines += 1
                self.words += len(message["words"])
                self.written = message["end"]
            elif message["type"] == "error":
                print(f"a client is refused: {message['message']}", file=sys.stderr)
            self.ended = message["type"] == "end"


def read_folder(folder: Path) -> tuple[np.ndarray, int]:
    """Return the samples of 16 bits of all files of a folder, with pauses, and their rate."""
    paths = sorted(path for kind in ("flac", "wav") for path in folder.rglob(f"*.{kind}"))
    parts, rates = [], set()
    for path in paths:
        audio, rate = soundfile.read(path, dtype="int16")
        rates.add(rate)
        parts += [audio, np.zeros(round(PAUSE_SECONDS * rate), np.int16)]
    if len(rates) != 1:
        sys.exit(f"{folder}: expected FLAC or WAV files of one sample rate, found {len(paths)} files, rates {rates}")
    return np.concatenate(parts), rates.pop()


def disconnect_abruptly(address: str) -> None:
    """Connect, send some audio, and vanish."""
    with contextlib.suppress(WebSocketException, OSError), connect(address, open_timeout=300) as connection:
        connection.send(bytes(100_000))
        connection.socket.shutdown(socket.SHUT_RDWR)


def main() -> int:
    """Run the server and its clients; print memory over time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path, help="audio, as data/spoken_small/dev-clean")
    parser.add_argument("--minutes", type=float, default=60.0, help="of audio, all clients together (default: 60)")
    parser.add_argument("--clients", type=int, default=8)
    options = parser.parse_args()
    audio, rate = read_folder(options.folder)
    command = [sys.executable, "-m", "asr_lightning.asr", "listen", str(options.checkpoint), "--serve", "--port", "0",
               "--clients", str(options.clients + 1)]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        match = re.match(r"http(://\S+)", server.stdout.readline())
        if match is None:
            sys.exit("the server did not start")
        address = f"ws{match[1]}/listen"
        process = psutil.Process(server.pid)
        seconds = 60 * options.minutes / options.clients
        clients = [
            Client(address, np.roll(audio, -number * len(audio) // options.clients), rate, seconds)
            for number in range(options.clients)
        ]
        begun, rows = time.monotonic(), []
        for client in clients:
            client.start()
        print("audio (min)   time (s)   memory (MB)   threads   files", flush=True)
        while any(client.is_alive() for client in clients):
            time.sleep(0.5)
            minutes = sum(client.written for client in clients) / 60
            if not rows or minutes >= rows[-1][0] + 1:
                rows.append((minutes, process.memory_info().rss / 1e6))
                print(f"{minutes:11.1f} {time.monotonic() - begun:10.0f} {rows[-1][1]:13.1f} "
                      f"{process.num_threads():9d} {process.num_fds():7d}", flush=True)  # fmt: skip
                threading.Thread(target=disconnect_abruptly, args=(address,), daemon=True).start()
        wall, cpu = time.monotonic() - begun, sum(process.cpu_times()[:2])
        rows.append((sum(client.sent for client in clients) / 60, process.memory_info().rss / 1e6))
        print(f"{rows[-1][0]:11.1f} {wall:10.0f} {rows[-1][1]:13.1f}", flush=True)
        server.terminate()
    half = len(rows) // 2
    minutes, memory = np.array(rows[half:]).T
    growth = 60 * np.polyfit(minutes, memory, 1)[0] if len(minutes) > 2 else float("nan")
    total = sum(client.sent for client in clients)
    print(f"{total / 60:.1f} min of audio of {options.clients} clients in {wall:.0f} s: {total / wall:.1f} times real "
          f"time; {cpu:.0f} s of processor time: {total / cpu:.1f} times real time on one core")  # fmt: skip
    print(f"{sum(client.lines for client in clients)} lines, {sum(client.words for client in clients)} words; "
          f"{sum(client.ended for client in clients)} of {len(clients)} clients ended as they should")  # fmt: skip
    print(f"memory: {memory.min():.1f} to {memory.max():.1f} MB in the second half, {growth:+.1f} MB per hour of audio")
    return int(not (growth < MOST_GROWTH and all(client.ended for client in clients)))


if __name__ == "__main__":
    sys.exit(main())
