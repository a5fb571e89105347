"""A temporary folder that does not outlive its process for long, however that ends.

    qllm-offload-3f2a91c0-4711-x8k2p1     what for, which machine, which process

Weights of a large model fill a disk, and a process that is killed leaves them. The next one that needs such a folder
removes those of processes that are gone.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .processes import is_alive, this_machine


@contextlib.contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """A new folder where the system has temporary ones (TMPDIR), removed at the end.

    Args:
        purpose: how its name begins, such as "qllm-offload".
    """
    begins = f"{purpose}-{this_machine()}-"
    for path in _left(begins):
        shutil.rmtree(path, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{begins}{os.getpid()}-") as folder:
        yield Path(folder)


def _left(begins: str) -> list[Path]:
    """Our own folders of that beginning whose processes are gone."""
    ours = re.compile(rf"{re.escape(begins)}(\d+)-\w+")
    return [
        path
        for path in Path(tempfile.gettempdir()).glob(f"{begins}*")
        if (match := ours.fullmatch(path.name)) and not is_alive(int(match[1])) and _is_mine(path)
    ]


def _is_mine(path: Path) -> bool:
    """Temporary folders are shared: a link, or what another user made, is none of ours."""
    with contextlib.suppress(OSError):
        return path.is_dir() and not path.is_symlink() and (os.name == "nt" or path.stat().st_uid == os.getuid())
    return False
