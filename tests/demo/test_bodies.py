"""How much a visitor can send."""

import asyncio
import json

import pytest

from qllm_hf.demo import app
from qllm_hf.demo.bodies import Bodies


async def reads(scope, receive, send):
    """An app that reads everything, as gradio's does, and answers."""
    try:
        while (await receive()).get("more_body"):
            pass
    except Exception as error:  # frameworks turn what fails while they read into an answer of their own
        await send({"type": "http.response.start", "status": 400, "headers": []})
        raise error
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"good"})


def visit(parts: list[bytes], app=reads, **headers: str) -> list:
    sent, waiting = [], list(parts)

    async def receive():
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message):
        sent.append(message)

    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(Bodies(app, most=10)({"type": "http", "headers": pairs}, receive, send))
    return sent


@pytest.mark.parametrize(
    ("parts", "headers", "status"),
    [
        ([b"x" * 10], {"content_length": "10"}, 200),
        ([b"x" * 5, b"x" * 5], {}, 200),
        ([], {"content_length": "11"}, 413),
        ([b"x" * 5, b"x" * 6], {}, 413),
        ([b"x" * 5, b"x" * 6], {"content_length": "a lie"}, 413),
    ],
)
def test_requests_are_bounded(parts, headers, status):
    sent = visit(parts, **headers)
    assert [message.get("status") for message in sent] == [status, None], "one answer, and not two"
    if status == 413:
        assert "10 bytes" in json.loads(sent[1]["body"])["error"]


def test_what_else_fails_is_the_apps_own():
    async def fails(scope, receive, send):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        visit([b""], fails)


def test_programs_are_told_apart_by_their_session():
    context = pytest.importorskip("gradio.context")

    class Request:
        session_hash = "mine"

    assert app._visitor() != app._visitor(), "nobody is asking: a name that nothing else has"
    token = context.LocalContext.request.set(Request())
    try:
        assert app._visitor() == "mine"
    finally:
        context.LocalContext.request.reset(token)
