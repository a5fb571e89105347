"""The gate alone, around apps that a test can hold: what it refuses, what it watches, and that places come back."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest
from transformers.utils.import_utils import is_serve_available

from qllm_hf.serving.caller import StoppedError, current
from qllm_hf.serving.gate import Gate
from qllm_hf.serving.limits import Limits

pytestmark = pytest.mark.skipif(not is_serve_available(), reason="needs `pip install 'qllm-hf[serve]'`")

PROMPT = b'{"prompt": "a"}'


class Connection:
    """A client as a server shows it to an app."""

    def __init__(self, *parts: bytes, ends: bool = True, client: str = "1.2.3.4", **headers: str) -> None:
        given = {"content_type": "application/json"} | headers
        pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()]
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/completions",
            "headers": pairs,
            "client": [client, 1],
        }
        self._parts, self._ends = list(parts), ends
        self.left = asyncio.Event()
        self.sent: list = []
        self.reads = asyncio.Event()
        self.reads.set()

    async def receive(self):
        if self._parts:
            body = self._parts.pop(0)
            return {"type": "http.request", "body": body, "more_body": bool(self._parts) or not self._ends}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        await self.reads.wait()
        self.sent.append(message)

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def said(self) -> str:
        return json.loads(self.sent[1]["body"])["error"]["message"]


async def visit(gate: Gate, connection: Connection) -> Connection:
    await gate(connection.scope, connection.receive, connection.send)
    return connection


@asynccontextmanager
async def visiting(gate: Gate, connection: Connection):
    """While a request is under way."""
    task = asyncio.ensure_future(visit(gate, connection))
    await asyncio.sleep(0.01)
    yield task
    await asyncio.wait_for(task, 5)


async def echo(scope, receive, send) -> None:
    """Answers with what it was sent, and its headers."""
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": scope["headers"]})
    await send({"type": "http.response.body", "body": body})


async def waits(scope, receive, send) -> None:
    """Works until its caller is stopped."""
    await receive()
    caller = current()
    await caller.until_stopped()
    raise StoppedError(caller.reason)


def run(work) -> None:
    asyncio.run(asyncio.wait_for(work(), 20))


def test_a_request_without_a_length_is_read_up_to_the_limit():
    async def work():
        gate = Gate(echo, Limits(body_bytes=20))
        good = await visit(gate, Connection(PROMPT[:5], PROMPT[5:]))
        assert good.sent[1]["body"] == PROMPT
        long = await visit(gate, Connection(b"x" * 15, b"x" * 15, b"x" * 15))
        assert long.status == 413 and "20 bytes" in long.said
        said = await visit(gate, Connection(content_length="21"))
        assert said.status == 413 and "21 bytes" in said.said, "refused before it is read"

    run(work)


def test_a_request_that_comes_too_slowly_holds_no_place():
    async def work():
        gate = Gate(waits, Limits(requests=1, body_seconds=0.3))
        async with visiting(gate, slow := Connection(b"{", ends=False)):
            assert gate.inside == 0
            async with visiting(gate, Connection(PROMPT, ends=True)):
                assert gate.inside == 1
                gate.stop_all("ending")
        gate = Gate(waits, Limits(body_seconds=0.05))
        slow = await visit(gate, Connection(b"{", ends=False))
        assert slow.status == 408 and not gate.callers

    run(work)


def test_requests_that_arrive_all_at_once_are_bounded(monkeypatch):
    monkeypatch.setattr("qllm_hf.serving.gate.MOST_ARRIVING", 25)

    async def work():
        gate = Gate(echo, Limits(body_bytes=20))
        async with visiting(gate, slow := Connection(b"x" * 18, ends=False)):
            assert (await visit(gate, Connection(PROMPT, ends=False))).status == 429
            slow.left.set()
        assert (await visit(gate, Connection(PROMPT))).status == 200

    run(work)


def test_places_of_all_and_of_each():
    async def work():
        gate = Gate(waits, Limits(requests=3, per_client=2))
        first, second, third = (Connection(PROMPT) for _ in range(3))
        async with visiting(gate, first), visiting(gate, second):
            same = await visit(gate, Connection(PROMPT))
            assert same.status == 429 and "of your address" in same.said
            assert (b"retry-after", b"2") in same.sent[0]["headers"]
            third = Connection(PROMPT, client="5.6.7.8")
            async with visiting(gate, third):
                other = await visit(gate, Connection(PROMPT, client="9.9.9.9"))
                assert other.status == 429 and other.said.startswith("3 requests")
                gate.stop_all("ending")
        assert [first.status, second.status, third.status] == [503, 503, 503]
        assert gate.inside == 0 and not gate.callers and not gate._clients

    run(work)


def test_the_work_learns_that_the_client_left():
    async def work():
        gate = Gate(waits, Limits())
        async with visiting(gate, client := Connection(PROMPT)):
            assert gate.inside == 1
            client.left.set()
        assert gate.inside == 0

    run(work)


def test_work_that_does_not_listen_is_ended(monkeypatch):
    monkeypatch.setattr("qllm_hf.serving.gate.UNWINDING", 0.05)

    async def deaf(scope, receive, send):
        await asyncio.sleep(3600)

    async def work():
        gate = Gate(deaf, Limits(seconds=0.05))
        late = await visit(gate, Connection(PROMPT))
        assert late.status == 504 and "fewer tokens" in late.said
        assert gate.inside == 0

    run(work)


def test_a_client_that_does_not_read_counts_as_gone():
    async def work():
        reasons = []

        async def writes(scope, receive, send):
            try:
                await echo(scope, receive, send)
            finally:
                reasons.append(current().reason)

        gate = Gate(writes, Limits(stalled_seconds=0.05))
        stalled = Connection(PROMPT)
        stalled.reads.clear()
        await visit(gate, stalled)
        assert reasons == ["left"] and gate.inside == 0

    run(work)


def test_an_app_that_fails_gives_its_place_back(caplog):
    async def breaks(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("broken")

    async def work():
        gate = Gate(breaks, Limits(requests=1))
        for _ in range(2):
            assert (await visit(gate, Connection(PROMPT))).status == 200
        assert gate.inside == 0

    run(work)
    assert "an answer broke off" in caplog.text and "RuntimeError: broken" in caplog.text


def test_ids_that_would_be_repeated_with_every_token():
    async def work():
        gate = Gate(echo, Limits())
        for name, kept in (("abc-1", True), ("x" * 10_000, False), ("a b", False)):
            found = await visit(gate, Connection(PROMPT, x_request_id=name))
            assert (b"x-request-id" in dict(found.sent[0]["headers"])) is kept

    run(work)


def test_errors_in_a_stream_have_the_form_of_others():
    async def stream(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b'data: {"id": 1}\n\ndata: {"error": "it broke"}\n\n'})

    async def work():
        found = await visit(Gate(stream, Limits()), Connection(PROMPT))
        first, second, rest = found.sent[1]["body"].split(b"\n\n")
        assert first == b'data: {"id": 1}' and rest == b""
        assert json.loads(second.removeprefix(b"data: "))["error"]["message"] == "it broke"

    run(work)


def test_what_is_not_posted_is_let_through():
    async def work():
        gate = Gate(echo, Limits(requests=0))
        got = Connection(b"")
        got.scope["method"] = "GET"
        assert (await visit(gate, got)).status == 200
        assert (await visit(gate, Connection(PROMPT))).status == 429

    run(work)
