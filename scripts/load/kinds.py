"""Kinds of clients: what each does once, and what has to come of it.

A client returns a word for the table, `right` among them, and raises `Wrong` for what must not be.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from .answers import Answers, Wanted
from .nonsense import NONSENSE
from .wire import LEAVING, Reply, Wire, ask, chunked, request, text_of

PATIENCE = 300.0
"""Seconds within which everything has to be answered; with 50 clients on two cores a place may take a while."""


class WrongError(Exception):
    """What must not be: another's answer, an error without its form, no answer at all."""


@dataclass
class Client:
    """One client, and what all of them share.

    Attributes:
        left: {id: when the client closed its connection}.
    """

    port: int
    answers: Answers
    random: random.Random
    left: dict[str, float] = field(default_factory=dict)

    def check(self, wanted: Wanted, reply: Reply) -> str:
        """`right`, or the word for a refusal that may be."""
        if reply.status != 200:
            return self.refused(reply, 429, 503)
        try:
            text = text_of(wanted.path, reply)
        except (KeyError, AssertionError, IndexError) as error:
            raise WrongError(f"no whole answer: {error} in {reply.body[-300:]!r}") from None
        if text != wanted.answer:
            raise WrongError(f"{wanted.path} {wanted.body}: {text!r}, and alone {wanted.answer!r}")
        return "right"

    def refused(self, reply: Reply, *allowed: int) -> str:
        """The status, if it may be and has the form of OpenAI's errors."""
        if reply.status not in allowed:
            raise WrongError(f"status {reply.status} where {allowed} may be: {reply.body[:300]!r}")
        with contextlib.suppress(ValueError, KeyError, TypeError):
            error = reply.json()["error"]
            in_form = isinstance(error["message"], str) and error["type"] and error["code"] == reply.status
            if in_form and (reply.status != 429 or int(reply.headers["retry-after"]) > 0):
                return str(reply.status)
        raise WrongError(f"an error without its form: {reply.status} {reply.headers} {reply.body[:300]!r}")


async def plain(client: Client) -> str:
    """Asks, and waits for the whole answer. Its id is that of others too."""
    wanted = client.answers.one(client.random)
    return client.check(wanted, await ask(client.port, wanted.path, wanted.body, x_request_id="everybody"))


async def stream(client: Client) -> str:
    """Reads an answer as it is written."""
    wanted = client.answers.one(client.random)
    return client.check(wanted, await ask(client.port, wanted.path, wanted.body | {"stream": True}))


async def in_chunks(client: Client) -> str:
    """Does not say how long its request is."""
    wanted = client.answers.one(client.random)
    async with Wire.to(client.port) as wire:
        await wire.send(chunked(wanted.path, json.dumps(wanted.body).encode(), size=7))
        return client.check(wanted, await wire.reply())


async def two_at_once(client: Client) -> str:
    """Sends two requests before the first is answered (pipelining): the answers come in that order."""
    first, second = (client.answers.one(client.random) for _ in range(2))
    async with Wire.to(client.port) as wire:
        await wire.send(request(first.path, first.body) + request(second.path, second.body))
        words = [client.check(wanted, await wire.reply()) for wanted in (first, second)]
    return words[0] if words[0] == words[1] else "429"


async def leaves(client: Client) -> str:
    """Closes its connection while the whole answer is still being written."""
    return await _leave(client, {}, client.random.uniform(0.05, 3))


async def leaves_a_stream(client: Client) -> str:
    """Closes its connection in the middle of a stream."""
    return await _leave(client, {"stream": True}, client.random.uniform(0.05, 3))


async def _leave(client: Client, more: dict[str, bool], seconds: float) -> str:
    name = LEAVING + uuid.uuid4().hex
    async with Wire.to(client.port) as wire:
        await wire.send(request("/v1/completions", client.answers.long() | more, x_request_id=name))
        with contextlib.suppress(asyncio.TimeoutError):
            status, headers = await asyncio.wait_for(wire.head(), seconds)
            if status != 200:
                return client.refused(Reply(status, headers, await wire.reader.read(1 << 20)), 429)
            await asyncio.sleep(seconds)
        wire.writer.transport.abort()
        client.left[name] = time.monotonic()
    return "left"


async def reads_slowly(client: Client) -> str:
    """Takes its stream a few bytes at a time."""
    wanted = client.answers.one(client.random, "/v1/chat/completions")
    async with Wire.to(client.port) as wire:
        await wire.send(request(wanted.path, wanted.body | {"stream": True}))
        status, headers = await wire.head()
        body = b""
        async for part in wire.parts(headers):
            body += part
            await asyncio.sleep(0.1)
        return client.check(wanted, Reply(status, headers, body))


async def reads_nothing(client: Client) -> str:
    """Asks for a long stream and looks away."""
    name = LEAVING + uuid.uuid4().hex
    async with Wire.to(client.port) as wire:
        body = client.answers.long() | {"stream": True}
        await wire.send(request("/v1/completions", body, x_request_id=name))
        wire.writer.transport.pause_reading()
        await asyncio.sleep(10)
        wire.writer.transport.abort()
        client.left[name] = time.monotonic()
    return "left"


async def nonsense(client: Client) -> str:
    """Asks for what cannot be."""
    name = client.random.choice(list(NONSENSE))
    wanted, raw = NONSENSE[name]
    async with Wire.to(client.port) as wire:
        try:
            await wire.send(raw)
            reply = await wire.reply()
        except (ConnectionError, asyncio.IncompleteReadError):
            return "closed"
    if reply.status == wanted and (reply.status == 400 and b"Invalid HTTP" in reply.body):
        return "400"  # uvicorn's own, for what is no HTTP
    try:
        return client.refused(reply, wanted, 429)
    except WrongError as error:
        raise WrongError(f"{name}: {error}") from None


async def byte_by_byte(client: Client) -> str:
    """Sends a byte per second: of a head, or of a body."""
    whole = request("/v1/completions", client.answers.long())
    head = client.random.random() < 0.5
    sent = whole[: 10 if head else -50]
    async with Wire.to(client.port) as wire:
        await wire.send(sent)
        began = time.monotonic()
        reading = asyncio.ensure_future(wire.reply())
        try:
            for place in range(45):
                await asyncio.wait({reading}, timeout=1)
                if reading.done():
                    break
                with contextlib.suppress(ConnectionError):
                    await wire.send(whole[len(sent) + place :][:1])
            else:
                raise WrongError("sent a byte per second for 45 s, and was let")
            reply = reading.result()
        except (ConnectionError, asyncio.IncompleteReadError):
            return "closed"
        finally:
            reading.cancel()
    if time.monotonic() - began < 5 and reply.status != 429:
        raise WrongError(f"refused after {time.monotonic() - began:.0f} s: {reply}")
    return client.refused(reply, 408, 429)


async def hoards(client: Client) -> str:
    """Opens twenty connections, and says nothing on them until they are closed."""
    async with contextlib.AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(Wire.to(client.port)) for _ in range(20)]
        ends = [asyncio.ensure_future(wire.reader.read(1)) for wire in wires]
        _, open_yet = await asyncio.wait(ends, timeout=45)
        if open_yet:
            raise WrongError(f"{len(open_yet)} of 20 idle connections are open after 45 s")
    return "closed"


async def crowd(client: Client) -> str:
    """Forty requests at a time: more than there is room for."""
    wanted = [client.answers.one(client.random) for _ in range(40)]
    replies = await asyncio.gather(*(ask(client.port, each.path, each.body) for each in wanted))
    words = [client.check(each, reply) for each, reply in zip(wanted, replies, strict=True)]
    return "429" if "429" in words else "right"


KINDS: dict[Callable[[Client], Awaitable[str]], int] = {
    plain: 24,
    stream: 24,
    in_chunks: 4,
    two_at_once: 4,
    leaves: 8,
    leaves_a_stream: 8,
    reads_slowly: 4,
    reads_nothing: 2,
    nonsense: 14,
    byte_by_byte: 2,
    hoards: 1,
    crowd: 1,
}
"""{what a client does: how often, in parts of the sum}"""
