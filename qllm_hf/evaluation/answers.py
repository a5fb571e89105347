"""Answers on disk, batch by batch, so that a run that was killed goes on where it stopped.

One file per process, one line per batch: {"key", "seconds", "answers"}. The key is a digest of everything an answer
depends on, so a line can be old but never wrong. A last line without its end is what a killed process leaves; it is
not read.
"""

from __future__ import annotations

import contextlib
import json
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from .lines import append_line, read_lines


class Answered(NamedTuple):
    """The answers of one batch, and how long they took."""

    answers: list[Any]
    seconds: float


class Journal:
    """Answers that are kept: while the program runs, and beyond that if there is a folder.

    Args:
        folder: for the files of all processes; None keeps them in memory.
        rank: of this process, which writes only its own file.
    """

    def __init__(self, folder: Path | None = None, rank: int = 0) -> None:
        self._folder = folder
        self._file = None if folder is None else folder / f"process{rank}.jsonl"
        self._known: dict[str, Answered] = {}
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("process*.jsonl")):
            for entry in read_lines(path):
                self._known[entry["key"]] = Answered(entry["answers"], entry["seconds"])

    def get(self, key: str) -> Answered | None:
        """What is known under a key."""
        return self._known.get(key)

    def add(self, key: str, answered: Answered) -> None:
        """Keep answers, on disk when this returns if there is a folder."""
        self._known[key] = answered
        if self._file is None:
            return
        append_line(self._file, {"key": key, "seconds": answered.seconds, "answers": answered.answers})

    def __len__(self) -> int:
        return len(self._known)

    def drop(self, *, tidy: bool = False) -> None:
        """Remove the files, once the records that came of them are written.

        Args:
            tidy: the folder of results too, if nothing is in it: a machine that writes no records leaves none behind.
        """
        if self._folder is None:
            return
        for path in self._folder.glob("process*.jsonl"):
            path.unlink(missing_ok=True)
        for folder in (self._folder, *([self._folder.parent] if tidy else [])):
            with contextlib.suppress(OSError):  # not empty, or another process was faster
                folder.rmdir()


def digest(*parts: Any) -> str:
    """A digest of values that JSON can hold."""
    return sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()
