"""A stand-in for an object store on the loopback: what S3 and GCS answer to GET and HEAD, and faults on demand."""

import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Literal
from urllib.parse import unquote

Fault = Literal["500", "403", "dropped", "short"]
"""An error of the server; a refusal; a connection closed in mid-body; fewer bytes than were asked for."""


class S3StandIn:
    """Serves the objects of one bucket; the faults of a key are used up, one a request of its bytes."""

    bucket = "bucket"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.changed: dict[str, int] = {}
        self.faults: dict[str, Iterator[Fault]] = {}
        self.requests: Counter[tuple[str, str]] = Counter()
        """How often (method, key) was asked for."""
        self.asked = threading.Semaphore(0)
        """Released once a request of bytes."""
        self.gate = threading.Event()
        """Bytes are sent only while it is set."""
        self.gate.set()
        self._server = _Server(("127.0.0.1", 0), type("Bound", (_Handler,), {"standin": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self) -> "S3StandIn":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.gate.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        """What AWS_ENDPOINT_URL or GOOGLE_BASE_URL is set to."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def put(self, key: str, value: bytes) -> None:
        """Store an object, or another one in its place, a second younger."""
        self.objects[key] = value
        self.changed[key] = self.changed.get(key, 1_700_000_000) + 1

    def put_folder(self, prefix: str, folder: Path) -> None:
        """Store every file of a folder."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    def gets(self, prefix: str = "") -> int:
        """How many requests of bytes there were."""
        return sum(n for (method, key), n in self.requests.items() if method == "GET" and key.startswith(prefix))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """A client went away."""


class _Handler(BaseHTTPRequestHandler):
    standin: S3StandIn
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # Else small answers wait for the acknowledgement of their headers.

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_PUT(self) -> None:  # what a client without credentials asks the metadata endpoint for
        self._refuse(403, b"no credentials here")

    def _answer(self) -> None:
        standin, (bucket, _, key) = self.standin, unquote(self.path).removeprefix("/").partition("/")
        method = self.command
        standin.requests[method, key] += 1
        if bucket != standin.bucket:
            return self._refuse(404, b"<Error><Code>NoSuchBucket</Code></Error>")
        value = standin.objects.get(key)
        if value is None:
            return self._refuse(404, b"<Error><Code>NoSuchKey</Code></Error>")
        fault = next(standin.faults.get(key, iter(())), None) if method == "GET" else None
        if fault in ("500", "403"):
            return self._refuse(int(fault), b"<Error><Code>Refused</Code></Error>")
        self._send(key, value, fault)

    def _send(self, key: str, value: bytes, fault: Fault | None) -> None:
        first, end = 0, len(value)
        ranged = self.headers["Range"]
        if ranged:
            begin, _, last = ranged.removeprefix("bytes=").partition("-")
            first, end = int(begin), min(len(value), int(last) + 1)
        if fault == "short":
            end -= (end - first + 1) // 2
        self.send_response(206 if ranged else 200)
        if ranged:
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{len(value)}")
        self.send_header("Content-Length", str(end - first))
        self.send_header("ETag", f'"{hashlib.md5(value).hexdigest()}"')
        self.send_header("Last-Modified", formatdate(self.standin.changed[key], usegmt=True))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.standin.asked.release()
        self.standin.gate.wait()
        if fault == "dropped":
            end -= (end - first + 1) // 2
            self.close_connection = True
        self.wfile.write(memoryview(value)[first:end])

    def _refuse(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""
