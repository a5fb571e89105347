"""A local Hub: the part of the Hub's HTTP interface that huggingface_hub's client uses to push and to load a model.

It keeps real hashes (git's SHA-1, SHA-256 of large files) and real rules (parent commits, pull requests, objects that a
commit names must have been uploaded), so a client that works here speaks the protocol. Large files go by the basic
transfer of git LFS; run the client with HF_HUB_DISABLE_XET=1.

    with Hub() as hub:
        hub.fail("POST", "/commit/", status=500, times=2)
        run(..., env={"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token("ann")})
        print(hub.log())

Source: huggingface_hub's own requests (`_commit_api.py`, `lfs.py`, `file_download.py`, `hf_api.py`).
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from publishing.hub_routes import Answer, Refused, answer_to
from publishing.hub_store import Store


@dataclass
class Fault:
    """What goes wrong with requests of a method whose path holds a pattern.

    Attributes:
        kind: "status" (an answer of that status), "drop" (the connection ends after `after` bytes of the body),
            "lose" (the request is carried out, and its answer is lost), "hang" (no answer until the server ends),
            "corrupt" (one bit of what is sent is wrong), "change" (`change` is called before the answer),
            "meanwhile" (the same, and the server answers others while it runs).
        times: how often; the requests after that go well.
        skip: how many go well before.
    """

    kind: str
    method: str
    pattern: str
    status: int = 500
    message: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    after: int = 0
    times: int = 1
    skip: int = 0
    change: Callable[[], object] | None = None


@dataclass(frozen=True)
class Logged:
    """A request that was answered, or not (status 0); bytes of its body, and of the answer's."""

    method: str
    path: str
    status: int
    received: int
    sent: int

    def __str__(self) -> str:
        status = str(self.status) if self.status else "---"
        return f"{status}  {self.method:<4}  {self.received:>8}  {self.sent:>8}  {self.path}"


class Hub:
    """The server, on a free port of this machine."""

    def __init__(self) -> None:
        self.store = Store()
        self.tokens: dict[str, str] = {}
        self.expired: set[str] = set()
        self.faults: list[Fault] = []
        self.requests: list[Logged] = []
        self.lock = threading.RLock()
        self.ended = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.server.daemon_threads = True

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def token(self, user: str, *, expired: bool = False) -> str:
        """A token of a user."""
        found = f"hf_{user}_secret_{len(self.tokens)}"
        self.tokens[found] = user
        if expired:
            self.expired.add(found)
        return found

    def fail(self, method: str, pattern: str, kind: str = "status", **options: object) -> Fault:
        """Let requests fail from now on."""
        fault = Fault(kind, method, pattern, **options)  # type: ignore[arg-type]
        self.faults.append(fault)
        return fault

    def fault_for(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.method == method and re.search(fault.pattern, path) and fault.times > 0:
                    if fault.skip > 0:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None

    def uploaded(self, since: int = 0) -> dict[str, int]:
        """{SHA-256: bytes that arrived} of the uploads after the first `since` requests."""
        found: dict[str, int] = {}
        for request in self.requests[since:]:
            if request.method == "PUT":
                oid = request.path.rpartition("/")[2]
                found[oid] = found.get(oid, 0) + request.received
        return found

    def log(self, since: int = 0) -> str:
        """The requests, one line each: status, method, bytes received, bytes sent, path."""
        return "\n".join(["stat  how   received      sent  path", *map(str, self.requests[since:])])


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            """Says nothing; `Hub.log` does."""

        def handle_any(self) -> None:
            fault = hub.fault_for(self.command, self.path)
            if fault is not None and fault.kind == "hang":
                self._log(0, 0, 0)
                hub.ended.wait()
                self.close_connection = True
                return
            if fault is not None and fault.kind == "drop":
                received = len(self.rfile.read(fault.after))
                self._log(0, received, 0)
                self._reset()
                return
            body = self._body()
            if fault is not None and fault.change is not None:
                with contextlib.nullcontext() if fault.kind == "meanwhile" else hub.lock:
                    fault.change()
            answer = self._answer(fault, body)
            if fault is not None and fault.kind == "lose":
                self._log(0, len(body), 0)
                self._reset()
                return
            if fault is not None and fault.kind == "corrupt" and answer.body:
                answer = Answer(answer.status, _flipped(answer.body), answer.headers)
            self._send(answer, len(body))

        do_GET = do_HEAD = do_POST = do_PUT = handle_any

        def _answer(self, fault: Fault | None, body: bytes) -> Answer:
            if fault is not None and fault.kind == "status":
                return Answer.error(fault.status, fault.message, dict(fault.headers))
            parts = urlsplit(self.path)
            query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
            with hub.lock:
                try:
                    user = self._user()
                    return answer_to(hub.store, hub.url, user, self.command, parts.path, query, self.headers, body)
                except Refused as refused:
                    return Answer.error(refused.status, refused.message, refused.headers)

        def _user(self) -> str | None:
            """Who asks; None is anybody."""
            given = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
            if not given:
                return None
            if self.path.startswith("/storage/"):
                raise Refused(400, "a token was sent to another host")
            if given in hub.expired or given not in hub.tokens:
                why = "token is expired" if given in hub.expired else "Invalid credentials in Authorization header"
                raise Refused(401, why)
            return hub.tokens[given]

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def _send(self, answer: Answer, received: int) -> None:
            self._log(answer.status, received, 0 if self.command == "HEAD" else len(answer.body))
            self.send_response(answer.status)
            for key, value in answer.headers.items():
                self.send_header(key, value)
            if "Content-Length" not in answer.headers:
                self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)

        def _reset(self) -> None:
            """End the connection as a broken line does, without goodbye."""
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            self.rfile = self.wfile = _Nowhere()  # type: ignore[assignment]

        def _log(self, status: int, received: int, sent: int) -> None:
            with hub.lock:
                hub.requests.append(Logged(self.command, unquote(self.path), status, received, sent))

    return Handler


class _Nowhere:
    """A stream that is closed."""

    closed = True

    def flush(self) -> None:
        """Nothing is left to send."""

    def close(self) -> None:
        """It is closed."""


def _flipped(data: bytes) -> bytes:
    """The same with one bit changed, near the end: of a file of weights, in a number and not in the header."""
    changed = bytearray(data)
    changed[-len(changed) // 4] ^= 0x40
    return bytes(changed)
