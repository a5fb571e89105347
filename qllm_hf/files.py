"""Small files from anywhere, read without waiting for ever and in bounded memory, or refused in one sentence."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Final

from .errors import CheckpointError, QllmError

LARGEST_TEXT: Final = 2**30
"""Bytes of a file that is read at once, where nothing says less."""
_KINDS: Final = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode), "a device"),
)


def check_file(path: Path, *, largest: int = LARGEST_TEXT, error: type[QllmError] = CheckpointError) -> None:
    """Raises `error` if this is no file that can be read: a pipe would be waited for, a device has no end.

    A file that is not there stays a FileNotFoundError, since for some it is a fault and for others the beginning.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as reason:  # a loop of links, a name that cannot be, a folder that may not be entered
        raise error(f"{path} cannot be read: {getattr(reason, 'strerror', None) or reason}.") from None
    if not stat.S_ISREG(found.st_mode):
        what = next((name for is_kind, name in _KINDS if is_kind(found.st_mode)), "something else")
        raise error(f"{path} is no file but {what}. Put the file there, or take it away.")
    if found.st_size > largest:
        raise error(f"{path} has {found.st_size} bytes, where {largest} are allowed. Is it another file?")


def read_bytes(path: Path, *, largest: int = LARGEST_TEXT, error: type[QllmError] = CheckpointError) -> bytes:
    """What is in a file. Raises `error` as `check_file`, and where the system does not let it be read."""
    check_file(path, largest=largest, error=error)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as reason:
        raise error(f"{path} cannot be read: {reason.strerror or reason}.") from None


def read_text(path: Path, *, largest: int = LARGEST_TEXT, error: type[QllmError] = CheckpointError) -> str:
    """The same as text. Raises `error` also if it is no UTF-8; the message says in which line."""
    data = read_bytes(path, largest=largest, error=error)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as reason:
        line = data[: reason.start].count(b"\n") + 1
        raise error(
            f"{path}, line {line}: byte 0x{data[reason.start]:02x} is no UTF-8. Save the file as UTF-8, such as with "
            "`iconv -f latin1 -t utf-8`."
        ) from None
