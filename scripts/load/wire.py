"""HTTP by hand: clients that leave in the middle, send a byte per second, or say two things at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

LEAVING = "leaves-"
"""How the ids of requests begin whose clients will close their connections: when those are freed is noted."""


class Reply(NamedTuple):
    """What came back whole."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, port: int) -> AsyncIterator[Wire]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield cls(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def send(self, raw: bytes) -> None:
        self.writer.write(raw)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
        return int(lines[0].split()[1]), headers

    async def parts(self, headers: dict[str, str]) -> AsyncIterator[bytes]:
        """The body, as it comes."""
        if "content-length" in headers:
            yield await self.reader.readexactly(int(headers["content-length"]))
            return
        if "transfer-encoding" not in headers:
            yield await self.reader.read(-1)
            return
        while size := int(await self.reader.readline(), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readexactly(2)

    async def reply(self) -> Reply:
        status, headers = await self.head()
        return Reply(status, headers, b"".join([part async for part in self.parts(headers)]))


def request(path: str, body: Any = None, *, method: str = "", **headers: str) -> bytes:
    """The bytes of a request; headers are given with _ for -, and those that are empty are left out."""
    raw = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    method = method or ("GET" if body is None else "POST")
    usual = {"host": "localhost", "content_type": "application/json", "content_length": str(len(raw))}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in (usual | headers).items() if value]
    head = "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""])
    return head.encode("latin-1") + raw


def chunked(path: str, body: bytes, size: int = 16_384) -> bytes:
    """The same request without saying how long it is."""
    head = request(path, b"", method="POST", content_length="", transfer_encoding="chunked")
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


async def ask(port: int, path: str, body: Any = None, **headers: str) -> Reply:
    """One request on a connection of its own."""
    async with Wire.to(port) as wire:
        await wire.send(request(path, body, **headers))
        return await wire.reply()


def events(body: bytes) -> list[Any]:
    """The JSON of every event of a stream."""
    return [json.loads(line[6:]) for line in body.decode().splitlines() if line.startswith("data: {")]


def text_of(path: str, reply: Reply) -> str:
    """The answer in a reply, streamed or not. Raises KeyError for an error in a stream."""
    if "event-stream" not in reply.headers.get("content-type", ""):
        found = reply.json()
        if path == "/v1/responses":
            return "".join(part["text"] for item in found["output"] for part in item["content"])
        choice = found["choices"][0]
        return choice["text"] if path == "/v1/completions" else choice["message"]["content"]
    parts = events(reply.body)
    if path == "/v1/responses":
        assert parts[-1]["type"] == "response.completed", parts[-1]
        return "".join(event["delta"] for event in parts if event["type"] == "response.output_text.delta")
    assert parts[-1]["choices"][0]["finish_reason"], parts[-1]
    choices = [event["choices"][0] for event in parts]
    if path == "/v1/completions":
        return "".join(choice["text"] for choice in choices)
    return "".join(choice["delta"].get("content") or "" for choice in choices)
