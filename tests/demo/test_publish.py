"""Card, plan and push from the page, against a Hub on this machine; the token stays nowhere."""

import json
import subprocess
import sys

import pytest
from publishing.hub_client import environment

from qllm_hf.demo.host import make_host
from qllm_hf.demo.publish import Wish, preview, preview_html, publish
from qllm_hf.errors import ConfigError, SchemeError
from qllm_hf.publishing.problems import PublishError

WISH = Wish("reference", "W4KV8", "ann/reference-w4kv8")
PUSH = """
import gc, json, logging, sys, pathlib
logging.basicConfig(level=logging.DEBUG)
from qllm_hf.demo.host import make_host
from qllm_hf.demo.publish import Wish, publish
host, wish = make_host(), Wish("reference", "W4KV8", "ann/reference-w4kv8")
answers = []
for token in json.loads(sys.argv[1]):
    try:
        answers.append(publish(host, wish, token, endpoint=sys.argv[2]).url)
    except Exception as error:
        chain = []
        while error is not None:
            chain.append(repr(error) + repr(vars(error)))
            error = error.__cause__ or error.__context__ if not error.__suppress_context__ else None
        answers.append(chain)
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def host():
    return make_host()


def test_the_preview_shows_card_and_files(host):
    found = preview(host, WISH)
    assert "base_model_relation: quantized" in found.card or "quantized to W4KV8" in found.card
    assert {"README.md", "config.json", "model.safetensors"} <= {file.path for file in found.plan.files}
    page = preview_html(found)
    assert "ann/reference-w4kv8" in page and "model.safetensors" in page
    assert "/tmp" not in page and "qllm-demo-" not in page


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"repo": "one-word"}, PublishError, "is no id on the Hub"),
        ({"repo": "../x"}, PublishError, "is no id on the Hub"),
        ({"repo": "x/.."}, PublishError, "is no id on the Hub"),
        ({"repo": "x/" + "y" * 200}, ConfigError, "the Hub takes 96"),
        ({"scheme": "W9"}, SchemeError, "w=9"),
        ({"scheme": "FP16"}, ConfigError, "quantizes nothing"),
        ({"model": "/etc/passwd"}, ConfigError, "no model that this page can load"),
        ({"results": "/etc"}, ConfigError, "no results '/etc'"),
    ],
)
def test_what_cannot_be_published_is_said(host, changes, error, words):
    from dataclasses import replace

    with pytest.raises(error, match=words):
        preview(host, replace(WISH, **changes))


def test_offline_nothing_is_pushed(host):
    with pytest.raises(PublishError, match="does not push"):
        publish(host, WISH, "hf_x")


def test_a_push_with_a_visitors_token(local_hub, tmp_path):
    """A wrong one, an expired one, none, the right one twice; no answer and no log holds any of them."""
    wrong, expired, right = "hf_wrong_secret", local_hub.token("ann", expired=True), local_hub.token("ann")
    tokens = [wrong, expired, " ", right, right]
    command = [sys.executable, "-c", PUSH, json.dumps(tokens), local_hub.url]
    env = environment(local_hub, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    refused, old, none, pushed, again = json.loads(done.stdout.splitlines()[-1])
    for answer in (refused, old):
        assert "does not accept this token" in str(answer)
    assert "give a token" in str(none)
    assert pushed.startswith(f"{local_hub.url}/ann/reference-w4kv8")
    assert again
    for token in (wrong, expired, right):
        assert token not in done.stdout and token not in done.stderr
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and right.encode() in path.read_bytes()]
    assert kept == []
