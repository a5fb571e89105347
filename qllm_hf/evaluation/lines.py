"""Files of JSON lines that survive a kill: what is in them is whole, and what is said to be written is on the disk."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..whole import naming, whole_file


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Put one line at the end, and wait until the disk has it.

    In one write to a file opened for appending, so lines of several processes do not mix. A file that does not end
    with a line break holds a line that was cut off; it gets one, or the new line would be lost with it. While another
    process writes, its line can look like that too: then an empty line stays between them.

    Raises:
        OSError: the disk took it only in part, or not at all.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(value).encode("ascii") + b"\n"
    with naming(path), path.open("a+b", buffering=0) as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line
        if file.write(line) != len(line):
            raise OSError(errno.ENOSPC, "a line was written only in part: is the disk full?", str(path))
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of the whole lines of a file; [] if there is none. What a kill left of a line is not read."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    entries = []
    for line in content.split(b"\n"):
        try:
            entry = json.loads(line)
        except ValueError:  # an empty line, or what was left of one
            continue
        if isinstance(entry, dict):
            entries.append(entry)
    return entries


def write_lines(path: Path, values: Iterable[dict[str, Any]]) -> None:
    """Write a whole file, or nothing: under another name first, then renamed."""
    with whole_file(path) as partial, partial.open("wb") as file:
        for value in values:
            file.write(_readable(value) + b"\n")


def _readable(value: dict[str, Any]) -> bytes:
    """JSON in which text can be read; half a character, which a cut-off answer may end with, is escaped."""
    try:
        return json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value).encode("ascii")
