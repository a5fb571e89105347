"""One writer for a folder: a lock that names its holder, and that no dead process keeps.

    .NAME.lock      beside a folder that appears whole: {"pid": 4711, "host": "node3", "since": "2026-03-01T09:30"}
    NAME/.lock      in a folder that grows line by line

The system locks the file for as long as the process lives that opened it (flock; LockFileEx on Windows), so a lock is
gone with its holder however that ended, and what is left of the file means nothing. On NFS the server keeps the lock,
for processes of all machines.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

from filelock import lock_descriptor

from .errors import BusyError, QllmWarning

_NOT_HERE = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What a file system says that has no locks."""
_LARGEST_NOTE = 1000
_held: dict[tuple[str, int], int] = {}
"""(lock file, thread) -> descriptor: who holds a lock may ask for it again."""


def beside(folder: Path) -> Path:
    """The lock file of a folder that appears under its name when it is whole."""
    folder = folder.expanduser().absolute()
    return folder.with_name(f".{folder.name}.lock")


def inside(folder: Path) -> Path:
    """The lock file of a folder that grows."""
    return folder.expanduser().absolute() / ".lock"


@contextlib.contextmanager
def holding(file: Path, what: Path, advice: str) -> Iterator[None]:
    """No other process writes to `what` meanwhile; the same thread may ask again.

    Args:
        file: that is locked; it is removed at the end.
        advice: what to do if somebody else is there, as a sentence.

    Raises:
        BusyError: somebody else is there, named by process, machine and time.
        OSError: the file cannot be made.
    """
    key = os.path.realpath(file), threading.get_ident()
    if key in _held:
        yield
        return
    descriptor = None
    try:
        with undisturbed():
            descriptor = _take(file, what, advice)
            if descriptor is not None:
                _held[key] = descriptor
        yield
    finally:
        if descriptor is not None:
            with undisturbed():
                del _held[key]
                _give_back(descriptor, file)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until a step is done that would otherwise leave something behind. For short steps."""
    stops = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not None]
    if threading.current_thread() is not threading.main_thread():  # which alone is disturbed
        yield
        return
    came: list[int] = []
    # no mask: a signal for the process would find another thread, and be told to this one all the same
    before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in stops}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)


def _give_back(descriptor: int, file: Path) -> None:
    # first the name: who opens the file after that opens another one
    with contextlib.suppress(OSError):  # gone with its folder; or Windows, where an open file keeps its name
        if _is_at(descriptor, file):
            file.unlink()
    os.close(descriptor)


def _take(file: Path, what: Path, advice: str) -> int | None:
    """The descriptor of the locked file; None where the file system has no locks."""
    file.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            if not lock_descriptor(descriptor, blocking=False):
                raise BusyError(f"{str(what)!r} is being written by {_holder(descriptor)}. {advice}")
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, OSError) and error.errno in _NOT_HERE:
                _say_unlocked(what, error)
                return None
            raise
        if _is_at(descriptor, file):
            _sign(descriptor, file)
            return descriptor
        os.close(descriptor)  # its last holder removed it between our two steps


def _sign(descriptor: int, file: Path) -> None:
    """Write who has the lock into its file."""
    note = {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, b" " + json.dumps(note).encode() + b"\n")  # Windows keeps others from the first byte
    except OSError as error:
        _give_back(descriptor, file)
        raise OSError(error.errno, os.strerror(error.errno or 0), str(file)) from None


def _is_at(descriptor: int, file: Path) -> bool:
    """Whether the open file is the one that has the name."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    try:
        os.lseek(descriptor, 1, os.SEEK_SET)
        note = json.loads(os.read(descriptor, _LARGEST_NOTE))
        return f"process {note['pid']} on {note['host']} since {note['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has the lock, and has not written yet
        return "another process"


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def _say_unlocked(what: Path, error: OSError) -> None:
    warnings.warn(
        f"the file system of {str(what)!r} has no locks ({os.strerror(error.errno or 0)}): make sure that no other "
        "process writes there.",
        QllmWarning,
        stacklevel=4,
    )


def _forget() -> None:
    """In a process that was forked: its copies of the descriptors would keep the locks of a parent that is gone."""
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
