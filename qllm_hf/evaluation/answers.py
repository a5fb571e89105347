"""Answers on disk, batch by batch, so that a run that was killed goes on where it stopped.

One file per process, one line per batch: {"key", "seconds", "answers"}. The key is a digest of everything an answer
depends on, so a line can be old but never wrong. A last line without its end is what a killed process leaves; it is
not read.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from ..typed import fits
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
                key, seconds, answers = (entry.get(name) for name in ("key", "seconds", "answers"))
                if isinstance(key, str) and isinstance(seconds, float) and isinstance(answers, list):
                    self._known[key] = Answered(answers, seconds)

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
        with contextlib.suppress(FileNotFoundError):  # another process was faster, which removed the folder meanwhile
            for path in self._folder.glob("process*.jsonl"):
                path.unlink(missing_ok=True)
        for folder in (self._folder, *([self._folder.parent] if tidy else [])):
            with contextlib.suppress(OSError):  # not empty, or another process was faster
                folder.rmdir()


def are_answers(kind: str, answers: list[Any], counts: Sequence[int | None]) -> bool:
    """Whether this is what a model may have answered: a text and its number of tokens, or likelihoods of continuations.

    Args:
        counts: of each request its number of continuations, where that is known.
    """
    if len(answers) != len(counts):
        return False
    for one, count in zip(answers, counts, strict=True):
        if not isinstance(one, list):
            return False
        if kind == "text":
            if len(one) != 2 or not fits(one[0], str) or not fits(one[1], int) or one[1] < 0:
                return False
        elif len(one) != count or not all(fits(pair, list) and _is_likelihood(pair) for pair in one):
            return False
    return True


def _is_likelihood(pair: list[Any]) -> bool:
    return len(pair) == 2 and fits(pair[0], float) and pair[0] == pair[0] and isinstance(pair[1], bool)


def digest(*parts: Any) -> str:
    """A digest of values that JSON can hold."""
    return sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()
