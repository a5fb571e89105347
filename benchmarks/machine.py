"""What a result must carry with it: the machine and the versions it was measured with."""

from __future__ import annotations

import csv
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from qllm_hf.evaluation.provenance import hardware

RESULTS = Path(__file__).resolve().parent / "results"


def machine() -> dict[str, str]:
    """Processor, cores used, and versions, as columns of a CSV."""
    found = hardware(torch.device("cpu"))
    return {
        "cpu": found["device"],
        "threads": found["threads"],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def write_results(name: str, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows, with the machine in the last columns, to results/<name>.csv."""
    return write_rows(name, with_machine(rows))


def with_machine(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the machine in the last columns."""
    return [{**row, **machine()} for row in rows]


def write_rows(name: str, rows: list[dict[str, Any]]) -> Path:
    """Write rows as they are to results/<name>.csv, which is whole at every moment."""
    path = RESULTS / f"{name}.csv"
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)
    return path


def read_rows(name: str, key: Sequence[str]) -> dict[tuple[str, ...], dict[str, Any]]:
    """The rows of results/<name>.csv by what they measure, the columns `key`; none before the first run."""
    path = RESULTS / f"{name}.csv"
    if not path.exists():
        return {}
    with path.open(encoding="utf-8") as file:
        return {key_of(row, key): dict(row) for row in csv.DictReader(file)}


def key_of(row: Mapping[str, Any], key: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in key)
