"""Files of JSON lines that survive a kill: what is in them is whole, and what is said to be written is on the disk.

Each line carries the checksum of the others of its values, "crc32": 8 hex digits of the CRC-32 of
`json.dumps(values, sort_keys=True)`. It finds the flipped digit that is JSON all the same. A line without one counts
as well: older versions wrote none, and whoever changes a line on purpose takes it out.
"""

from __future__ import annotations

import errno
import json
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from ..errors import CheckpointError, QllmWarning
from ..files import check_file
from ..strict_json import parse_object, with_checksum, without_checksum
from ..whole import naming, whole_file

RECORDS, SIZES, COMMANDS = "records.jsonl", "sizes.jsonl", "commands.jsonl"
JUDGEMENTS, CELLS = "judgements.jsonl", "bench.jsonl"
APPENDED: Final = (RECORDS, SIZES, COMMANDS, JUDGEMENTS, CELLS)
"""Files of a folder of results to which lines are appended."""
_MOST_DAMAGED: Final = 1000
_LARGEST: Final = 2**40  # bytes: they are read line by line
_BLOCK: Final = 1 << 16


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Put one line at the end, and wait until the disk has it.

    In one write to a file opened for appending, so lines of several processes do not mix. A file that does not end
    with a line break holds a line that was cut off; it gets one, or the new line would be lost with it. While another
    process writes, its line can look like that too: then an empty line stays between them.

    Raises:
        OSError: the disk took it only in part, or not at all.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(with_checksum(value)).encode("ascii") + b"\n"
    with naming(path), path.open("a+b", buffering=0) as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line
        if file.write(line) != len(line):
            raise OSError(errno.ENOSPC, "a line was written only in part: is the disk full?", str(path))
        os.fsync(file.fileno())


def drop_half_line(path: Path) -> None:
    """Cut off what a killed process left of a line at the end of a file. Nobody else may be writing to it."""
    if not path.is_file():  # nor a pipe, which would be waited for: readers say so
        return
    with naming(path), path.open("r+b") as file:
        end = whole = file.seek(0, os.SEEK_END)
        tail = b""
        while whole and b"\n" not in tail:
            start = max(0, whole - _BLOCK)
            file.seek(start)
            tail, whole = file.read(whole - start) + tail, start
        half = tail.rpartition(b"\n")[2]
        if not half or _is_whole(half):
            return
        file.truncate(end - len(half))
        os.fsync(file.fileno())


def _is_whole(line: bytes) -> bool:
    try:
        without_checksum(parse_object(line, nan=True))
    except ValueError:
        return False
    return True


def read_lines(path: Path, *, strict: bool = False) -> list[dict[str, Any]]:
    """The objects of the whole lines of a file, without their checksums; [] if there is none.

    A line that is no JSON object, or not what it was when it was written, does not count, and a QllmWarning names it.

    Args:
        strict: refuse a file with such a line, where what is made of it goes to others.

    Raises:
        CheckpointError: it is no file, or `strict`, or next to nothing of it can be read.
    """
    entries, damaged = [], []
    try:
        check_file(path, largest=_LARGEST)
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    entries.append(without_checksum(parse_object(line, nan=True)))
                except ValueError as error:
                    damaged.append(f"line {number} ({error})")
                    if len(damaged) > _MOST_DAMAGED:
                        raise CheckpointError(
                            f"{path} is damaged in more than {_MOST_DAMAGED} lines, the first is {damaged[0]}. "
                            "Is it another file? Take it away."
                        ) from None
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from None
    if damaged:
        more = f" and {len(damaged) - 3} more" if len(damaged) > 3 else ""
        said = f"{path} is damaged in {', '.join(damaged[:3])}{more}"
        if strict:
            raise CheckpointError(
                f"{said}. Delete what is damaged, and run the command again that measured it: the rest is kept."
            )
        warnings.warn(
            f"{said}. That does not count. The command that wrote it measures it again.", QllmWarning, stacklevel=2
        )
    return entries


def write_lines(path: Path, values: Iterable[dict[str, Any]]) -> None:
    """Write a whole file, or nothing: under another name first, then renamed."""
    with whole_file(path) as partial, partial.open("wb") as file:
        for value in values:
            file.write(readable_line(value))


def readable_line(value: dict[str, Any]) -> bytes:
    """A line in which text can be read; half a character, which a cut-off answer may end with, is escaped."""
    checked = with_checksum(value)
    try:
        return json.dumps(checked, ensure_ascii=False).encode("utf-8") + b"\n"
    except UnicodeEncodeError:
        return json.dumps(checked).encode("ascii") + b"\n"
