"""Local servers in W&B's place: one that works, and those that do not."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ACCOUNT = {"id": "1", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}


class WandbServer(ThreadingHTTPServer):
    """Answers W&B's requests. status: of every answer. held: lines of the files that runs have streamed to it."""

    daemon_threads = True

    def __init__(self, status: int = 200) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = status
        self.names: list[str] = []
        self.held: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    server: WandbServer

    def do_POST(self) -> None:
        content, body = self.rfile.read(int(self.headers.get("Content-Length", 0))), {}
        with contextlib.suppress(ValueError):  # its own measurements are not JSON
            body = json.loads(content)
        name = body.get("operationName", self.path)
        self.server.names.append(name)
        for file in body.get("files", {}).values():
            self.server.held += file["content"]
        data: dict[str, object] = {"viewer": ACCOUNT}
        if "input" in body.get("variables", {}) or name == "UpsertBucket":
            run = body["variables"]
            project = {"name": run.get("project", "p"), "entity": {"name": "me"}}
            bucket = {
                "id": "1",
                "name": run.get("name", "r"),
                "displayName": "r",
                "historyLineCount": 0,
                "config": "{}",
            }
            data = {"upsertBucket": {"bucket": {**bucket, "project": project}, "inserted": True}}
        if name == "CreateRunFiles":
            data = {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": []}}
        answer = {"data": data} if self.server.status == 200 else {"errors": [{"message": "no such key"}]}
        text = json.dumps(answer).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_PUT = do_POST  # noqa: N815

    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing."""


@contextlib.contextmanager
def serving(status: int = 200) -> Iterator[WandbServer]:
    """Run a server for the block."""
    server = WandbServer(status)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def silent() -> Iterator[int]:
    """Accept connections on a port for the block, and never answer."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        yield listener.getsockname()[1]
