"""Keys that clients have to give, as OpenAI's do: `Authorization: Bearer KEY`."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from ..errors import ConfigError
from .faults import Send, send_error

VARIABLE: Final = "QLLM_API_KEY"
OPEN: Final = ("/health",)


def read_keys(file: Path | None) -> tuple[str, ...]:
    """The keys in a file, one on a line, and that in the environment variable QLLM_API_KEY. Lines with # say nothing.

    Raises:
        ConfigError: the file cannot be read, or holds none.
    """
    keys = [os.environ[VARIABLE].strip()] if os.environ.get(VARIABLE, "").strip() else []
    if file is not None:
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the keys in {file} cannot be read: {error}") from None
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise ConfigError(f"{file} holds no key. Write one on a line of its own.")
        keys += found
    return tuple(keys)


class Keys:
    """ASGI middleware: who gives none of the keys is told so with 401, and nothing else is looked at."""

    def __init__(self, app: Any, keys: Iterable[str]) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN and not self._knows(dict(scope["headers"])):
            await send_error(send, 401, "a key is needed that this server knows: Authorization: Bearer KEY.")
        else:
            await self._app(scope, receive, send)

    def _knows(self, headers: dict[bytes, bytes]) -> bool:
        word, _, given = headers.get(b"authorization", b"").partition(b" ")
        digest = _digest(given.strip())
        # all of them, whichever fits, so that the time says nothing
        fits = [hmac.compare_digest(digest, known) for known in self._digests]
        return word.lower() == b"bearer" and any(fits)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
