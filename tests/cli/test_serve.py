"""qllm-hf serve and qllm-hf chat, as a user starts and ends them."""

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request

import pytest
from transformers.utils import is_rich_available
from transformers.utils.import_utils import is_serve_available
from typer.testing import CliRunner

from qllm_hf.cli.main import app

pytestmark = pytest.mark.skipif(
    not (is_serve_available() and is_rich_available()), reason="needs `pip install 'qllm-hf[serve]'`"
)


@pytest.mark.slow
def test_serve_answers_until_it_is_interrupted():
    command = [sys.executable, "-m", "qllm_hf", "serve", "reference", "--scheme", "W4KV8", "--port", "0", "--quiet"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stderr.readline()
        found = re.fullmatch(r"model 'reference' at (http://127\.0\.0\.1:\d+)/v1 \(Ctrl-C ends it\)\n", line)
        assert found, line + process.stderr.read()
        for _ in range(100):
            try:
                with urllib.request.urlopen(f"{found[1]}/v1/models", timeout=5) as answer:
                    assert json.loads(answer.read())["data"][0]["scheme"] == "W4KV8"
                break
            except OSError:
                time.sleep(0.1)
        else:
            pytest.fail("it never answered")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()


def test_chat_is_a_conversation(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    said = CliRunner().invoke(app, ["chat", "reference", "--scheme", "W4KV8"], input="Say hello to Max.\n!exit\n")
    assert said.exit_code == 0, said.output
    assert "<reference>" in said.output and re.search(r"\d+ tokens in", said.output)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "no/such/model"], "there is no folder"),
        (["serve", "reference", "--cache-tokens", "4096"], "--continuous-batching"),
        (["serve", "reference", "--api-key-file", "no/such/file", "--port", "0"], "the keys in no/such/file"),
        (["serve", "reference", "--name", "a b", "--port", "0"], "'a b' cannot be the name"),
        (["serve", "reference", "--scheme", "W99", "--port", "0"], "W99"),
        (["chat", "refrence"], "Did you mean 'reference'"),
    ],
)
def test_what_cannot_be_served(arguments, words):
    said = CliRunner().invoke(app, arguments)
    assert said.exit_code in (1, 2), said.output
    assert words in said.stderr
