"""ASGI middleware that bounds what a visitor can send: gradio reads requests of any length into memory."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

MOST_BYTES: Final = 1_000_000
"""Of one request. A message has some thousands of characters, and nothing on the page takes a file."""

Message = MutableMapping[str, Any]


class TooLargeError(Exception):
    """More came than may come; no handler of the page is to answer it."""


class Bodies:
    """Refuses larger requests with 413: at once if they say how long they are, else where they pass the bound."""

    def __init__(self, app: Any, most: int = MOST_BYTES) -> None:
        self.app, self.most = app, most

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"")
        if length.isdigit() and int(length) > self.most:
            await self._refuse(send)
            return
        count, began = 0, False

        async def counted() -> Message:
            nonlocal count
            message = await receive()
            count += len(message.get("body", b""))
            if count > self.most:
                if not began:
                    await self._refuse(send)
                raise TooLargeError
            return message

        async def sent(message: Message) -> None:
            nonlocal began
            began = True
            if count <= self.most:
                await send(message)

        try:
            await self.app(scope, counted, sent)
        except BaseException:
            if count <= self.most:
                raise

    async def _refuse(self, send: Callable[[Message], Awaitable[None]]) -> None:
        body = json.dumps({"error": f"this page reads {self.most} bytes of a request at most."}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": body})
