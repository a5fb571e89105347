"""A judge behind an address: any server that answers /v1/chat/completions as OpenAI's does.

Such as OpenAI itself, `transformers serve`, vLLM, llama.cpp or Ollama. Nothing but the standard library is needed.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import logging
import os
import random
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, Final

from ...errors import ConfigError, JudgeError
from ...shown import printable
from .judge import MAX_TOKENS, TEMPERATURE, Messages

LONGEST_WAIT: Final = 600.0
"""Seconds: a server that wants more time than this between two attempts is left for later."""

_ENDPOINT: Final = "/chat/completions"
_FIRST_WAIT: Final = 1.0
_LONGEST_BACKOFF: Final = 60.0
_LARGEST_ANSWER: Final = 16 * 2**20
_TRY_AGAIN: Final = {408, 429}  # too slow, too often: the only faults of a request that time mends
_ADVICE: Final = {
    400: "The server does not take this request, or knows the model by another name.",
    401: "Put a valid key into the environment variable {key_variable}.",
    403: "The key in the environment variable {key_variable} may not use this model.",
    404: "Check the address, and that the server has a model of this name.",
    413: "The prompt is too long for this server.",
}

_LOGGER = logging.getLogger(__name__)


class HttpJudge:
    """A judge behind `url`, asked for its most likely judgement (temperature 0).

    Args:
        url: of the server, with or without /v1, or the whole address up to /chat/completions.
        model: the name by which the server knows the model; also the name of the judge.
        key_variable: the environment variable with the API key. It is read for each request and sent to this server
            only: never kept, logged, shown in an error, or taken along a redirect. Servers that need none get none.
        timeout: seconds without an answer after which an attempt has failed.
        retries: further attempts after a first one that failed in a way that may pass: no connection, no answer in
            time, too many requests (429), a fault of the server (5xx), or an answer that cannot be read. The waits
            between them double and are partly random, so that many clients do not come back together; a server that
            names a time (Retry-After) gets it.
        max_tokens: of one judgement.
        sleep: how to wait.

    Raises:
        JudgeError: the address cannot be one.
        ConfigError: a number is too small.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_variable: str = "OPENAI_API_KEY",
        timeout: float = 120.0,
        retries: int = 5,
        max_tokens: int = MAX_TOKENS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if timeout <= 0 or retries < 0 or max_tokens < 1:
            raise ConfigError(
                f"timeout={timeout}, retries={retries}, max_tokens={max_tokens}: give a timeout above 0, 0 retries or "
                "more, and at least 1 token."
            )
        self.url = _endpoint(url)
        self.name = model
        self.key_variable = key_variable
        self.timeout = timeout
        self.retries = retries
        self.max_tokens = max_tokens
        self._sleep = sleep
        self._opener = urllib.request.build_opener(_NoRedirects)

    def __repr__(self) -> str:
        return f"HttpJudge({self.url!r}, {self.name!r})"

    def ask(self, messages: Messages) -> str:
        """The judgement that the server sends.

        Raises:
            JudgeError: the server refuses the request, or every attempt failed.
        """
        body = {
            "model": self.name,
            "messages": messages,
            "temperature": TEMPERATURE,
            "max_tokens": self.max_tokens,
            "stream": False,
        }
        data = json.dumps(body).encode("ascii")
        for attempt in range(self.retries + 1):
            try:
                return self._attempt(data)
            except _MayPass as failure:
                if attempt == self.retries:
                    attempts = "1 attempt" if attempt == 0 else f"{attempt + 1} attempts"
                    raise JudgeError(
                        f"the judge {self.name!r} at {self.url} did not answer in {attempts}; the last one: {failure}. "
                        "Check that the server runs, has this model and is not overloaded."
                    ) from failure.__cause__
                wait = self._wait(attempt, failure.retry_after)
                _LOGGER.warning("judge %r at %s: %s. Next attempt in %.0f s.", self.name, self.url, failure, wait)
                self._sleep(wait)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _wait(self, attempt: int, retry_after: float | None) -> float:
        """Seconds until the next attempt."""
        if retry_after is None:
            return min(_LONGEST_BACKOFF, _FIRST_WAIT * 2.0 ** min(attempt, 10)) * random.uniform(0.5, 1.0)
        if retry_after > LONGEST_WAIT:
            raise JudgeError(
                f"the judge {self.name!r} at {self.url} is busy and asks to be left alone for {retry_after:.0f} s, "
                f"more than the {LONGEST_WAIT:.0f} s that are waited. Start again later."
            )
        return retry_after

    def _attempt(self, data: bytes) -> str:
        key = self._key()
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "qllm-hf"}
        request = urllib.request.Request(self.url, data, headers, method="POST")
        if key:
            # "Unredirected" headers stay behind when urllib goes elsewhere; it never does here, and this keeps it so.
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                answer = _read(response, self.timeout)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error, key) from None
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise JudgeError(
                    f"the certificate of {self.url} is not valid: {reason.verify_message}. Check the address."
                ) from error
            if isinstance(reason, TimeoutError):
                raise _MayPass(f"no answer within {self.timeout:g} s") from error
            raise _MayPass(_in_words(reason)) from error
        return _judgement(answer)

    def _key(self) -> str:
        """The API key, or an empty string."""
        key = os.environ.get(self.key_variable, "").strip()
        if not (key.isascii() and key.isprintable()):
            # http.client would say so too, but with the key in its message
            raise JudgeError(f"the environment variable {self.key_variable} holds characters that no API key has.")
        return key

    def _refusal(self, error: urllib.error.HTTPError, key: str) -> JudgeError | _MayPass:
        """What an answer with an error status means: something to raise."""
        said = _said(error, key)
        if error.code in _TRY_AGAIN or error.code >= 500:
            return _MayPass(f"status {error.code}{said}", _retry_after(error.headers.get("Retry-After")))
        where = f"the judge {self.name!r} at {self.url}"
        if error.code < 400:
            to = error.headers.get("Location", "elsewhere")
            return JudgeError(
                f"{where} redirects to {to!r} (status {error.code}). Redirects are not followed, since the API key "
                "would go along: give the final address."
            )
        advice = _ADVICE.get(error.code, "Check the address, the model name and the key.")
        return JudgeError(
            f"{where} refuses the request with status {error.code}{said}. "
            + advice.format(key_variable=self.key_variable)
        )


class _MayPass(Exception):
    """An attempt failed in a way that the next one may not."""

    def __init__(self, what: str, retry_after: float | None = None) -> None:
        super().__init__(what)
        self.retry_after = retry_after


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Leaves a redirect as the answer it is: following it would turn POST into GET, and may lead to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _endpoint(url: str) -> str:
    """The address that requests go to."""
    try:
        parts = urllib.parse.urlsplit(url.strip())
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise JudgeError(f"{url!r} is no address of a judge: {error}. Give http://host:port or https://host.") from None
    if parts.username is not None or parts.password is not None:
        # not shown: it holds a password
        raise JudgeError(
            "the address of a judge cannot hold a user name or password. Put the key into an environment variable."
        )
    # Spaces and the like would only fail later, in the middle of a request.
    plain = url.isascii() and url.strip().isprintable() and " " not in url.strip()
    if not plain or parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise JudgeError(
            f"{url!r} is no address of a judge. Give http://host:port or https://host, with or without /v1."
        )
    path = parts.path.rstrip("/")
    if not path.endswith(_ENDPOINT):
        path += _ENDPOINT if path.endswith("/v1") else "/v1" + _ENDPOINT
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def _read(response: http.client.HTTPResponse, seconds: float) -> bytes:
    """The body of an answer. A server that sends a byte now and then is waited for no longer than a silent one."""
    until, pieces, left = time.monotonic() + seconds, [], _LARGEST_ANSWER
    while left and (piece := response.read1(min(left, 2**16))):
        pieces.append(piece)
        left -= len(piece)
        if time.monotonic() > until:
            raise TimeoutError
    return b"".join(pieces)


def _judgement(answer: bytes) -> str:
    """The text in an answer; empty where the model wrote nothing, or only thought."""
    try:
        message = json.loads(answer)["choices"][0]["message"]
        content = message.get("content")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        start = answer[:200].decode("utf-8", errors="replace")
        raise _MayPass(f"an answer without choices[0].message: {start!r}") from error
    if content is None:
        return ""
    if not isinstance(content, str):
        raise _MayPass(f"an answer whose content is no text: {str(content)[:200]!r}")
    return content


def _said(error: urllib.error.HTTPError, key: str) -> str:
    """` (what the server said)`, on one line and without the key, or an empty string."""
    try:
        text = error.read(4096).decode("utf-8", errors="replace")
    except (OSError, http.client.HTTPException):
        return ""
    try:
        found = json.loads(text)
        inner = found.get("error", found.get("detail", text))
        text = str(inner.get("message", inner) if isinstance(inner, dict) else inner)
    except (ValueError, AttributeError, RecursionError):
        pass
    if key:
        text = text.replace(key, "***")
    text = printable(" ".join(text.split())[:300])
    return f" ({text})" if text else ""


def _retry_after(value: str | None) -> float | None:
    """The seconds that a Retry-After header asks for: it holds their number, or a date."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        until = email.utils.parsedate_to_datetime(value)
    except (ValueError, OverflowError, TypeError):
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=timezone.utc)
    return max(0.0, (until - datetime.now(timezone.utc)).total_seconds())


def _in_words(reason: object) -> str:
    """`Connection refused` rather than `[Errno 111] Connection refused`."""
    text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return str(text)
