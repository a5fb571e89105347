"""Everything that goes wrong, told in the form of OpenAI's API: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from .caller import StoppedError, current

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

LOG = logging.getLogger(__name__)
BROKEN: Final = "the server broke while it worked on this request, and its log says why. Others are not affected."
WAIT_SECONDS: Final = 2
"""What a client that is sent away is told to wait; OpenAI's clients do so and come back by themselves."""
TYPES: Final = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_IN_A_STREAM: Final = re.compile(rb'data: \{"error": "([^"\\]*)"\}\n\n')
_ABOUT_THE_REQUEST: Final = (ValueError, TypeError, LookupError, AttributeError, OverflowError)
"""What transformers raises where a request has another form than it takes for granted."""


class RefusedError(Exception):
    """A request that is answered with an error; `status` is that of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


def error_body(status: int, message: str) -> bytes:
    """The JSON of an error."""
    usual = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": message, "type": TYPES.get(status, usual), "param": None, "code": status}
    return json.dumps({"error": error}).encode()


def error_headers(status: int) -> dict[str, str]:
    """What goes with an error of that status."""
    headers = {"content-type": "application/json"}
    if status in (429, 503):
        headers["retry-after"] = str(WAIT_SECONDS)
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return headers


async def send_error(send: Send, status: int, message: str) -> None:
    """Answer a request, of which nothing has been answered yet, with an error."""
    body = error_body(status, message)
    headers = error_headers(status) | {"content-length": str(len(body))}
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def in_form(chunk: bytes) -> bytes:
    """A chunk of a stream in which an error has the form that clients look for; transformers sends a bare text."""
    return _IN_A_STREAM.sub(lambda found: b"data: " + error_body(500, found[1].decode()) + b"\n\n", chunk)


def told(error: Exception) -> tuple[int, str]:
    """Status and sentence for an exception; what nobody expected is logged, and not shown."""
    from jinja2 import TemplateError
    from starlette.exceptions import HTTPException
    from transformers.cli.serving.utils import CBWorkerDeadError

    if isinstance(error, HTTPException):
        return error.status_code, str(error.detail)
    if isinstance(error, StoppedError | RefusedError):
        return error.status, str(error)
    if isinstance(error, (*_ABOUT_THE_REQUEST, TemplateError)) and not current().began:
        return 400, f"the request cannot be read: {type(error).__name__}: {str(error)[:300]}"
    LOG.error("a request broke", exc_info=error)
    if isinstance(error, CBWorkerDeadError):
        return 503, "the engine broke under this request or one beside it, and begins anew. Ask again."
    return 500, BROKEN


def tell_faults(app: Any) -> None:
    """Let a FastAPI app answer everything that goes wrong in OpenAI's form."""
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import Response
    from jinja2 import TemplateError
    from starlette.exceptions import HTTPException
    from transformers.cli.serving.utils import CBWorkerDeadError

    async def answer(_: Any, error: Exception) -> Response:
        status, message = told(error)
        return Response(error_body(status, message), status, error_headers(status))

    async def misread(_: Any, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        message = f"the request cannot be read: {first['msg']} ({'.'.join(map(str, first['loc']))})"
        return Response(error_body(400, message), 400, error_headers(400))

    expected = (HTTPException, CBWorkerDeadError, StoppedError, RefusedError, TemplateError, *_ABOUT_THE_REQUEST)
    for kind in (*expected, Exception):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(RequestValidationError, misread)
