"""Requests that no server should work on, and the status of each."""

from __future__ import annotations

import json
from typing import Any

from .wire import chunked, request

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
TEMPLATE = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def _chat(**fields: Any) -> bytes:
    return request(CHAT, {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4} | fields)


def _text(**fields: Any) -> bytes:
    return request(TEXT, {"prompt": "Once", "max_tokens": 4} | fields)


def _with_config(**settings: Any) -> bytes:
    return _chat(generation_config=json.dumps(settings))


NONSENSE: dict[str, tuple[int, bytes]] = {
    "no JSON": (400, request(TEXT, b"hello")),
    "empty body": (400, request(TEXT, b"", method="POST")),
    "a list": (400, request(TEXT, b"[1]")),
    "invalid UTF-8": (400, request(TEXT, b'{"prompt": "\xff\xfe"}')),
    "half a character": (400, request(TEXT, b'{"prompt": "\\ud800", "max_tokens": 2}')),
    "a key twice": (400, request(TEXT, b'{"prompt": "a", "prompt": "b"}')),
    "NaN": (400, request(TEXT, b'{"prompt": "a", "temperature": NaN}')),
    "deep JSON": (400, request(TEXT, b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")),
    "a million lists": (400, request(TEXT, b'{"prompt": [' + b"[]," * 1_000_000 + b"[]]}")),
    "plain text": (415, request(TEXT, {"prompt": "a"}, content_type="text/plain")),
    "no content type": (415, request(TEXT, {"prompt": "a"}, content_type="")),
    "a form": (415, request(TEXT, b"prompt=a", content_type="application/x-www-form-urlencoded")),
    "5 MB": (413, request(TEXT, {"prompt": "x" * 5_000_000})),
    "5 MB in chunks": (413, chunked(TEXT, b"x" * 5_000_000)),
    "3 MB prompt": (400, request(TEXT, {"prompt": "word " * 600_000})),
    "prompt of 3,000 words": (400, _chat(messages=[{"role": "user", "content": "word " * 3000}])),
    "stream of 3,000 words": (400, _chat(messages=[{"role": "user", "content": "word " * 3000}], stream=True)),
    "20,000 messages": (400, _chat(messages=[{"role": "user", "content": ""}] * 20_000)),
    "no messages": (400, _chat(messages=[])),
    "messages without role": (400, _chat(messages=[{"content": "hi"}])),
    "messages are a text": (400, _chat(messages="hi")),
    "messages missing": (400, request(CHAT, {"max_tokens": 2})),
    "prompt is a number": (400, _text(prompt=3)),
    "another model": (400, _text(model="/etc/passwd")),
    "unknown field": (422, _text(unknown=1)),
    "n=1000": (400, _chat(n=1000)),
    "best_of=50": (400, _text(best_of=50)),
    "max_tokens=0": (400, _text(max_tokens=0)),
    "max_tokens=-1": (400, _text(max_tokens=-1)),
    "max_tokens=1e400": (400, request(TEXT, b'{"prompt": "a", "max_tokens": 1e400}')),
    "max_tokens is a text": (400, _text(max_tokens="many")),
    "temperature=1e-320": (400, _text(temperature=1e-320)),
    "temperature=-1": (400, _text(temperature=-1)),
    "top_p=0": (400, _text(top_p=0)),
    "frequency_penalty=-2": (400, _text(frequency_penalty=-2)),
    "seed=2**80": (400, _text(seed=2**80)),
    "100,000 stops": (400, _chat(stop=[f"s{number}" for number in range(100_000)])),
    "a stop of 1 MB": (400, _chat(stop="x" * 1_000_000)),
    "bias for no token": (400, _chat(logit_bias={"999999999": 1})),
    "template without end": (400, _chat(chat_template_kwargs={"chat_template": TEMPLATE})),
    "padding to 10**9": (400, _chat(chat_template_kwargs={"padding": "max_length", "max_length": 10**9})),
    "1,000 beams": (400, _with_config(num_beams=1000)),
    "1,000 sequences": (400, _with_config(num_return_sequences=1000)),
    "a cache that waits": (400, _with_config(cache_implementation="offloaded")),
    "config is no JSON": (400, _chat(generation_config="{")),
    "config temperature=1e-320": (400, _with_config(temperature=1e-320, do_sample=True)),
    "unknown route": (404, request("/v1/embeddings", {"input": "a"})),
    "a file of the host": (404, request("/../../etc/passwd")),
    "unload the model": (404, request("/reset", {})),
    "another method": (405, request(TEXT, {}, method="PUT")),
    "no HTTP": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    "a head of 1 MB": (400, request(TEXT, {}, x_long="y" * 1_000_000)),
    "two lengths": (400, request(TEXT, {}, content_length="2\r\nContent-Length: 3")),
    "length and chunks": (400, request(TEXT, {}, transfer_encoding="chunked, nothing")),
}
"""{what: (status, the bytes of the request)}"""
