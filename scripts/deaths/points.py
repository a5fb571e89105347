"""The points of a process at which files below a folder change, through a library that is loaded before all others."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Final, NoReturn

_SOURCE: Final = Path(__file__).with_name("points.c")
COUNT, KILL_BEFORE, KILL_AFTER, FAIL_ONCE, FAIL_SPACE, INTERRUPT = range(6)
"""What happens at the chosen point, as in points.c."""


def is_loaded() -> bool:
    """Whether this process has points."""
    return hasattr(ctypes.CDLL(None), "fault_arm")


def start_again_with_points() -> NoReturn:
    """Compile the library, and run this program again with it in front.

    Raises:
        SystemExit: there is no compiler here.
    """
    library = Path(tempfile.gettempdir()) / f"qllm-points-{os.getuid()}-{zlib.crc32(_SOURCE.read_bytes()):08x}.so"
    try:
        if not library.exists():
            subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(_SOURCE), "-ldl"], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"points.c cannot be compiled ({error}): this needs Linux with glibc, and cc.") from None
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "LD_PRELOAD": str(library)})


def arm(folder: Path, action: int, number: int = 0, code: int = 0) -> None:
    """From now on changes below `folder` count, and at the n-th (from 1) something happens; `code`: errno or signal."""
    ctypes.CDLL(None).fault_arm(os.fsencode(folder), action, ctypes.c_long(number), code)


def seen() -> int:
    """How many points there were since then."""
    library = ctypes.CDLL(None)
    library.fault_seen.restype = ctypes.c_long
    return int(library.fault_seen())


def what() -> str:
    """The chosen point in words, such as "rename /out/.records.jsonl"; empty if it was not reached."""
    library = ctypes.CDLL(None)
    library.fault_what.restype = ctypes.c_char_p
    return bytes(library.fault_what()).decode()
