"""The kernels read and write what they are given and nothing beside it."""

import re
import signal
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("guarded_memory.py")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", str(PROGRAM), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_nothing_beside_the_memory_is_touched(library):
    """On every level, and on that with the tile registers written out."""
    levels = ("amx_twin", *library.levels) if "avx512_vnni" in library.levels else library.levels
    done = run(",".join(levels))
    assert done.returncode == 0, done.stderr[-2000:]
    for level in levels:
        assert re.search(rf"^{level}: [1-9]\d+ products touched nothing", done.stdout, re.MULTILINE), done.stdout


def test_one_more_token_would_be_noticed(library):
    assert run(library.levels[0], "1").returncode in (-signal.SIGSEGV, -signal.SIGBUS)
