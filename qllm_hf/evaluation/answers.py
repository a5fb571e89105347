"""Answers on disk, batch by batch, so that a run that was killed goes on where it stopped.

One file per process, one line per batch: {"key", "seconds", "answers"}. The key is a digest of everything an answer
depends on, so a line can be old but never wrong. A last line without its end is what a killed process leaves; it is
not read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple


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

    def drop(self) -> None:
        """Remove the files, once the records that came of them are written."""
        if self._folder is not None:
            for path in self._folder.glob("process*.jsonl"):
                path.unlink(missing_ok=True)
            if self._folder.is_dir() and not any(self._folder.iterdir()):
                self._folder.rmdir()


def digest(*parts: Any) -> str:
    """A digest of values that JSON can hold."""
    return sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append one JSON line in one write, and wait until the disk has it. A torn line before it is ended first."""
    data = json.dumps(value, ensure_ascii=True).encode() + b"\n"
    with path.open("ab") as file:
        if file.tell() and not _ends_with_newline(path):
            data = b"\n" + data
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file that `append_line` wrote; what a killed process left half-written is not read."""
    if not path.is_file():
        return []
    entries = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue  # torn by a kill, and ended by the line after it
    return entries


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def write_lines(path: Path, values: Sequence[dict[str, Any]]) -> None:
    """Write a whole file of JSON lines, or nothing: under another name first, then renamed."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("w", encoding="utf-8") as file:
        for value in values:
            file.write(json.dumps(value, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
