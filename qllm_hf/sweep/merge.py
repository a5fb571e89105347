"""Several folders of results of one model -> one: the parts of a sweep that were measured on different machines."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from ..errors import CheckpointError, QllmWarning
from ..evaluation.record import Record
from ..evaluation.store import IDENTITY, Store
from ..results import BASELINE, Results, asked_of, read_results, write_command, write_size
from ..whole import claiming, whole_folder

_SCORE: Final = ("value", "stderr", "items", "answered", "cut", "details")
"""What two runs of the same measurement have to agree in."""
_ASKED: Final = ("task_version", "metric", "limit", "shots", "chat", "judge", "data", "dtype")


def merge(parts: Sequence[Path], out: Path) -> Results:
    """The results of all parts in a new folder, float model first, then in the order of the parts.

    A score that two parts have is kept once if they agree; where they do not, nobody could say which one is right. A
    folder that holds these results already, and nothing else, is taken as it is.

    Raises:
        CheckpointError: a part holds no results, or of another model; two parts contradict each other; `out` holds
            something else. Nothing is written then.
    """
    found = [read_results(part, strict=True) for part in parts]
    _check_models(found)
    chosen = _chosen(found)
    _check_questions(chosen)
    _warn_of_versions(chosen)
    sizes = _sizes(found)
    with claiming(out):  # what a merge that was killed left of its lock goes with ours
        if _holds(out, [record for _, record in chosen], sizes):
            return read_results(out)
    with whole_folder(out, lambda: _check_new(out), lambda partial: None) as partial:
        store = Store(partial)
        for results, record in sorted(chosen, key=lambda pair: pair[1].scheme != BASELINE):
            store.add(record, results.lines(record))
        for size in sizes.values():
            write_size(partial, size)
        for command in dict.fromkeys(command for results in found for command in results.commands):
            write_command(partial, command)
    return read_results(out)


def _check_new(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{str(out)!r} is not empty. Give a new folder for the merged results.")


def _holds(out: Path, records: Sequence[Record], sizes: dict[str, Any]) -> bool:
    """Whether a folder is what this merge would write."""
    with contextlib.suppress(CheckpointError):
        known = read_results(out, strict=True)
        mine, theirs = (
            {json.dumps(each.to_json(), sort_keys=True) for each in some} for some in (records, known.records)
        )
        return mine == theirs and known.sizes == sizes
    return False


def _check_models(found: Sequence[Results]) -> None:
    first = found[0]
    for results in found:
        if (results.model, results.revision) != (first.model, first.revision):
            raise CheckpointError(
                f"{str(results.folder)!r} holds results of {results.model!r} ({results.revision}), and "
                f"{str(first.folder)!r} of {first.model!r} ({first.revision}). Only parts of one sweep can be merged."
            )


def _chosen(found: Sequence[Results]) -> list[tuple[Results, Record]]:
    """Each score once, with the part it comes from."""
    chosen: dict[tuple[str, str], tuple[Results, Record]] = {}
    problems = []
    for results in found:
        for record in results.records:
            where, known = chosen.setdefault((record.scheme, record.task), (results, record))
            if known is not record and (said := "; ".join(_conflicts(known, record))):
                problems.append(
                    f"{record.scheme} {record.task} is in {str(where.folder)!r} and in {str(results.folder)!r}, "
                    f"with {said}"
                )
    made: dict[str, tuple[Results, Record]] = {}
    for results, record in chosen.values():
        where, known = made.setdefault(record.scheme, (results, record))
        if known.quantization != record.quantization:
            keys = {*known.quantization, *record.quantization}
            other = sorted(key for key in keys if known.quantization.get(key) != record.quantization.get(key))
            problems.append(
                f"{record.scheme} is quantized in another way in {str(results.folder)!r} than in {str(where.folder)!r} "
                f"({', '.join(other)})"
            )
    _refuse(problems)
    return list(chosen.values())


def _conflicts(one: Record, other: Record) -> Iterator[str]:
    for key in (*IDENTITY, *_SCORE):
        mine, theirs = (_plain(getattr(record, key)) for record in (one, other))
        if mine != theirs:
            yield f"{key} {mine} and {theirs}"


def _plain(value: Any) -> Any:
    return "nan" if value != value else value


def _check_questions(chosen: Sequence[tuple[Results, Record]]) -> None:
    """Scores of one task must be of the same questions, or they could not be compared."""
    first: dict[str, tuple[Results, Record]] = {}
    problems = []
    for results, record in chosen:
        where, known = first.setdefault(record.task, (results, record))
        if asked_of(known) != asked_of(record):
            said = ", ".join(
                f"{key} {getattr(known, key)} and {getattr(record, key)}"
                for key in _ASKED
                if getattr(known, key) != getattr(record, key)
            )
            problems.append(
                f"{record.task} was not asked alike: {known.scheme} in {str(where.folder)!r} and {record.scheme} in "
                f"{str(results.folder)!r} have {said}"
            )
    _refuse(problems)


def _sizes(found: Sequence[Results]) -> dict[str, Any]:
    sizes: dict[str, Any] = {}
    problems = []
    for results in found:
        for scheme, size in results.sizes.items():
            if sizes.setdefault(scheme, size) != size:
                problems.append(f"the size of {scheme} is another one in {str(results.folder)!r}")
    _refuse(problems)
    return sizes


def _warn_of_versions(chosen: Sequence[tuple[Results, Record]]) -> None:
    every: dict[str, dict[str, str]] = {}
    for results, record in chosen:
        for name, version in record.versions.items():
            every.setdefault(name, {}).setdefault(version, results.folder.name)
    said = [
        f"{name} {', '.join(f'{version} ({folder})' for version, folder in found.items())}"
        for name, found in every.items()
        if len(found) > 1
    ]
    if said:
        warnings.warn(
            f"the parts were measured with different libraries, which can move a score: {'; '.join(said)}.",
            QllmWarning,
            stacklevel=3,
        )


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        more = f" And {len(problems) - 3} more." if len(problems) > 3 else ""
        raise CheckpointError(
            f"the parts contradict each other. {'. '.join(problems[:3])}.{more} Leave out the part that is wrong, or "
            "measure it again."
        )
