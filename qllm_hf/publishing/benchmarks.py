"""Scores for the leaderboards of the Hub: `.eval_results/NAME.yaml`, for its registered benchmarks alone.

The Hub shows such a score on the page of the benchmark, so only whole test sets get there, asked as the benchmark asks.
Source: https://huggingface.co/docs/hub/eval-results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from .. import __version__
from ..evaluation.record import Record

FOLDER: Final = ".eval_results"


@dataclass(frozen=True)
class Benchmark:
    """A benchmark that the Hub keeps a leaderboard of.

    Attributes:
        dataset, task: its ids there.
        items: how many its test set has; a score of fewer is none.
    """

    dataset: str
    task: str
    items: int


GSM8K: Final = Benchmark("openai/gsm8k", "gsm8k", 1319)
REGISTERED: Final[dict[str, Benchmark]] = {"qllm_gsm8k": GSM8K, "gsm8k": GSM8K}
"""Task here -> benchmark there. Another one is a line here, once the Hub has registered it."""


def leaderboard_files(records: Sequence[Record]) -> dict[str, bytes]:
    """{path in the model's folder: content}: one file for each score that belongs on a leaderboard."""
    import yaml  # type: ignore[import-untyped]

    files = {}
    for record in records:
        benchmark = REGISTERED.get(record.task)
        if benchmark is None or record.is_partial or record.items != benchmark.items:
            continue
        content = yaml.safe_dump([_entry(benchmark, record)], sort_keys=False, allow_unicode=True)
        files[f"{FOLDER}/{record.task}.yaml"] = content.encode("utf-8")
    return files


def _entry(benchmark: Benchmark, record: Record) -> dict[str, Any]:
    """The form of `huggingface_hub.eval_result_entries_to_yaml`, which tests compare it with."""
    terms = [record.scheme, f"{record.shots}-shot", f"n={record.items}", f"{record.metric} in percent"]
    entry: dict[str, Any] = {
        "dataset": {"id": benchmark.dataset, "task_id": benchmark.task},
        "value": round(100 * record.value, 4),
    }
    if record.date:
        entry["date"] = record.date
    entry["notes"] = ", ".join([*terms, f"qllm_hf {record.versions.get('qllm_hf', __version__)}"])
    return entry
