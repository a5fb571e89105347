"""Whether files are still those that were opened: a folder that is replaced meanwhile gives parts of two models."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from .errors import CheckpointError

_LOOKED_AT = ("*.json", "*.safetensors")


@contextlib.contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """Reading the model in a folder. What was made of it counts only if its files stayed the same.

    Times and sizes are compared with what they were, never with a clock. A file that is cut short while it is mapped
    into memory ends the process instead (SIGBUS): no program can go on then.

    Raises:
        CheckpointError: a file was replaced, changed or removed meanwhile.
    """
    before = _look(folder)
    try:
        yield
    except Exception as error:
        if changed := _differing(before, _look(folder)):
            raise _error(folder, changed) from error
        raise
    if changed := _differing(before, _look(folder)):
        raise _error(folder, changed)


def _look(folder: Path) -> dict[str, tuple[int, int, int]]:
    found = {}
    for path in sorted(path for pattern in _LOOKED_AT for path in folder.glob(pattern)):
        with contextlib.suppress(OSError):  # a link to nothing; or removed between our two steps
            about = path.stat()
            found[path.name] = about.st_ino, about.st_size, about.st_mtime_ns
    return found


def _differing(before: dict[str, tuple[int, int, int]], after: dict[str, tuple[int, int, int]]) -> list[str]:
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


def _error(folder: Path, changed: list[str]) -> CheckpointError:
    return CheckpointError(
        f"{str(folder)!r} was changed while it was read: {', '.join(changed[:3])}"
        f"{f' and {len(changed) - 3} more' if len(changed) > 3 else ''}. Nothing was made of it: run the same command "
        "again when it stays as it is."
    )
