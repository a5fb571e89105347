"""The points of a process at which files below a folder change, through a library that is loaded before all others."""

from __future__ import annotations

import ctypes
import os
import signal
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
    if is_loaded():
        ctypes.CDLL(None).fault_arm(os.fsencode(folder), action, ctypes.c_long(number), code)
    else:
        audited.arm(str(folder), action, number, code)


def seen() -> int:
    """How many points there were since then."""
    if not is_loaded():
        return audited.seen
    library = ctypes.CDLL(None)
    library.fault_seen.restype = ctypes.c_long
    return int(library.fault_seen())


def what() -> str:
    """The chosen point in words, such as "rename /out/.records.jsonl"; empty if it was not reached."""
    if not is_loaded():
        return audited.what
    library = ctypes.CDLL(None)
    library.fault_what.restype = ctypes.c_char_p
    return bytes(library.fault_what()).decode()


class _Audited:
    """The points that Python itself tells of: no writes, and nothing that libraries in Rust or C++ do. For tests, which
    cannot be started again with another library in front.
    """

    def __init__(self) -> None:
        self.seen, self.what, self._folder, self._is_hooked = 0, "", "", False

    def arm(self, folder: str, action: int, number: int, code: int) -> None:
        """As `arm`."""
        self.seen, self.what, self._folder = 0, "", folder
        self._action, self._number, self._code = action, number, code
        if not self._is_hooked:
            sys.addaudithook(self._hook)
            self._is_hooked = True

    def _hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if event not in _EVENTS or not self._folder:
            return
        path = _full(arguments[0], arguments[_EVENTS[event]] if _EVENTS[event] else None)
        if not path.startswith(self._folder) or (event == "open" and not _writes(arguments[2])):
            return
        self.seen += 1
        if self.seen == self._number:
            self.what = f"{event} {path.removeprefix(self._folder)}"
        if self._action == FAIL_SPACE and self.seen >= self._number and event in ("open", "os.mkdir"):
            raise OSError(self._code, os.strerror(self._code), path)
        if self.seen != self._number:
            return
        if self._action in (KILL_BEFORE, KILL_AFTER):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._action == FAIL_ONCE:
            raise OSError(self._code, os.strerror(self._code), path)
        if self._action == INTERRUPT:
            os.kill(os.getpid(), self._code)


_EVENTS = {"open": 0, "os.mkdir": 2, "os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.chmod": 2}
"""{audit event: which of its arguments is the descriptor of the folder that the path is in; 0: none}."""


def _full(path: object, folder: object) -> str:
    name = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
    if name.startswith("/") or not isinstance(folder, int) or folder < 0:
        return name
    return f"{Path(f'/proc/self/fd/{folder}').readlink()}/{name}"


def _writes(flags: object) -> bool:
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))


audited = _Audited()
