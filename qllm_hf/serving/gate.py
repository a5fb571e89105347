"""ASGI middleware that lets requests in: what is beyond the limits is refused before anything is done for it.

Inside, it watches: whether the client is still there, still reads, and how long it all takes. Whoever works on the
request learns through its `Caller` that there is nobody left to work for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from typing import Any, Final

from .caller import Caller, Reason, StoppedError, calling
from .faults import WAIT_SECONDS, RefusedError, Send, in_form, send_error
from .limits import Limits
from .requests import Allowed, check_request

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

LOG = logging.getLogger(__name__)
UNWINDING: Final = 2.0
"""Seconds that a handler has to end by itself after its caller was stopped."""
MOST_ARRIVING: Final = 64_000_000
"""Bytes of requests that are not there whole yet, all together."""
_REQUEST_ID: Final = re.compile(rb"[\w.:-]{1,128}")


class Gate:
    """Refuses what is beyond `limits` or not `allowed`, and hands the rest to `app`.

    Attributes:
        callers: whose requests are read, answered or wait now.
        inside: how many of them are answered or wait; those whose requests still arrive hold no place.
    """

    def __init__(
        self, app: Callable[[Scope, Receive, Send], Awaitable[None]], limits: Limits, allowed: Allowed | None = None
    ) -> None:
        self.app, self.limits, self.allowed = app, limits, allowed or Allowed()
        self.callers: set[Caller] = set()
        self.inside = 0
        self._clients: Counter[str] = Counter()
        self._arriving = 0

    def stop_all(self, reason: Reason) -> None:
        """End every answer that is under way."""
        for caller in list(self.callers):
            caller.stop(reason)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        client, caller = (scope.get("client") or [""])[0], Caller()
        self.callers.add(caller)
        try:
            self._check_room(client)
            headers = dict(scope["headers"])
            body = await self._read(receive, headers, caller)
            if body is not None:
                with self._inside(client):
                    check_request(scope["path"], headers.get(b"content-type", b""), body, self.allowed)
                    await self._answer(scope, _Body(receive, body), send, caller)
        except (RefusedError, StoppedError) as refused:  # before anything of an answer was sent
            await send_error(send, refused.status, str(refused))
        finally:
            self.callers.discard(caller)

    def _check_room(self, client: str) -> None:
        limits = self.limits
        if self.inside >= limits.requests:
            raise RefusedError(
                429, f"{self.inside} requests are being answered or wait already. Come back in {WAIT_SECONDS} s."
            )
        if limits.per_client is not None and self._clients[client] >= limits.per_client:
            raise RefusedError(
                429, f"{limits.per_client} requests of your address are being answered or wait already. Let one end."
            )

    @contextlib.contextmanager
    def _inside(self, client: str) -> Iterator[None]:
        self._check_room(client)  # once more, since reading took a while
        self.inside += 1
        self._clients[client] += 1
        try:
            yield
        finally:
            self.inside -= 1
            self._clients[client] -= 1
            if not self._clients[client]:
                del self._clients[client]

    async def _read(self, receive: Receive, headers: Mapping[bytes, bytes], caller: Caller) -> bytes | None:
        """The body; None for a client that left."""
        most, length = self.limits.body_bytes, headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > most:
            raise RefusedError(413, f"the request has {int(length)} bytes, and this server reads {most} at most.")
        body = bytearray()

        async def read() -> bytes | None:
            while (message := await receive())["type"] != "http.disconnect":
                part = message.get("body", b"")
                body.extend(part)
                self._arriving += len(part)
                if len(body) > most:
                    raise RefusedError(413, f"this server reads {most} bytes of a request at most.")
                if self._arriving > max(MOST_ARRIVING, most):
                    raise RefusedError(429, f"too many large requests arrive. Come back in {WAIT_SECONDS} s.")
                if not message.get("more_body", False):
                    return bytes(body)
            return None

        try:
            return await asyncio.wait_for(caller.wait(read()), self.limits.body_seconds)
        except asyncio.TimeoutError:
            raise RefusedError(408, f"the request was not there within {self.limits.body_seconds:g} s.") from None
        finally:
            self._arriving -= len(body)

    async def _answer(self, scope: Scope, body: _Body, send: Send, caller: Caller) -> None:
        calling(caller)
        late = asyncio.get_running_loop().call_later(self.limits.seconds, caller.stop, "late")
        answer = _Answer(send, self.limits.stalled_seconds, caller)
        work = asyncio.ensure_future(self.app(_named(scope), body.receive, answer.send))
        beside = [asyncio.ensure_future(each) for each in (caller.until_stopped(), body.watch(caller))]
        try:
            await asyncio.wait({work, beside[0]}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await asyncio.wait({work}, timeout=UNWINDING)
        finally:
            late.cancel()
            for task in (work, *beside):
                task.cancel()
        try:
            await work
        except asyncio.CancelledError:
            if caller.reason is None:
                raise
        except Exception as error:
            if answer.began:  # else it has been told, and is raised once more for servers that log it
                LOG.error("an answer broke off", exc_info=error)
        if not answer.began:
            caller.check()


class _Body:
    """What the app receives: the whole body, and later that the client left. Other ends it learns from the engine."""

    def __init__(self, receive: Receive, body: bytes) -> None:
        self._receive, self._parts = receive, [body]
        self._left = asyncio.Event()

    async def receive(self) -> MutableMapping[str, Any]:
        if self._parts:
            return {"type": "http.request", "body": self._parts.pop(), "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def watch(self, caller: Caller) -> None:
        """Stop the caller when its connection ends."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        caller.stop("left")
        self._left.set()


class _Answer:
    """What is sent: with errors in their form, and only for as long as the client reads."""

    def __init__(self, send: Send, stalled_seconds: float, caller: Caller) -> None:
        self._send, self._seconds, self._caller = send, stalled_seconds, caller
        self.began = False

    async def send(self, message: MutableMapping[str, Any]) -> None:
        self.began = True
        if message["type"] == "http.response.body":
            message["body"] = in_form(message.get("body", b""))
        try:
            await asyncio.wait_for(self._send(message), self._seconds)
        except asyncio.TimeoutError:
            self._caller.stop("left")
            raise OSError(f"the client read nothing for {self._seconds:g} s") from None


def _named(scope: Scope) -> Scope:
    """The request without an id of its own that is long or strange: transformers repeats it with every token."""
    kept = [
        (name, value) for name, value in scope["headers"] if name != b"x-request-id" or _REQUEST_ID.fullmatch(value)
    ]
    return {**scope, "headers": kept}
