"""Scores as the `model-index` of a card: one entry for each, with its error and all that it depends on.

A score on the Hub is never replaced silently. Two entries are of the same measurement if data set, task and metric
agree; if their values or their terms (shots, items, weights) differ, that is a change which the user has to want.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..evaluation.record import Record
from ..evaluation.registry import find_task
from ..evaluation.study import STUDY
from ..evaluation.task import EVERY
from .frontmatter import INDEX

TASK_TYPE: Final = "text-generation"
BY: Final = "qllm_hf"
_DIGITS: Final = 6
_TERMS: Final = ("shots", "chat", "items", "limit", "scheme", "weights")


@dataclass(frozen=True)
class ChangedResult:
    """A score that is on the Hub with another value.

    Attributes:
        task: its id.
        there: what the Hub says, with its terms.
        here: what was measured now; "" if it was not.
    """

    task: str
    there: str
    here: str

    def __str__(self) -> str:
        if not self.here:
            return f"{self.task}: {self.there} on the Hub is of other weights, and it was not measured again"
        return f"{self.task}: {self.there} on the Hub, {self.here} here"


def model_index(records: Sequence[Record], name: str, weights: str) -> list[dict[str, Any]]:
    """The value of `model-index`: every score, a partial one with "partial" in the name of its metric.

    Args:
        name: of the model.
        weights: digest of its weights, so that scores of other weights can be told apart later.
    """
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    results = []
    for record in records:
        info = find_task(record.task)
        source = info.source
        named = info.benchmark or record.task
        partial = f", partial: the first {record.items} items" if record.is_partial else ""
        results.append(
            EvalResult(
                task_type=TASK_TYPE,
                dataset_type=source.hub or record.task,
                dataset_name=source.hub or named,
                dataset_config=source.config if source.config != EVERY else None,
                dataset_split=source.split if source.hub and record.task in STUDY else None,
                metric_type=record.metric,
                metric_value=round(record.value, _DIGITS),
                metric_name=f"{named}, {record.metric}{partial}",
                metric_config=record.task,
                metric_args=_arguments(record, weights),
            )
        )
    index: list[dict[str, Any]] = eval_results_to_model_index(name, results) if results else []
    return index


def _arguments(record: Record, weights: str) -> dict[str, Any]:
    values = {
        "stderr": None if math.isnan(record.stderr) else round(record.stderr, _DIGITS),
        "items": record.items,
        "limit": record.limit,
        "partial": True if record.is_partial else None,
        "shots": record.shots,
        "chat": record.chat,
        "seeds": dict(record.seeds) or None,
        "task_version": record.task_version or None,
        "judge": record.judge or None,
        "scheme": record.scheme,
        "weights": weights,
        "by": BY,
    }
    return {key: value for key, value in values.items() if value is not None}


def changed_results(there: Any, ours: Any, weights: str) -> tuple[ChangedResult, ...]:
    """The scores on the Hub that would be replaced, or would be left there for weights that are gone."""
    mine = dict(_metrics(ours))
    changed = []
    for key, metric in _metrics(there):
        task = str(metric.get("config") or metric.get("name") or metric.get("type"))
        now = mine.get(key)
        if now is not None and not _same(metric, now):
            changed.append(ChangedResult(task, _said(metric), _said(now)))
        elif now is None and _is_stale(metric, weights):
            changed.append(ChangedResult(task, _said(metric), ""))
    return tuple(changed)


def merge_index(there: Any, ours: list[dict[str, Any]], weights: str, name: str) -> list[dict[str, Any]]:
    """Our scores, after those of others that are on the card; ours of earlier weights go."""
    mine = dict(_metrics(ours))
    kept = []
    for result in _results(there):
        metrics = [
            metric
            for key, metric in _metrics([{"results": [result]}])
            if key not in mine and not _is_stale(metric, weights)
        ]
        if metrics:
            kept.append({**result, "metrics": metrics})
    results = [*kept, *_results(ours)]
    return [{"name": name, "results": results}] if results else []


def index_of(front: Mapping[str, Any]) -> Any:
    """The model index of a card's block, or None."""
    return front.get(INDEX)


def _results(index: Any) -> Iterator[dict[str, Any]]:
    for model in index if isinstance(index, list) else []:
        results = model.get("results") if isinstance(model, dict) else None
        yield from (each for each in results or [] if isinstance(each, dict))


def _metrics(index: Any) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """(what is measured, metric) of each score."""
    for result in _results(index):
        data = result.get("dataset") or {}
        where = tuple(str(data.get(key) or "") for key in ("type", "config", "split"))
        for metric in _dicts(result.get("metrics")):
            yield (*where, str(metric.get("type")), str(metric.get("config") or "")), metric


def _dicts(values: Any) -> Iterable[dict[str, Any]]:
    return [each for each in values or [] if isinstance(each, dict)]


def _is_stale(metric: Mapping[str, Any], weights: str) -> bool:
    """Whether a score was written by us for weights that are no longer there."""
    arguments = _terms(metric)
    return arguments.get("by") == BY and arguments.get("weights") != weights


def _terms(metric: Mapping[str, Any]) -> Mapping[str, Any]:
    found = metric.get("args")
    return found if isinstance(found, Mapping) else {}


def _same(there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    theirs, mine = _terms(there), _terms(here)
    if any(theirs.get(key) != mine.get(key) for key in _TERMS if key in theirs):
        return False
    try:
        return math.isclose(float(there["value"]), float(here["value"]), abs_tol=10**-_DIGITS)
    except (TypeError, ValueError, KeyError):
        return False


def _said(metric: Mapping[str, Any]) -> str:
    terms = _terms(metric)
    said = [f"{key} {terms[key]}" for key in ("items", "shots", "weights") if key in terms]
    return f"{metric.get('type')} {metric.get('value')}" + (f" ({', '.join(said)})" if said else "")
