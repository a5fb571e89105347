"""The score of one ability from predictions that are already there: what the metrics for `evaluate` compute.

An item says which task it belongs to, so items of several tasks and abilities can come in one list.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ...errors import ConfigError, did_you_mean
from ..record import ABILITIES, Record, ability_scores
from ..registry import find_task
from ..statistics import Estimate, mean, recovery
from ..task import TaskInfo
from .rules import RULES
from .score import Score, score

MARK: Final = "mass"
"""The rule of tasks that lm_eval scores itself: the prediction is the item's mark as text, such as "1.0" or "0.37"."""

DETAILS: Final = {
    "choice": ("mean_of_groups",),
    "option": ("acc_before", "acc_drop"),
    "rated": ("turn 1", "turn 2"),
}
"""{rule: which details of a score the study reports}"""

_NONE: Final = Estimate(math.nan, math.nan)


def score_ability(
    ability: str,
    predictions: Sequence[str],
    references: Sequence[Mapping[str, Any]],
    baseline_predictions: Sequence[str] | None = None,
) -> dict[str, float]:
    """The ability's score with its standard error, and that of each of its tasks.

    The score is the mean over tasks of (value - chance) / (best - chance): 0 is guessing, 1 is perfect. It is nan if
    none of the items counts for this ability. Tasks that do not count, such as a variant of a benchmark that counts
    already, are reported but left out of it. Each task has `{task}`, `{task}_stderr`, `{task}_items` and
    `{task}_answered`, and some have `{task}/{detail}` (`DETAILS`).

    With a baseline, `{task}_recovery` is the part of its score above chance that is left and `{task}_change` the
    difference, both over the items that have a value in both runs, with paired standard errors. Where the baseline is
    not above chance by twice its standard error, nothing could be kept or lost: the recovery is nan, and the
    ability's, the mean over tasks, is without it.

    >>> items = [{"task": "qllm_gsm8k", "answers": ["18"], "group": ""}, {"task": "qllm_piqa", "answers": ["0"]}]
    >>> found = score_ability("emergent", ["So the answer is 18.", "1"], items)
    >>> found["emergent"], found["qllm_gsm8k"], "qllm_piqa" in found
    (1.0, 1.0, False)

    Args:
        ability: of `ABILITIES`.
        predictions: texts that the model wrote; for rule "choice" the number of the likeliest text from 0; for
            "rated" the judge's answer; for tasks that lm_eval scores the mark of the item.
        references: {"task", "answers", "group"} of each; items of other abilities are passed over.
        baseline_predictions: of another run of the same items, such as the model before quantization.

    Raises:
        ConfigError: no items, lists of different lengths, an unknown task, one without a chance level such as
            wikitext, or a prediction or answer that its rule cannot read.
    """
    if ability not in ABILITIES:
        raise ConfigError(
            f"there is no ability {ability!r}.{did_you_mean(ability, ABILITIES)} Abilities: {', '.join(ABILITIES)}."
        )
    _check_lists(predictions, references, baseline_predictions)
    report: dict[str, float] = {}
    records: list[Record] = []
    recoveries: list[Estimate] = []
    for task, places in _places(ability, references).items():
        info = find_task(task)
        items = [references[place] for place in places]
        now = [predictions[place] for place in places]
        found = _score(task, info, now, items)
        report |= _entries(task, info, found)
        records.append(
            Record(
                scheme="",
                ability=ability,
                task=task,
                metric=info.metric,
                value=found.value,
                stderr=found.stderr,
                items=found.items,
                chance=info.chance,
                best=info.best,
                in_ability=info.in_ability,
            )
        )
        if baseline_predictions is not None:
            before = [baseline_predictions[place] for place in places]
            kept, change = _compare(task, info, now, before, items)
            report |= _with_error(f"{task}_recovery", kept) | _with_error(f"{task}_change", change)
            if info.in_ability and not math.isnan(kept.value):
                recoveries.append(kept)
    whole = ability_scores(records).get(ability)
    summary = _with_error(ability, Estimate(whole.normalised, whole.normalised_stderr) if whole else _NONE)
    summary[f"{ability}_tasks"] = whole.tasks if whole else 0
    if baseline_predictions is not None:
        summary |= _with_error(f"{ability}_recovery", _of_independent(recoveries))
    return summary | report


def _check_lists(
    predictions: Sequence[str], references: Sequence[Mapping[str, Any]], baseline: Sequence[str] | None
) -> None:
    if not predictions and not references:
        raise ConfigError("there are no items: give at least one prediction and its reference.")
    for name, texts in (("predictions", predictions), ("baseline_predictions", baseline)):
        if texts is None:
            continue
        if len(texts) != len(references):
            raise ConfigError(f"{len(texts)} {name} and {len(references)} references: give one for each.")
        for place, text in enumerate(texts):
            if not isinstance(text, str):
                raise ConfigError(f'{name}[{place}] is {text!r}. Give text: "2" for the number 2.')


def _places(ability: str, references: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """{task of this ability: where its items are}, in the order of their first items."""
    places: dict[str, list[int]] = {}
    for place, reference in enumerate(references):
        if missing := {"task", "answers"} - reference.keys():
            raise ConfigError(f"references[{place}] lacks {', '.join(map(repr, sorted(missing)))}.")
        places.setdefault(reference["task"], []).append(place)
    infos = {task: find_task(task) for task in places}
    return {task: found for task, found in places.items() if infos[task].ability == ability}


def _score(task: str, info: TaskInfo, texts: Sequence[str], items: Sequence[Mapping[str, Any]]) -> Score:
    if info.chance is None:
        raise ConfigError(
            f"{task!r} gives {info.metric}. A perplexity, or anything else without a chance level and a best value, "
            "is no part of an ability: leave its items out."
        )
    rule = info.rule or MARK
    for number, (text, item) in enumerate(zip(texts, items, strict=True)):
        if complaint := _complaint(rule, text, item["answers"]):
            raise ConfigError(f"item {number} of {task!r}: {complaint}")
    try:
        return score(rule, texts, items)
    except ValueError as error:
        raise ConfigError(f"{task!r}: {error}") from error


def _complaint(rule: str, text: str, answers: Sequence[str]) -> str:
    """What keeps a rule from reading an item; it would be marked wrong without a word, or end in a foreign error."""
    if rule == MARK:
        try:
            is_mark = 0 <= float(text) <= 1
        except ValueError:
            is_mark = False
        return (
            "" if is_mark else f'lm_eval scores this task, so give the mark from 0 to 1 as text, "0.37", not {text!r}.'
        )
    if isinstance(answers, str):
        return f"answers is the text {answers!r}. Give a list of texts."
    if rule == "rated":
        return ""
    if not any(answer.strip() for answer in answers):
        return "answers is empty. Give at least one right answer."
    if rule == "choice":
        for each in (text, *answers):
            if not each.strip().isdecimal():
                return f'give the number of the likeliest text, counted from 0, such as "2", not {each!r}.'
    return ""


def _compare(
    task: str, info: TaskInfo, now: Sequence[str], before: Sequence[str], items: Sequence[Mapping[str, Any]]
) -> tuple[Estimate, Estimate]:
    """(recovery, change) over the items that have a value in both runs."""
    rule = RULES[info.rule or MARK]
    _score(task, info, before, items)
    both = [
        place
        for place, item in enumerate(items)
        if all(rule(texts[place], item["answers"]).value is not None for texts in (now, before))
    ]
    if not both:
        return _NONE, _NONE
    new, old = (
        _score(task, info, [texts[place] for place in both], [items[place] for place in both]).values
        for texts in (now, before)
    )
    change = mean([value - base for value, base in zip(new, old, strict=True)])
    return recovery(new, old, info.chance or 0.0) or _NONE, change


def _of_independent(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of estimates from different questions: their variances add up."""
    if not estimates:
        return _NONE
    n = len(estimates)
    return Estimate(
        math.fsum(each.value for each in estimates) / n, math.sqrt(math.fsum(each.stderr**2 for each in estimates)) / n
    )


def _entries(task: str, info: TaskInfo, found: Score) -> dict[str, float]:
    wanted = DETAILS.get(info.rule, ())
    return {
        **_with_error(task, Estimate(found.value, found.stderr)),
        f"{task}_items": found.items,
        f"{task}_answered": found.answered,
        **{f"{task}/{name}": found.details[name] for name in wanted if name in found.details},
    }


def _with_error(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_stderr": estimate.stderr}
