"""Who made a file: processes of this machine, and whether they are gone."""

from __future__ import annotations

import hashlib
import os
import socket
import sys


def this_machine() -> str:
    """8 hex digits that stand for its name."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def is_alive(pid: int) -> bool:
    """Whether there is such a process on this machine; True where that cannot be told."""
    if sys.platform == "win32":  # where the question would end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
