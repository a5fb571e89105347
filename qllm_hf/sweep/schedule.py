"""In which order a sweep measures: what says most for the least work comes first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from ..evaluation.miniature import ITEMS, MINIATURE
from ..evaluation.questions import questions_of
from ..evaluation.record import ABILITIES, Record
from ..evaluation.registry import find_task
from ..results import Results

HOPELESS: Final = 0.5
"""A scheme that kept less than this part of what was measured first has its other tasks measured last."""
_CHARACTERS_PER_TOKEN: Final = 4
_WRITTEN: Final = 2_000
"""Tokens read in the time in which an answer is written: a written token takes about twenty read ones."""


def expected_work(task: str, data_dir: str | Path | None, shots: int | None, limit: int | None) -> float:
    """About how many tokens a task makes a model read. inf where its questions are with lm_eval and not here."""
    info = find_task(task)
    if task in MINIATURE:
        items, tokens, written = ITEMS, float(info.longest), info.metric == "exact_match"
    else:
        questions = questions_of(task, data_dir, shots)
        if questions is None:
            return float("inf")
        documents = questions.parts["test"]
        characters = sum(_length(document) for document in documents)
        items, tokens = len(documents), characters / _CHARACTERS_PER_TOKEN / len(documents)
        written = not any(document.get("choices") for document in documents)
    return min(items, limit or items) * (tokens + _WRITTEN * written)


def _length(document: Mapping[str, object]) -> int:
    """Characters that are read: the prompt once for each choice."""
    choices = document.get("choices")
    texts = [str(choice) for choice in choices] if isinstance(choices, list) else []
    return len(str(document.get("prompt", ""))) * max(1, len(texts)) + sum(map(len, texts))


def probes(tasks: Iterable[str], measure: Callable[[str], Record]) -> list[str]:
    """The tasks to begin with: of each ability, the first that says something.

    Args:
        tasks: the cheapest first.
        measure: gives the float model's score.

    A task on which the float model does no better than guessing cannot show a loss, so the next one is taken; if there
    is none, the ability's last one has to do.
    """
    ordered = list(tasks)
    chosen = []
    for ability in ABILITIES:
        for task in (task for task in ordered if find_task(task).ability == ability):
            candidate = task
            if is_informative(measure(task)):
                break
        else:
            if not any(find_task(task).ability == ability for task in ordered):
                continue
        chosen.append(candidate)
    return chosen


def is_informative(record: Record) -> bool:
    """Whether the float model is above guessing by two standard errors: only then can something be lost."""
    return record.chance is None or record.value - record.chance > 2 * record.stderr


def by_cost(tasks: Iterable[str], baseline: Mapping[str, Record]) -> list[str]:
    """Tasks in the order of the float model's seconds; those that can show no loss come last."""
    return sorted(tasks, key=lambda task: (not is_informative(baseline[task]), baseline[task].seconds))


def by_promise(schemes: Sequence[str], results: Results) -> list[str]:
    """Schemes in their order, those that have lost most of what was measured last."""

    def lost(scheme: str) -> bool:
        kept = [estimate.value for estimate in results.recovery(scheme).values()]
        return bool(kept) and sum(kept) / len(kept) < HOPELESS

    return sorted(schemes, key=lost)
