"""Memory that was freed goes back to the system.

The C library keeps freed pieces below its threshold for later, and a calibration frees pieces of many sizes: without
this, a process holds several times what it uses.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable


@functools.cache
def _trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        function: Callable[[int], int] = ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):  # another C library
        return None
    return function


def give_back() -> None:
    """Hand freed memory back, where the C library can (glibc); elsewhere nothing happens."""
    trim = _trim()
    if trim is not None:
        trim(0)
