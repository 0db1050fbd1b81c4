"""A real HTTP server on loopback that answers range requests, and fails as it is told to."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


class RangeServer(ThreadingHTTPServer):
    """Serves the files of a folder.

    requests: (path, begin, end) of each, 0 and -1 without a range. failures: what goes wrong with the next requests: a
    status, or cut (fewer bytes than asked for), broken (the connection ends amid the bytes), reset (no answer), hang.
    ranges: whether it answers range requests as such.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.requests: list[tuple[str, int, int]] = []
        self.failures: list[int | str] = []
        self.always: int | str = 0
        self.ranges = True
        self.closing = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/data"

    def fetched(self) -> int:
        """Return how many bytes of shards were asked for."""
        return sum(end - begin for path, begin, end in self.requests if path.endswith(".tar"))


class _Handler(BaseHTTPRequestHandler):
    server: RangeServer

    def do_GET(self) -> None:
        path = unquote(self.path).removeprefix("/data/")
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        begin, end = (int(wanted[1]), int(wanted[2]) + 1) if wanted else (0, -1)
        self.server.requests.append((path, begin, end))
        failure = self.server.failures.pop(0) if self.server.failures else self.server.always
        file = self.server.root / path
        if failure == "reset":
            self.close_connection = True
            return
        if failure == "hang":
            self.server.closing.wait()
            return
        if isinstance(failure, int) and failure:
            self.send_error(failure)
            return
        if not file.is_file():
            self.send_error(404)
            return
        content = file.read_bytes()
        partial = wanted is not None and self.server.ranges
        if partial:
            content = content[begin:end]
        sent = content[: len(content) // 2] if failure in ("cut", "broken") else content
        self.send_response(206 if partial else 200)
        self.send_header("Content-Length", str(len(sent if failure == "cut" else content)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing."""


@contextmanager
def serving(root: Path) -> Iterator[RangeServer]:
    """Serve a folder until the end of the block."""
    server = RangeServer(root)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
