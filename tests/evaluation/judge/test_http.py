"""Judges over HTTP, against a real server in a thread: what passes is waited for, what does not is said at once."""

import email.utils
import json
import logging
import socket
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from qllm_hf.errors import ConfigError, JudgeError
from qllm_hf.evaluation.judge.http import HttpJudge

KEY = "sk-very-secret-0123456789"
MESSAGES = [{"role": "system", "content": "Be fair."}, {"role": "user", "content": "好 {} \ud83d?"}]


def said(content: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": content}}]}


GOOD = (200, said("Good. [[7]]"))


class Server(ThreadingHTTPServer):
    """Gives the `answers` in turn, and the last one again and again: (status, body, headers) or a function."""

    daemon_threads = True

    def __init__(self, *answers):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = deque(answers)
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_):
        """A client that gave up is no reason to print a traceback."""


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, dict(self.headers), json.loads(body)))
        answers = self.server.answers
        answer = answers.popleft() if len(answers) > 1 else answers[0]
        if callable(answer):
            return answer(self)
        status, content, *headers = answer
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers[0] if headers else {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        pytest.fail("a request became a GET")

    def log_message(self, *_):
        pass


@pytest.fixture(autouse=True)
def _no_key_of_the_developer(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def serve():
    """Starts a server with the given answers."""
    servers = []

    def start(*answers) -> Server:
        servers.append(Server(*answers))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def judge(waits):
    def make(server: Server | str, **options) -> HttpJudge:
        url = server if isinstance(server, str) else server.url
        return HttpJudge(url, "judge-1", sleep=waits.append, **options)

    return make


@pytest.fixture
def nobody() -> str:
    """An address where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_what_is_asked(serve, judge, waits, path):
    server = serve(GOOD)
    assert judge(server.url + path).ask(MESSAGES) == "Good. [[7]]"
    ((where, headers, body),) = server.requests
    assert where == "/v1/chat/completions"
    assert body == {
        "model": "judge-1",
        "messages": MESSAGES,
        "temperature": 0.0,
        "max_tokens": 2048,
        "stream": False,
    }
    assert headers["Content-Type"] == "application/json" and "Authorization" not in headers
    assert waits == []


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("https://api.openai.com", "https://api.openai.com/v1/chat/completions"),
        ("https://host/proxy/v1", "https://host/proxy/v1/chat/completions"),
        ("https://host/beta/chat/completions/", "https://host/beta/chat/completions"),
        ("HTTP://[::1]:8000", "http://[::1]:8000/v1/chat/completions"),
    ],
)
def test_endpoint(url, endpoint):
    assert HttpJudge(url, "m").url == endpoint


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "file:///etc/passwd",
        "ftp://host",
        "http://",
        "http://h:99999",
        "http://h?x=1",
        "http://a b",
        "http://h/\r\nX-Header: 1",
        "http://[::1",
        "http://h\u0430st",
        "data:,x",
    ],
)
def test_other_addresses(url):
    with pytest.raises(JudgeError, match=r"no address of a judge.*Give http://"):
        HttpJudge(url, "m")


def test_password_in_the_address_is_not_shown():
    with pytest.raises(JudgeError, match="environment variable") as caught:
        HttpJudge("https://me:secret@host", "m")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("options", [{"timeout": 0}, {"retries": -1}, {"max_tokens": 0}])
def test_numbers_that_cannot_be(options):
    with pytest.raises(ConfigError, match="give a timeout above 0"):
        HttpJudge("http://h", "m", **options)


def test_key_is_sent_and_shown_nowhere(serve, judge, monkeypatch, caplog):
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    server = serve((500, {"error": {"message": f"{KEY} broke"}}), (401, f"bad key {KEY}".encode()))
    asking = judge(server, key_variable="MY_KEY")
    with caplog.at_level(logging.DEBUG), pytest.raises(JudgeError) as caught:
        asking.ask(MESSAGES)
    assert [headers["Authorization"] for _, headers, _ in server.requests] == [f"Bearer {KEY}"] * 2
    everything = f"{caught.value!r} {caught.value.__cause__!r} {asking!r} {vars(asking)} {caplog.text}"
    assert KEY not in everything
    assert "bad key ***" in everything and "MY_KEY" in everything


def test_key_that_cannot_be_one(serve, judge, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\nX-Other: 1")
    server = serve(GOOD)
    with pytest.raises(JudgeError, match="OPENAI_API_KEY holds characters") as caught:
        judge(server).ask(MESSAGES)
    assert "secret" not in str(caught.value) and not server.requests


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_is_refused_and_the_key_stays(serve, judge, monkeypatch, status):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    other = serve(GOOD)
    server = serve((status, b"", {"Location": f"{other.url}/v1/chat/completions"}))
    with pytest.raises(JudgeError, match=rf"redirects to '{other.url}.*give the final address"):
        judge(server).ask(MESSAGES)
    assert len(server.requests) == 1 and not other.requests


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, {"error": {"message": "no key"}}, r"status 401 \(no key\)\. Put a valid key into .*OPENAI_API_KEY"),
        (403, b"", r"status 403\. The key in .*OPENAI_API_KEY may not"),
        (404, {"detail": "Not Found"}, r"status 404 \(Not Found\)\. Check the address, and that the server has"),
        (400, {"error": "too\n long"}, r"status 400 \(too long\)\. The server does not take this request"),
        (413, b"<html>", r"status 413 \(<html>\)\. The prompt is too long"),
        (422, [1], r"status 422 \(\[1\]\)\. Check the address"),
    ],
)
def test_refused_at_once(serve, judge, waits, status, body, message):
    server = serve((status, body))
    with pytest.raises(
        JudgeError, match=rf"the judge 'judge-1' at {server.url}/v1/chat/completions refuses.*{message}"
    ):
        judge(server).ask(MESSAGES)
    assert len(server.requests) == 1 and waits == []


def test_down(judge, waits, nobody):
    with pytest.raises(JudgeError) as caught:
        judge(nobody).ask(MESSAGES)
    assert str(caught.value) == (
        f"the judge 'judge-1' at {nobody}/v1/chat/completions did not answer in 6 attempts; the last one: Connection "
        "refused. Check that the server runs, has this model and is not overloaded."
    )
    # doubling, each between half and the whole
    assert all(2**n / 2 <= wait <= 2**n for n, wait in enumerate(waits)) and len(waits) == 5


def test_waits_have_an_end(judge, nobody, waits):
    with pytest.raises(JudgeError, match="in 2001 attempts"):
        judge(nobody, retries=2000).ask(MESSAGES)
    assert max(waits) <= 60


def test_no_retries(judge, waits, nobody):
    with pytest.raises(JudgeError, match="in 1 attempt;"):
        judge(nobody, retries=0).ask(MESSAGES)
    assert waits == []


def test_slow(serve, judge, waits):
    done = threading.Event()
    server = serve(lambda handler: done.wait(10), GOOD)
    started = time.monotonic()
    assert judge(server, timeout=1).ask(MESSAGES) == "Good. [[7]]"
    assert len(waits) == 1 and time.monotonic() - started < 5
    done.set()


def test_always_slow(serve, judge, waits):
    done = threading.Event()

    def half(handler):
        """Slow in the middle of an answer."""
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"choices"')
        handler.wfile.flush()
        done.wait(10)

    server = serve(half)
    with pytest.raises(JudgeError, match=r"in 2 attempts; the last one: no answer within 0\.1 s"):
        judge(server, timeout=0.1, retries=1).ask(MESSAGES)
    done.set()


def hang_up(handler):
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def nonsense(handler):
    handler.wfile.write(b"this is no HTTP\r\n\r\n")
    handler.close_connection = True


@pytest.mark.parametrize(
    "failure",
    [
        (500, b"oops"),
        (502, b"<html>bad gateway</html>"),
        (503, b"", {"Retry-After": "0"}),
        (429, b""),
        (408, b""),
        (200, b""),
        (200, b"<html>"),
        (200, b"\xff\xfe"),
        (200, b'{"choices": [{"message": {"content": "[[7'),
        (200, {}),
        (200, []),
        (200, {"choices": []}),
        (200, b"[" * 100_000 + b"]" * 100_000),
        (200, {"choices": [{"message": "[[7]]"}]}),
        (200, {"choices": None}),
        (200, said([{"type": "text"}])),
        hang_up,
        nonsense,
    ],
    ids=lambda answer: getattr(answer, "__name__", repr(answer)),
)
def test_fails_once(serve, judge, waits, failure):
    server = serve(failure, GOOD)
    assert judge(server).ask(MESSAGES) == "Good. [[7]]"
    assert len(waits) == 1 and len(server.requests) == 2


def test_always_nonsense(serve, judge, waits):
    server = serve((200, b"<html>welcome</html>"))
    with pytest.raises(
        JudgeError, match=r"3 attempts; the last one: an answer without choices.*'<html>welcome</html>'"
    ):
        judge(server, retries=2).ask(MESSAGES)
    assert len(server.requests) == 3


@pytest.mark.parametrize("message", [{"content": None}, {}, {"content": ""}])
def test_a_model_that_writes_nothing(serve, judge, message):
    assert judge(serve((200, {"choices": [{"message": message}]}))).ask(MESSAGES) == ""


def test_retry_after(serve, judge, waits, caplog):
    later = email.utils.format_datetime(email.utils.localtime(), usegmt=False)
    in_a_minute = email.utils.formatdate(time.time() + 60, usegmt=True)
    headers = ("7", in_a_minute, later, "soon", "-3")
    server = serve(*((429, b"", {"Retry-After": header}) for header in headers), GOOD)
    assert judge(server).ask(MESSAGES) == "Good. [[7]]"
    assert waits[0] == 7 and 50 < waits[1] <= 60 and waits[2] == 0
    assert 4 <= waits[3] <= 8 and 8 <= waits[4] <= 16  # not understood: as without one
    assert "status 429. Next attempt in 7 s." in caplog.text


def test_too_long_a_wait_is_left_to_the_user(serve, judge, waits):
    server = serve((429, b"", {"Retry-After": "86400"}))
    with pytest.raises(JudgeError, match="asks to be left alone for 86400 s, more than the 600 s"):
        judge(server).ask(MESSAGES)
    assert waits == []
