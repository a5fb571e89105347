"""What lm_eval logged of a task -> its score, and one line per item that a person can read.

The numbers come from the items, so the lines of the file are enough to compute them again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from ..shown import short
from .questions import prediction
from .scoring.rules import RULES
from .scoring.score import score
from .statistics import mean, mean_of_ratio
from .task import TaskInfo
from .texts.maths_errors import error_rates, maths_error
from .texts.repetition import condition_rates, look_at
from .upstream import FILTERS

Scored = tuple[dict[str, Any], list[dict[str, Any]]]
"""(the fields of a record that its items decide, a line for each item)."""


class Prepared(NamedTuple):
    """A task that is ready to be asked.

    Attributes:
        identity: what tells its records from others, besides the model.
        size: how many items there are.
        ask: asks the first items, or all, and scores them.
    """

    identity: dict[str, Any]
    size: int
    ask: Callable[[int | None], Scored]


WRITES_MUCH: Final = frozenset({"yes_no_chain", "digits_chain", "rated"})
"""Rules of texts that are long enough to be looked at for repetition and garbage."""


def read_samples(task: str, info: TaskInfo, logged: Sequence[dict[str, Any]]) -> Scored:
    """(value, stderr, items, answered, details of the record; lines for the file of samples)."""
    if not info.rule:
        return _scored_by_lm_eval(task, info, logged)
    predictions = [prediction(sample["doc"], sample["filtered_resps"]) for sample in logged]
    references = [{"answers": sample["doc"]["answers"], "group": sample["doc"]["group"]} for sample in logged]
    lines = []
    for sample, text, reference in zip(logged, predictions, references, strict=True):
        found = RULES[info.rule](text, reference["answers"])
        lines.append(
            {**_asked(sample), "prediction": text, **reference, "value": found.value, "answered": found.answered}
        )
    details: dict[str, float] = {}
    if info.rule == "digits_chain":
        details |= _maths(logged, predictions, lines)
    if info.rule in WRITES_MUCH:
        for line, text in zip(lines, predictions, strict=True):
            line["condition"] = look_at(text).verdict
        details |= {f"text: {name}": part for name, part in condition_rates(predictions).items()}
    return scores_of(info, predictions, references, details), lines


def scores_of(
    info: TaskInfo, predictions: Sequence[str], references: Sequence[dict[str, Any]], details: dict[str, float]
) -> dict[str, Any]:
    """The fields of a record that a rule decides."""
    found = score(info.rule, predictions, references)
    return {
        "value": found.value,
        "stderr": found.stderr,
        "items": found.items,
        "answered": found.answered,
        "details": {**found.details, **details},
    }


def _asked(sample: dict[str, Any]) -> dict[str, Any]:
    """What the model was asked, and what it said: its text, or the log-likelihood and the tokens of each choice.

    With the number of the right choice, and where in a long text the answer stood, if the task says so.
    """
    requests, answers, doc = sample["arguments"], sample["filtered_resps"], sample["doc"]
    asked: dict[str, Any] = {"id": sample["doc_id"], "prompt": requests[0][0]}
    if isinstance(answers[0], tuple):
        asked["choices"] = [request[1] for request in requests]
        asked["likelihoods"] = [[answer[0], getattr(answer, "tokens", None)] for answer in answers]
        if isinstance(doc.get("label"), int) and 0 <= doc["label"] < len(requests):
            asked["label"] = doc["label"]
    if isinstance(doc.get("position"), float):
        asked["position"] = doc["position"]
    return asked


def _maths(
    logged: Sequence[dict[str, Any]], predictions: Sequence[str], lines: list[dict[str, Any]]
) -> dict[str, float]:
    """Accuracy by the value of the number, and the kinds of mistakes among wrong answers; each line gets its own."""
    kinds = []
    values = []
    for sample, text, line in zip(logged, predictions, lines, strict=True):
        doc = sample["doc"]
        value = RULES["number_chain"](text, doc["answers"]).value
        values.append(value or 0.0)
        kind = maths_error(doc["question"], doc["solution"], text, answer_is_right=line["value"] == 1.0)
        line["error"] = kind
        kinds.append(kind)
    return {"acc_by_value": mean(values).value, **{f"error: {kind}": part for kind, part in error_rates(kinds).items()}}


def _scored_by_lm_eval(task: str, info: TaskInfo, logged: Sequence[dict[str, Any]]) -> Scored:
    """The mean of lm_eval's own marks; a perplexity is exp of a ratio of sums, with its error by the delta method."""
    logged = [sample for sample in logged if sample["filter"] == FILTERS.get(task, "none")]
    marks = [sample[info.metric] for sample in logged]
    if isinstance(marks[0], tuple):
        loss = mean_of_ratio([-mark[0] for mark in marks], [mark[1] for mark in marks])
        value = math.exp(loss.value)
        scores = {"value": value, "stderr": value * loss.stderr}
    else:
        found = mean([float(mark) for mark in marks])
        scores = {"value": found.value, "stderr": found.stderr}
    lines = [
        {**_asked(sample), "prediction": _shown(sample), "value": mark}
        for sample, mark in zip(logged, marks, strict=True)
    ]
    return {**scores, "items": len(marks)}, lines


def _shown(sample: dict[str, Any]) -> Any:
    answers = sample["filtered_resps"]
    return answers[0] if isinstance(answers[0], (str, float)) else None


def problem_of(line: Mapping[str, Any]) -> str | None:
    """What makes this no line for an item, or None. A line of another program may lack anything but its id."""
    if not isinstance(line.get("id"), int | str) or not isinstance(line.get("prompt", ""), str):
        return "its id or its prompt is none"
    value, label, position = line.get("value"), line.get("label"), line.get("position", 0.0)
    if (isinstance(value, float) and not math.isfinite(value)) or (isinstance(value, int) and abs(value) > 1e300):
        return f"value={short(value)}"
    if not isinstance(label, int | None) or not isinstance(position, int | float) or not math.isfinite(position):
        return f"label={short(label)}, position={short(position)}"
    found = line.get("likelihoods", [])
    choices = line.get("choices", [""] * len(found) if isinstance(found, list) else None)
    if not isinstance(choices, list) or len(choices) != len(found):
        return "it has not as many likelihoods as choices"
    if not all(isinstance(choice, str) for choice in choices):
        return "its choices are no texts"
    for each in found:
        is_pair = isinstance(each, list) and len(each) == 2 and isinstance(each[1], int | None)
        if not is_pair or not isinstance(each[0], int | float) or math.isnan(each[0]) or (each[1] or 1) < 1:
            return f"likelihood {short(each)}"
    return None
