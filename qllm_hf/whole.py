"""Files and folders that appear whole: written under another name, put on the disk, renamed.

    .NAME.3f2a91c0-4711.partial     a file on its way: which machine, which process
    .NAME.partial-1b9d6bcd          a folder on its way
    .NAME.replaced-1b9d6bcd         what it replaced, until it is removed

A process that is killed leaves them behind. The next one that writes the same name removes them: files of processes
that are gone, and folders under the lock of their name (`qllm_hf.lock`).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from .lock import beside, holding, undisturbed
from .processes import is_alive, this_machine

WAIT = "Wait for it to end, or give another folder."
_AT_FDCWD, _EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """The name to write a file under, which becomes `path` at the end; if anything fails, what was there stays.

    Raises:
        OSError: with the name of the file.
    """
    remove_left_files(path)
    partial = path.with_name(f".{path.name}.{this_machine()}-{os.getpid()}.partial")
    try:
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            to_disk(partial)
            partial.replace(path)
            to_disk(path.parent)
    finally:
        with undisturbed(), contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file; as `whole_file`."""
    with whole_file(path) as partial:
        partial.write_bytes(content)


@contextlib.contextmanager
def whole_folder(place: Path, check: Callable[[], None], finish: Callable[[Path], None]) -> Iterator[Path]:
    """An empty folder to write to, which becomes `place` at the end; what is there stays until then.

    Args:
        check: is called before anything is made, and raises if `place` may not be replaced.
        finish: is called with the folder when all is written, and raises if it should not count.

    Raises:
        BusyError: another process writes there.
        OSError: with the name of a file.
    """
    place = place.expanduser().absolute()
    with naming(place), claiming(place):
        check()
        unique = uuid.uuid4().hex[:8]
        partial, replaced = (place.with_name(f".{place.name}.{word}-{unique}") for word in ("partial", "replaced"))
        try:
            partial.mkdir(parents=True)
            yield partial
            finish(partial)
            for path in sorted(partial.rglob("*"), reverse=True):
                to_disk(path)
            to_disk(partial)
            with undisturbed():
                _put(partial, place, replaced)
            to_disk(place.parent)
        finally:
            with undisturbed():
                shutil.rmtree(partial, ignore_errors=True)
                if place.exists():
                    shutil.rmtree(replaced, ignore_errors=True)


@contextlib.contextmanager
def claiming(place: Path) -> Iterator[None]:
    """Nobody else makes a folder of that name meanwhile; what a process that was killed left beside it is undone.

    To be asked for before hours of work, not after. Where a process was killed between two renames, the folder itself
    is gone: it gets back the one it had.

    Raises:
        BusyError: another process is at it.
    """
    place = place.expanduser().absolute()
    with holding(beside(place), place, WAIT):
        _restore(place)
        yield


def _restore(place: Path) -> None:
    ours = re.compile(rf"\.{re.escape(place.name)}\.(partial|replaced)-[0-9a-f]{{8}}")
    for path in _siblings(place):
        if not ours.fullmatch(path.name):
            continue
        if ".replaced-" in path.name and not place.exists():
            path.rename(place)
        else:
            shutil.rmtree(path, ignore_errors=True)


def remove_left_files(path: Path) -> None:
    """Remove what processes of this machine that are gone left of a file on its way."""
    found = re.compile(rf"\.{re.escape(path.name)}\.{this_machine()}-(\d+)\.partial")
    for sibling in _siblings(path):
        if (match := found.fullmatch(sibling.name)) and not is_alive(int(match[1])):
            sibling.unlink(missing_ok=True)


def to_disk(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder: a rename may otherwise survive what it names."""
    if path.is_dir() and sys.platform == "win32":  # which cannot, and does it by itself
        return
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system without
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the system name a file: `path`, where they do not say which.

    Libraries in Rust say "(os error 28)" in exceptions of their own; that becomes the OSError it was.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    except Exception as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error


def _put(new: Path, place: Path, old: Path) -> None:
    """Put the folder `new` at `place`. What was there goes to `new` or `old`, or stays if anything fails."""
    if not place.exists():
        new.rename(place)
    elif not _exchange(new, place):
        place.rename(old)
        try:
            new.rename(place)
        except OSError:
            old.rename(place)
            raise


def _exchange(first: Path, second: Path) -> bool:
    """Whether two folders changed names, in one step that nobody sees half done: Linux can, most file systems too."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _EXCHANGE) == 0)


def _siblings(path: Path) -> list[Path]:
    try:
        return sorted(path.parent.iterdir())
    except OSError:
        return []
