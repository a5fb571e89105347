"""The kernels read and write what they are given and nothing beside it."""

import signal
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("guarded_memory.py")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", str(PROGRAM), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_nothing_beside_the_memory_is_touched(level):
    done = run(level)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "products touched nothing beside their memory" in done.stdout


def test_one_more_token_would_be_noticed(level):
    assert run(level, "1").returncode in (-signal.SIGSEGV, -signal.SIGBUS)
