"""Whoever has a model on disk needs no network: nothing is downloaded, reported or looked up that was not named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# In a program of its own: an audit hook cannot be taken out again, and tests run with HF_HUB_OFFLINE=1, users do not.
PROGRAM = Path(__file__).with_name("without_network.py")


@pytest.fixture(scope="module")
def tried(tmp_path_factory) -> dict:
    """What the program has seen: for each step its exit code, and the addresses that were asked for."""
    environment = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "CI")}
    environment |= {"HF_HOME": str(tmp_path_factory.mktemp("hf"))}  # no cache that could answer, and no token
    work = tmp_path_factory.mktemp("work")
    result = subprocess.run(
        [sys.executable, str(PROGRAM)], cwd=work, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_no_step_opens_a_connection(tried):
    assert {step: asked for step, (_, asked) in tried["steps"].items() if asked} == {}


def test_every_step_works(tried):
    assert {step: code for step, (code, _) in tried["steps"].items() if code} == {}


def test_a_connection_would_be_seen(tried):
    """Negative control: a model that was named and is not here is asked for."""
    code, asked = tried["control"]
    assert code == 1 and "huggingface.co" in str(asked)
