"""The rows of a task: from a data folder, from the Hub, or made here; checked before any model is asked anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..errors import ConfigError, did_you_mean
from ..files import read_text
from ..shown import is_cut, short_text
from .task import EVERY, Row, Source


@dataclass(frozen=True)
class Rows:
    """Rows with where they come from.

    Attributes:
        rows: in the order of their source.
        origin: "file basic_nlp/piqa.jsonl", "hub ybisk/piqa validation", or "generated".
    """

    rows: list[Row]
    origin: str


def digest_of(rows: Sequence[Row]) -> str:
    """12 hexadecimal digits that change with any value of the rows, and with their order."""
    text = json.dumps(rows, sort_keys=True, ensure_ascii=False, default=str)
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def read_rows(
    task: str,
    source: Source,
    data_dir: Path | None,
    generate: Callable[[], list[Row]] | None = None,
) -> Rows:
    """The rows of a task. A file in the data folder comes first, then what is made here, then the Hub.

    Raises:
        ConfigError: the data folder has no such file, a file is damaged, or the Hub does not give the data set.
    """
    if data_dir is not None:
        file = _file(task, source.file, data_dir, must_exist=generate is None)
        if file is not None:
            return Rows(read_jsonl(file, source.columns), f"file {source.file}.jsonl")
    if generate is not None:
        return Rows(generate(), "generated")
    return _from_hub(task, source, source.split)


def read_shots(task: str, source: Source, data_dir: Path | None) -> Rows:
    """The rows that examples are taken from; as `read_rows`."""
    if data_dir is not None:
        file = _file(task, source.shots_file, data_dir, must_exist=True)
        assert file is not None
        return Rows(read_jsonl(file, source.columns), f"file {source.shots_file}.jsonl")
    return _from_hub(task, replace(source, file=source.shots_file), source.shots_split)


def _file(task: str, name: str, folder: Path, *, must_exist: bool) -> Path | None:
    if not folder.is_dir():
        raise ConfigError(
            f"there is no data folder {str(folder)!r}. Give the folder that holds basic_nlp/, emergent/, ..."
        )
    path = folder / f"{name}.jsonl"
    if path.is_file():
        return path
    if not must_exist:
        return None
    there = sorted(file.stem for file in path.parent.glob("*.jsonl")) if path.parent.is_dir() else []
    raise ConfigError(
        f"{task}: the data folder {str(folder)!r} has no {name}.jsonl.{did_you_mean(path.stem, there)} "
        "Put it there, leave the task out, or leave out the data folder to read from the Hub."
    )


def read_jsonl(path: Path, columns: Sequence[str] = ()) -> list[Row]:
    """The objects of a JSON lines file, each with at least these columns.

    Raises:
        ConfigError: it is empty, no UTF-8, has a line that is no JSON object, or lacks a column. The message names the
            line.
    """
    text = read_text(path, error=ConfigError).removeprefix("\ufeff")
    rows: list[Row] = []
    lines = text.split("\n")  # not splitlines(): strings may hold other line separators
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # also numbers too long and lists too deep for Python
            cut = " The file ends in the middle of it: was it copied in full?" if number == len(lines) else ""
            raise ConfigError(
                f"{str(path)!r}, line {number} is no JSON ({short_text(str(getattr(error, 'msg', error)))}).{cut}"
            ) from None
        if not isinstance(row, dict):
            raise ConfigError(f"{str(path)!r}, line {number} is no JSON object but a {type(row).__name__}.")
        for column in columns:
            if column not in row:
                raise ConfigError(
                    f"{str(path)!r}, line {number} has no {column!r}.{did_you_mean(column, row)} "
                    f"It has {short_text(', '.join(map(repr, row))) or 'nothing'}; needed: "
                    f"{', '.join(map(repr, columns))}."
                )
        if "\\u" in line and is_cut(json.dumps(row, ensure_ascii=False)):
            raise ConfigError(f"{str(path)!r}, line {number} holds half a character, which no tokenizer takes.")
        rows.append(row)
    if not rows:
        raise ConfigError(f"{str(path)!r} is empty. It should hold one JSON object per line.")
    return rows


def _from_hub(task: str, source: Source, split: str) -> Rows:
    if not source.hub:
        raise ConfigError(
            f"{task}: this data set is not on the Hub. Get it from {source.home} and put it into a data folder as "
            f"{source.file}.jsonl, one object per line with {', '.join(map(repr, source.columns))}; then give the "
            "folder (--data-dir)."
        )
    import datasets

    try:
        if source.config == EVERY:
            rows = [
                {"subject": config, **row}
                for config in datasets.get_dataset_config_names(source.hub)
                for row in _loaded(datasets, source.hub, config, split)
            ]
        else:
            rows = _loaded(datasets, source.hub, source.config, split)
    except Exception as error:  # datasets raises many kinds, and all of them mean the same here
        raise ConfigError(
            f"{task}: the Hub did not give {source.hub!r} ({first_line(error)}). Offline, give a data folder "
            f"with {source.file}.jsonl (--data-dir)."
        ) from error
    missing = [column for column in source.columns if rows and column not in rows[0]]
    if not rows or missing:
        raise ConfigError(
            f"{task}: {source.hub!r} on the Hub has no {', '.join(map(repr, missing)) or 'rows'} any more."
        )
    return Rows(rows, f"hub {source.hub} {source.config or ''} {split}".replace("  ", " "))


def first_line(error: Exception) -> str:
    """The kind of an error, and the first line of what it says, if it says anything."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def _loaded(datasets: Any, hub: str, config: str | None, split: str) -> list[Row]:
    return [dict(row) for row in datasets.load_dataset(hub, config, split=split)]
