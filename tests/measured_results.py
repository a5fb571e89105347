"""What a folder of results holds, without when and where it was measured."""

from pathlib import Path
from typing import Any

from qllm_hf.evaluation.store import Store


def results_of(folder: Path) -> dict[tuple[str, str], Any]:
    """{(scheme, task): result}, each measured once."""
    found: dict[tuple[str, str], Any] = {}
    for record in Store(folder).records:
        assert (record.scheme, record.task) not in found, "measured twice"
        found[record.scheme, record.task] = record.result
    return found
