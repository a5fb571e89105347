"""Processes that begin with everything imported: forked from this one, which stays as it is."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm


class Ended(NamedTuple):
    """How a child ended.

    Attributes:
        code: exit code; negative for a signal.
        said: stdout and stderr.
        value: what its function returned; None if it did not get so far.
    """

    code: int
    said: str
    value: Any
    seconds: float


def exit_code(job: Callable[[], Any]) -> int:
    """With which a program ends that does this."""
    try:
        job()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def run(
    work: Callable[[], tuple[Any, int]], place: Path, *, kill_after: float | None = None, limit: float = 120.0
) -> Ended:
    """Runs `work` in a child whose temporary folder is below `place`.

    Args:
        work: returns (what is wanted, exit code).
        kill_after: seconds until SIGKILL.
        limit: seconds until the child counts as one that hangs (SIGKILL too; code -99).
    """
    log, result = place.with_name("said"), place.with_name("result")
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _child(work, place, log, result)
    until, hung = began + (limit if kill_after is None else kill_after), False
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > until:
            hung = kill_after is None
            os.kill(child, signal.SIGKILL)
            until = float("inf")
        time.sleep(0.002)
    said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    # written by our own child, below our own temporary folder
    value = pickle.loads(result.read_bytes()) if result.exists() else None
    for path in (log, result):
        path.unlink(missing_ok=True)
    code = -99 if hung else os.waitstatus_to_exitcode(status)
    return Ended(code, said, value, time.monotonic() - began)


def _child(work: Callable[[], Any], place: Path, log: Path, result: Path) -> None:
    code = 1
    try:
        descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        # what this process prints to may be something else by now: pytest's, for example
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        tqdm.set_lock(threading.RLock())  # its own is shared by all that are forked, and stays locked by the killed
        os.environ["TMPDIR"] = str(place / "tmp")
        tempfile.tempdir = None
        value, code = work()
        result.write_bytes(pickle.dumps(value))
    except BaseException:
        traceback.print_exc()
        code = 70
    finally:
        sys.stdout.flush()
        os._exit(code)
