"""How many requests a server takes on at a time, and how large."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

WAIT_SECONDS: Final = 2
"""What a client that is sent away is told to wait; OpenAI's clients do so and come back by themselves."""


@dataclass(frozen=True)
class Limits:
    """What a server takes on.

    Attributes:
        requests: answered and waiting at the same time; further ones are sent away with 429.
        body_bytes: of one request; larger ones are refused with 413 before they are read.
    """

    requests: int = 64
    body_bytes: int = 4_000_000


class Gate:
    """ASGI middleware: what is beyond the limits is refused before anything is done for it."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], limits: Limits) -> None:
        self.app, self.limits = app, limits
        self.inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(dict(scope["headers"]))
        if refusal is not None:
            await _refuse(send, *refusal)
            return
        self.inside += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.inside -= 1

    def _refusal(self, headers: Mapping[bytes, bytes]) -> tuple[int, str] | None:
        """Status and sentence, or None for a request that can go on."""
        length = headers.get(b"content-length", b"")
        if not length.isdigit():
            return 411, "say how long the request is: Content-Length."
        if int(length) > self.limits.body_bytes:
            return 413, f"the request has {int(length)} bytes, and this server reads {self.limits.body_bytes} at most."
        if self.inside >= self.limits.requests:
            return 429, f"{self.inside} requests are being answered or wait already. Come back in {WAIT_SECONDS} s."
        return None


async def _refuse(send: Send, status: int, message: str) -> None:
    body = json.dumps({"error": {"message": message, "type": "limit", "code": status}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 429:
        headers.append((b"retry-after", str(WAIT_SECONDS).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
