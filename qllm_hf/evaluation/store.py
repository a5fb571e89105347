"""A folder of results: one line per score, one file of samples per task, and answers of what is not finished.

OUT/records.jsonl                        one line per (model, revision, scheme, task, ...): `Record`
OUT/samples/MODEL/SCHEME/TASK.jsonl      one line per item: prompt, answer, what it was worth
OUT/answers/                             batches of a run under way; gone when it is done
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from ..errors import CheckpointError
from ..lock import holding, inside
from .lines import APPENDED, RECORDS, append_line, drop_half_line, read_lines, write_lines
from .record import Record

IDENTITY: Final = (
    "model",
    "revision",
    "scheme",
    "quantization",
    "dtype",
    "task",
    "task_version",
    "metric",
    "limit",
    "shots",
    "chat",
    "judge",
    "data",
)
"""The fields that two records of the same measurement have in common."""
_WAIT: Final = (
    "Wait for it to end and run the same command again, which does not measure twice; or give another folder, and put "
    "both together with `qllm-hf merge`."
)


@contextlib.contextmanager
def writing(folder: Path | None, advice: str = _WAIT) -> Iterator[None]:
    """No other process puts results into a folder meanwhile; reading is always possible.

    Half a line that a killed process left is removed first.

    Args:
        advice: what whoever is refused may do.

    Raises:
        BusyError: another process does.
        CheckpointError: the folder is a file.
    """
    if folder is None:
        yield
        return
    _check_folder(folder)
    with holding(inside(folder), folder, advice):
        for name in APPENDED:
            drop_half_line(folder / name)
        yield


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{str(folder)!r} is a file. Give a folder for the results.")


class Store:
    """The folder of results, or none: then nothing is kept.

    Args:
        strict: refuse damaged lines (`read_lines`), where what is made of the folder goes to others.

    Raises:
        CheckpointError: the folder is a file, or its records cannot be read.
    """

    def __init__(self, folder: Path | None, *, strict: bool = False) -> None:
        self.folder = folder
        if folder is not None:
            _check_folder(folder)
        path = None if folder is None else folder / RECORDS
        self.records = [] if path is None else [_record(path, line) for line in read_lines(path, strict=strict)]

    @property
    def answers(self) -> Path | None:
        """The folder for answers of a run under way."""
        return None if self.folder is None else self.folder / "answers"

    def find(self, wanted: dict[str, Any]) -> Record | None:
        """The last record that was made of the same model, scheme, task, items and settings."""
        for record in reversed(self.records):
            if all(getattr(record, key) == wanted[key] for key in IDENTITY):
                return record
        return None

    def add(self, record: Record, samples: Sequence[dict[str, Any]]) -> None:
        """Keep a score; its samples are there before it is."""
        self.records.append(record)
        if self.folder is None:
            return
        write_lines(self.samples(record), samples)
        append_line(self.folder / RECORDS, record.to_json())

    def samples(self, record: Record) -> Path:
        """The file with the items of a score."""
        assert self.folder is not None
        name = re.sub(r"[^\w.-]+", "_", record.model).strip("_.") or "model"
        return self.folder / "samples" / name / record.scheme / f"{record.task}.jsonl"


def _record(path: Path, line: dict[str, Any]) -> Record:
    try:
        return Record.from_json(line)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
