"""Keys that clients give."""

import asyncio
import json

import pytest

from qllm_hf.errors import ConfigError
from qllm_hf.serving.keys import VARIABLE, Keys, read_keys


def test_keys_are_read_from_a_file_and_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert read_keys(None) == ()
    file = tmp_path / "keys"
    file.write_text("# of the team\n\nfirst\n  second \n", encoding="utf-8")
    assert read_keys(file) == ("first", "second")
    monkeypatch.setenv(VARIABLE, "third")
    assert read_keys(None) == ("third",) and read_keys(file) == ("third", "first", "second")


@pytest.mark.parametrize("content", [None, b"", b"# nothing\n", b"\xff\xfe"])
def test_a_file_without_keys_lets_nobody_in(tmp_path, monkeypatch, content):
    """An empty file is a mistake, and not a server that asks for nothing."""
    monkeypatch.delenv(VARIABLE, raising=False)
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match="keys"):
        read_keys(file)


@pytest.mark.parametrize(
    ("path", "given", "status"),
    [
        ("/v1/models", None, 401),
        ("/v1/models", "Bearer wrong", 401),
        ("/v1/models", "Bearer ", 401),
        ("/v1/models", "Basic first", 401),
        ("/v1/models", "Bearer firstsecond", 401),
        ("/v1/models", "Bearer first", 200),
        ("/v1/completions", "bearer second", 200),
        ("/health", None, 200),
        ("/nothing", None, 401),
    ],
)
def test_who_is_let_in(path, given, status):
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})

    async def send(message):
        sent.append(message)

    headers = [] if given is None else [(b"authorization", given.encode())]
    scope = {"type": "http", "path": path, "headers": headers}
    asyncio.run(Keys(app, ("first", "second"))(scope, None, send))
    assert sent[0]["status"] == status
    if status == 401:
        assert (b"www-authenticate", b"Bearer") in sent[0]["headers"]
        assert json.loads(sent[1]["body"])["error"]["type"] == "authentication_error"
        assert b"wrong" not in sent[1]["body"] and b"first" not in sent[1]["body"]
