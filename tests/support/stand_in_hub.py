"""A stand-in for the hub's HTTP API, on this machine: the endpoints that publishing and downloading use, and faults.

It keeps repositories in memory and writes down every request. A fault answers the next requests that fit it with an
error, closes the connection before or after they were carried out, or calls a function (to kill the client).
Large files come by LFS or, where it is given one, into the Xet storage of stand_in_xet.py.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.support import stand_in_xet
from tests.support.stand_in_xet import StandInXet

TOKEN = "hf_" + "abcdefgh" * 4
SMALL = 20_000
"""Files of fewer bytes are regular ones, as the hub decides by size and kind."""


@dataclass
class Fault:
    """Something that goes wrong with the next requests that fit."""

    method: str
    part: str
    """Of the path."""
    how: str | Callable[[], None]
    """`500`, `403`, ..., `drop` (nothing is done), `lose` (it is done, the answer is lost), or what to call."""
    times: int = 1
    after: int = 0
    """So many fitting requests go well first."""


@dataclass
class Repository:
    private: bool = False
    gated: bool = False
    """Its files are listed for everyone, and given to nobody."""
    files: dict[str, tuple[bytes, bool]] = field(default_factory=dict)
    """Content, and whether it is a large file."""
    commits: list[list[str]] = field(default_factory=list)
    """The paths of each."""

    @property
    def head(self) -> str:
        return hashlib.sha1(str(len(self.commits)).encode()).hexdigest()


@dataclass
class StandInHub:
    repositories: dict[str, Repository] = field(default_factory=dict)
    received: dict[str, bytes] = field(default_factory=dict)
    """Large files by sha256, committed or not."""
    requests: list[tuple[str, str, int]] = field(default_factory=list)
    """Method, path and bytes of the body of everything that came."""
    faults: list[Fault] = field(default_factory=list)
    refused: int = 0
    """Requests without the right token."""
    port: int = 0
    xet: StandInXet | None = None
    """Where large files go by Xet; None for a hub that refuses to say."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def puts(self) -> int:
        """How many large files were sent in full."""
        return sum(method == "PUT" for method, _, _ in self.requests)

    def fault(self, method: str, path: str) -> str | Callable[[], None] | None:
        for fault in self.faults:
            if fault.times and fault.method == method and fault.part in path:
                if fault.after:
                    fault.after -= 1
                    continue
                fault.times -= 1
                return fault.how
        return None


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: StandInHub
    lock: threading.Lock

    def log_message(self, format: str, *args: Any) -> None: ...

    def _serve(self) -> None:
        body = self._body()
        path = unquote(urlsplit(self.path).path)
        with self.lock:
            self.hub.requests.append((str(self.command), path, len(body)))
            how = self.hub.fault(self.command, path)
            if callable(how):
                how()
                how = "drop"
            if how == "drop":
                return self._close()
            if how not in (None, "lose"):
                return self._json(int(how), {"error": f"a fault, told to {self.headers.get('authorization')}"})
            answer = self._answer(path, body)
        if how == "lose":
            return self._close()
        answer()

    do_GET = do_PUT = do_POST = do_HEAD = _serve

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("transfer-encoding", ""):
            body = b""
            while size := int(self.rfile.readline().strip() or b"0", 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _answer(self, path: str, body: bytes) -> Callable[[], None]:
        if path.startswith("/large/"):  # a signed address: no token comes along
            assert "authorization" not in self.headers
            oid = path.removeprefix("/large/")
            if hashlib.sha256(body).hexdigest() != oid:
                return lambda: self._json(400, {"error": "cut short"})
            self.hub.received[oid] = body
            return lambda: self._json(200, {})
        if path.startswith("/xet/"):
            assert self.headers["authorization"] == f"Bearer {stand_in_xet.TOKEN}" and self.hub.xet is not None
            found = self.hub.xet.answer(path, body)
            return lambda: self._json(200 if found else 404, found or {})
        writing = self.command == "POST"
        if writing and self.headers.get("authorization") != f"Bearer {TOKEN}":
            self.hub.refused += 1
            return lambda: self._json(401, {"error": "Invalid username or password."})
        asked = json.loads(body) if body and "ndjson" not in self.headers.get("content-type", "") else {}
        if path == "/api/repos/create":
            return self._create(asked)
        if path == "/api/validate-yaml":
            return lambda: self._json(200, {"warnings": [], "errors": []})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(asked)
        if path.startswith("/api/models/"):
            owner, name, *rest = path.removeprefix("/api/models/").split("/")
            return self._api(f"{owner}/{name}", rest, asked, body)
        return self._resolve(path)

    def _create(self, asked: dict[str, Any]) -> Callable[[], None]:
        name = f"{asked['organization']}/{asked['name']}"
        there = name in self.hub.repositories
        if not there:
            self.hub.repositories[name] = Repository(asked.get("visibility") == "private")
        answer = {"url": f"{self.hub.endpoint}/{name}", "name": name}
        return lambda: self._json(409 if there else 200, answer | ({"error": "exists"} if there else {}))

    def _batch(self, asked: dict[str, Any]) -> Callable[[], None]:
        objects: list[dict[str, Any]] = []
        for one in asked["objects"]:
            href = f"{self.hub.endpoint}/large/{one['oid']}?X-Signature=secret-signature"
            actions = {} if one["oid"] in self.hub.received else {"actions": {"upload": {"href": href}}}
            objects.append(one | actions)
        return lambda: self._json(200, {"objects": objects, "transfer": "basic"})

    def _api(self, name: str, rest: list[str], asked: dict[str, Any], body: bytes) -> Callable[[], None]:
        if name not in self.hub.repositories:
            return lambda: self._json(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        repository = self.hub.repositories[name]
        if not rest or rest[0] == "revision":
            siblings = [{"rfilename": path} for path in repository.files]
            info = {"id": name, "sha": repository.head, "private": repository.private, "siblings": siblings}
            return lambda: self._json(200, info)
        if rest[0] == "tree":
            entries = [self._entry(path, *found) for path, found in repository.files.items()]
            return lambda: self._json(200, entries)
        if rest[0] == "preupload":
            modes = [self._mode(one, repository) for one in asked["files"]]
            return lambda: self._json(200, {"files": modes})
        if rest[0].startswith("xet-") and self.hub.xet is not None:
            assert self.headers["authorization"] == f"Bearer {TOKEN}"
            told = {"casUrl": f"{self.hub.endpoint}/xet", "accessToken": stand_in_xet.TOKEN, "exp": 1 << 40}
            return lambda: self._json(200, told)
        if rest[0].startswith("xet-"):
            return lambda: self._json(403, {"error": "this stand-in has no Xet"})
        assert rest[0] == "commit"
        return self._commit(name, repository, [json.loads(line) for line in body.splitlines()])

    def _entry(self, path: str, content: bytes, large: bool) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_sha1(content)}
        if large:
            sha256 = hashlib.sha256(content).hexdigest()
            entry |= {"oid": git_sha1(sha256.encode()), "lfs": {"oid": sha256, "size": len(content), "pointerSize": 1}}
        return entry

    def _mode(self, asked: dict[str, Any], repository: Repository) -> dict[str, Any]:
        large = asked["size"] >= SMALL or asked["path"].endswith(".safetensors")
        found = {"path": asked["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        if asked["path"] in repository.files:
            content, large = repository.files[asked["path"]]
            found["oid"] = hashlib.sha256(content).hexdigest() if large else git_sha1(content)
        return found

    def _commit(self, name: str, repository: Repository, lines: list[dict[str, Any]]) -> Callable[[], None]:
        changes: dict[str, tuple[bytes, bool]] = {}
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"]), False
            elif value["oid"] not in self.hub.received:
                return lambda: self._json(400, {"error": "a large file was not sent"})
            else:
                changes[value["path"]] = self.hub.received[value["oid"]], True
        repository.files |= changes
        repository.commits.append(list(changes))
        url = f"{self.hub.endpoint}/{name}/commit/{repository.head}"
        answer = {"success": True, "commitOid": repository.head, "commitUrl": url}
        return lambda: self._json(200, answer)

    def _resolve(self, path: str) -> Callable[[], None]:
        """A file as it is downloaded: /ORG/NAME/resolve/REVISION/FILE."""
        name, _, rest = path.strip("/").partition("/resolve/")
        repository = self.hub.repositories.get(name)
        file = rest.partition("/")[2]
        if repository is None:
            return lambda: self._json(404, {"error": "no repository"}, {"X-Error-Code": "RepoNotFound"})
        if repository.gated:
            message = f"Access to model {name} is restricted. You must have access to it."
            headers = {"X-Error-Code": "GatedRepo", "X-Error-Message": message}
            return lambda: self._json(403, {"error": message}, headers)
        if file not in repository.files:
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repository.head}
            return lambda: self._json(404, {"error": "no file"}, headers)
        content, _ = repository.files[file]
        headers = {"ETag": f'"{git_sha1(content)}"', "X-Repo-Commit": repository.head}
        return lambda: self._send(200, content, headers | {"Content-Type": "application/octet-stream"})

    def _json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _close(self) -> None:
        self.close_connection = True
        self.connection.close()


def start() -> tuple[StandInHub, ThreadingHTTPServer]:
    """A running stand-in; `shutdown` and `server_close` end it."""
    hub = StandInHub()
    handler = type("BoundHandler", (Handler,), {"hub": hub, "lock": threading.Lock()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.port = server.server_port
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return hub, server
