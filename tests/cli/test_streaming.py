"""What a model writes on a terminal: as it is written, and without acting on the terminal."""

import os
import sys

import pytest

from qllm_hf.cli.main import app


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal that can be played")
def test_nothing_that_a_model_writes_acts_on_the_terminal(monkeypatch):
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        prompt = "\x1b]0;another title\x07Once\x1b[2J"
        app(["generate", "reference", prompt, "--max-new-tokens", "2", "--quiet"], standalone_mode=False)
        written = os.read(ours, 10_000).decode()
    os.close(ours)
    assert "\x1b" not in written and "\x07" not in written
    assert r"\x1b]0;another title\x07Once\x1b[2J" in written
    assert written.endswith("\n") and len(written.strip()) > len(ascii(prompt)), "and it went on"
