"""The miniature tasks, for lm_eval: items of the curriculum that no training text contains, and how they are scored.

The YAML files in tasks/miniature name these functions. A file holds nothing but the id of its task and how it is
scored; what the task asks is in `qllm_hf.curriculum`.
"""

from __future__ import annotations

from typing import Any, Final

from ..curriculum.tasks import TASKS, held_out_items
from .task import TaskInfo

ITEMS: Final = 400
PREFIX: Final = "mini_"
_METRICS: Final = {"text": "nats_per_word", "greedy": "acc", "choice": "acc", "written": "exact_match"}

MINIATURE: Final[dict[str, TaskInfo]] = {
    PREFIX + name: TaskInfo(
        ability=task.ability,
        metric=_METRICS[task.scoring],
        chance=None if task.scoring == "text" else task.chance,
        longest=task.longest,
    )
    for name, task in TASKS.items()
}


def dataset(task: str, items: int = ITEMS, **_: Any) -> dict[str, Any]:
    """{"test": the first `items` test items of a task}: what `custom_dataset` of a YAML task names."""
    from datasets import Dataset

    rows = [
        {
            "prompt": item.prompt,
            "answer": item.answer,
            "target": item.target,
            "choices": list(item.choices),
            "label": item.choices.index(item.answer) if item.choices else -1,
            **item.meta,
        }
        for item in held_out_items(TASKS[task], items)
    ]
    return {"test": Dataset.from_list(rows)}


def written(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 if what was written is the answer; where only its end counts (steps of a calculation), if it ends like that."""
    text = results[0].strip()
    right = text.endswith(doc["target"]) if doc["target"] else text == doc["answer"].strip()
    return {"exact_match": float(right)}


def text_loss(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
    """Nats per word of a text: the same for every tokenizer, and a mean over texts, so it has a standard error."""
    log_likelihood, _ = results[0]
    return {"nats_per_word": -log_likelihood / len(doc["answer"].split())}
