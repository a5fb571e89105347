"""A command of ours in a process of its own, with a window into it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

OBSERVED = Path(__file__).with_name("observed.py")


@contextlib.contextmanager
def observed(
    words: Sequence[str], plant: str, path: str, log: Path
) -> Iterator[tuple[subprocess.Popen[bytes], int, int]]:
    """A command that serves, its port, and that of the window into it.

    Args:
        words: of the command, without its port.
        plant: what is broken on purpose, or "none".
        path: that answers when it is there.
    """
    port, window = _free_port(), _free_port()
    command = [sys.executable, str(OBSERVED), str(window), plant, *words, "--port", str(port)]
    with log.open("wb") as written:
        process = subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT)
    try:
        _wait_for(process, f"http://127.0.0.1:{port}{path}", log)
        yield process, port, window
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Until an address answers. Raises SystemExit if it never does."""
    deadline = time.monotonic() + 300
    while True:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url, timeout=5).close()
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"it did not start:\n{log.read_text()}")
        time.sleep(0.2)
