"""Behind a cell of the grid: the scores of its tasks, and the items that went from right to wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..page.html import table, text
from ..published.query import published
from ..results import BASELINE, Results

MOST: Final = 10
"""Items that are shown of a task."""
_LONGEST: Final = 1_500
"""Characters of a prompt that are shown: its end, where the question is."""


@dataclass(frozen=True)
class Changed:
    """One item that a scheme got wrong and the float model right, or at least less right.

    Attributes:
        before, after: what the two wrote, or thought of each choice.
        worth: what the answers were worth.
    """

    id: Any
    prompt: str
    before: str
    after: str
    worth: tuple[float, float]


def tasks_of(results: Results, scheme: str, ability: str) -> tuple[str, ...]:
    """The tasks of an ability that were measured under a scheme, and with the float model."""
    return tuple(
        record.task
        for record in results.of(scheme)
        if record.ability == ability and results.record(BASELINE, record.task) is not None
    )


def changed_items(results: Results, scheme: str, task: str) -> tuple[Changed, ...]:
    """The items that lost most, first; () where the folder keeps no items."""
    before, after = (results.record(each, task) for each in (BASELINE, scheme))
    if before is None or after is None:
        return ()
    then = {line["id"]: line for line in results.lines(before)}
    found = []
    for line in results.lines(after):
        old = then.get(line["id"])
        if old is not None and _worth(line) < _worth(old):
            worth = (_worth(old), _worth(line))
            found.append(Changed(line["id"], str(line.get("prompt", "")), said(old), said(line), worth))
    return tuple(sorted(found, key=lambda item: item.worth[1] - item.worth[0]))


def said(line: Mapping[str, Any]) -> str:
    """What a model answered to an item: its text, or how likely it found each choice, in nats.

    >>> said({"choices": [" a", " b"], "likelihoods": [[-1.0, 1], [-0.5, 1]], "label": 0})
    '-1.00  a  (right)\\n-0.50  b'
    """
    choices: Sequence[str] | None = line.get("choices")
    if choices is None:
        return str(line.get("prediction") or "").strip() or "(nothing)"
    marks = ["  (right)" if line.get("label") == place else "" for place in range(len(choices))]
    values = [value for value, _ in line["likelihoods"]]
    return "\n".join(
        f"{value:.2f}  {choice.strip()}{mark}" for value, choice, mark in zip(values, choices, marks, strict=True)
    )


def tasks_html(results: Results, scheme: str, ability: str) -> str:
    """The scores of a cell's tasks, before and after."""
    rows = [["task", BASELINE, scheme, "change", "items", ""]]
    for task in tasks_of(results, scheme, ability):
        change = results.change(scheme, task)
        old, new = results.record(BASELINE, task), results.record(scheme, task)
        assert old is not None and new is not None
        difference = "-" if change is None else f"{change.difference.value:+.3f} ± {change.difference.stderr:.3f}"
        remark = "within noise" if change is not None and change.is_noise else ""
        rows.append([task, f"{old.value:.3f}", f"{new.value:.3f}", difference, str(new.items), remark])
    return f'<div class="qllm-card"><h3>{text(scheme)}, {text(ability)}</h3>{table(rows)}</div>'


def published_html(model: str, scheme: str, ability: str) -> str:
    """The published values of a cell. The study publishes scores, and no items."""
    rows = [["benchmark", "part", "FP16", scheme, "loss %", "unit"]]
    for row in published(model=model, ability=ability, scheme=scheme, main=True):
        loss = "-" if row.relative_loss is None else f"{row.relative_loss + 0:.1f}"
        rows.append([row.benchmark, row.subset or "-", f"{row.fp16:.4g}", f"{row.value:.4g}", loss, row.unit])
    hint = "The study published scores, and no items. A sweep of your own keeps them: qllm-hf demo --results DIR."
    return (
        f'<div class="qllm-card"><h3>{text(model)} as {text(scheme)}, {text(ability)}</h3>{table(rows)}'
        f'<p class="qllm-hint">{hint}</p></div>'
    )


def items_html(results: Results, scheme: str, task: str) -> str:
    """The changed items, each with both answers side by side."""
    found = changed_items(results, scheme, task)
    record = results.record(scheme, task)
    if record is None:
        return '<p class="qllm-hint">Choose a cell first.</p>'
    if not found:
        kept = "no item got worse" if results.lines(record) else "these results keep no items"
        return f'<div class="qllm-card"><h3>{text(task)}</h3><p>{text(scheme)}: {kept}.</p></div>'
    shown = "".join(_item(item, scheme) for item in found[:MOST])
    more = f" The {MOST} that lost most are shown." if len(found) > MOST else ""
    return (
        f'<div class="qllm-card"><h3>{text(task)}: {len(found)} of {record.items} items got worse under {text(scheme)}'
        f'</h3><p class="qllm-hint">{more}</p>{shown}</div>'
    )


def _item(item: Changed, scheme: str) -> str:
    prompt = item.prompt if len(item.prompt) <= _LONGEST else f"… {item.prompt[-_LONGEST:]}"
    before, after = (f"{worth:.2f}".rstrip("0").rstrip(".") for worth in item.worth)
    sides = ((f"{BASELINE}, worth {before}", item.before), (f"{scheme}, worth {after}", item.after))
    pair = "".join(f"<div>{_block(name, answer)}</div>" for name, answer in sides)
    return (
        f'<article class="qllm-item" aria-label="Question {text(item.id)}">{_block(f"Question {item.id}", prompt)}'
        f'<div class="qllm-pair">{pair}</div></article>'
    )


def _block(name: str, content: str) -> str:
    return f'<span class="qllm-who">{text(name)}</span><pre>{text(content)}</pre>'


def _worth(line: Mapping[str, Any]) -> float:
    value = line.get("value")
    return float(value) if isinstance(value, int | float) else 0.0
