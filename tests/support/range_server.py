"""A web server with ranges and ETags, started by tests as a process, to be killed: `range_server.py FOLDER LOG PORT`.

It writes its port, then a line per request to the log: method, path, range and the bytes that it answered.
"""

import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

FOLDER, LOG = Path(sys.argv[1]), Path(sys.argv[2])


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms for the client to acknowledge its head

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path, span = FOLDER / unquote(self.path).lstrip("/"), self.headers.get("Range")
        if os.path.exists(LOG.with_suffix(".busy")):  # taken away by whoever wants the server to answer again
            return self.end(503, b"")
        if not path.is_file():
            return self.end(404, b"")
        status = path.stat()
        headers = {"ETag": f'"{status.st_mtime_ns:x}"'}
        if span is None or os.path.exists(LOG.with_suffix(".whole")):
            return self.end(200, path.read_bytes(), body, headers)
        first, last = map(int, span.removeprefix("bytes=").split("-"))
        if first >= status.st_size:
            return self.end(416, b"")
        with path.open("rb") as file:
            part = os.pread(file.fileno(), last + 1 - first, first)
        self.end(206, part, body, {**headers, "Content-Range": f"bytes {first}-{last}/{status.st_size}"})

    def end(self, status: int, content: bytes, body: bool = True, headers: dict[str, str] | None = None) -> None:
        with LOG.open("a") as log:
            log.write(f"{self.command} {self.path} {self.headers.get('Range')} {len(content) if body else 0}\n")
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[3])), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
