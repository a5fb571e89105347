"""Scores that may stand on a card: of these weights, next to those of the float model they were made from."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ..evaluation.lines import readable_line
from ..evaluation.record import Record
from ..results import BASELINE, Results, read_results
from .base import Base
from .problems import PublishError
from .quantized import Quantized

EVIDENCE: Final = "qllm_results/records.jsonl"
_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Measured:
    """Results of a model.

    Attributes:
        results: of all schemes.
        scheme: the one whose records are of this model.
    """

    results: Results
    scheme: str

    @property
    def records(self) -> tuple[Record, ...]:
        """Of this model, by ability."""
        order = {task: place for place, task in enumerate(self.results.tasks)}
        return tuple(sorted(self.results.of(self.scheme), key=lambda record: order[record.task]))

    @property
    def has_baseline(self) -> bool:
        """Whether the float model was measured too."""
        return bool(self.results.of(BASELINE))


def read_measured(folder: str | Path, model: Quantized, base: Base) -> Measured:
    """The results in a folder, after it was found that they are of `model`.

    They are either of the base model, quantized alike while it was loaded, or of the folder itself.

    Raises:
        PublishError: they are of another base model, of other schemes, or of other options of the same scheme.
        CheckpointError: there are none, or they cannot be read.
    """
    results = read_results(folder, strict=True)
    of_base = results.revision == base.revision if base.revision else results.model == base.name
    if not of_base and results.revision != model.revision:
        raise PublishError(
            f"the results in {str(folder)!r} are of {_named(results.model)} ({results.revision or 'no revision'}), and "
            f"{model.name!r} was made from {base.name} ({base.revision or 'no revision'}). Measure that one: "
            f"qllm-hf evaluate BASE --scheme {model.scheme} -o OTHER"
        )
    records = results.of(model.scheme)
    if not records:
        raise PublishError(
            f"the results in {str(folder)!r} are of {', '.join(results.schemes)}; {model.name!r} is {model.scheme}. "
            f"Measure it: qllm-hf evaluate BASE --scheme {model.scheme} -o {folder}"
        )
    for record in records:
        if different := _different(record.quantization, dict(model.stored)):
            raise PublishError(
                f"the results of {model.scheme} in {str(folder)!r} are of weights that were quantized otherwise: "
                f"{different}. Measure the folder itself: qllm-hf evaluate {model.name} -o OTHER"
            )
    return Measured(results, model.scheme)


def evidence(measured: Measured) -> bytes:
    """The records as lines of JSON. Of a folder only its name is said: whole paths are nobody's business."""
    return b"".join(readable_line(_public(record).to_json()) for record in measured.results.records)


def _public(record: Record) -> Record:
    return replace(record, model=_named(record.model))


def _named(model: str) -> str:
    if _HUB_ID.fullmatch(model) and not Path(model).exists():
        return model
    return Path(model).name or model


def _different(measured: dict[str, Any], stored: dict[str, Any]) -> str:
    """The first option in which two configs differ, or ""."""
    for key in sorted(stored.keys() | measured.keys()):
        if measured.get(key) != stored.get(key):
            return f"{key} was {measured.get(key)!r}, and is {stored.get(key)!r} here"
    return ""
