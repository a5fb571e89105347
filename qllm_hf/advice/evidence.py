"""What is known about the loss of a scheme in a situation: measured, published, added up from parts, or only a rule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from ..results import BASELINE, Results
from ..scheme import Scheme
from .like import halves, published_loss
from .loss import Loss
from .merge import merge
from .rules import rules_for
from .situation import EMERGENT_TOPICS, TOLERANCE, Situation

TASKS: Final[Mapping[str, str]] = {
    "qllm_mmlu": "icl",
    "qllm_ceval": "icl",
    "qllm_arc_challenge": "if",
    "qllm_arc_easy": "if",
    "qllm_hellaswag": "if",
    "qllm_strategyqa": "mr",
    "qllm_gsm8k": "mr",
    "qllm_calibration": "sc",
    "mini_in_context": "icl",
    "mini_formatting": "if",
    "mini_arithmetic": "mr",
    "mini_rules": "mr",
    "mini_calibration": "sc",
}
"""Which of our emergent tasks speak of which topic; in the other abilities, ability and topic are the same."""


def expected_loss(situation: Situation, topic: str, label: str, results: Results | None = None) -> Loss:
    """What a scheme loses in a topic, by the best evidence there is.

    What is quantized more cannot lose less: where published numbers say so they are noise, and the larger one counts.

    Args:
        label: a scheme, or a measured one with its method: "W3+gptq".
        results: scores of this very model; the best evidence where they speak of the topic.
    """
    if label == BASELINE:
        return Loss(topic, 0.0, "baseline", "the float model itself")
    if results is not None and (seen := _measured(results, topic, label)) is not None:
        return seen
    name, plus, _ = label.partition("+")
    if plus:
        return Loss(topic, None, "none", f"nothing was published or measured for {label}")
    scheme = Scheme.parse(name)
    found = published_loss(situation, topic, name) or _partly_by_rule(situation, topic, scheme)
    if found.percent is None:
        return found
    parts = [loss for part in _less(scheme) if (loss := published_loss(situation, topic, part)) is not None]
    worst = max((found, *parts), key=lambda loss: loss.percent or 0.0)
    return found if worst is found else replace(worst, kind="parts")


def _measured(results: Results, topic: str, label: str) -> Loss | None:
    """100 minus the mean recovery, over the tasks of a topic, of this very model."""
    kept = []
    for task in results.tasks:
        change = results.change(label, task)
        if change is None or change.recovery is None or not change.record.in_ability:
            continue
        ability = change.record.ability
        if topic in (_topics_of(task) if ability == "emergent" else (ability,)):
            kept.append(change.recovery)
    if not kept:
        return None
    error = math.sqrt(math.fsum(each.stderr**2 for each in kept)) / len(kept)
    percent = 100 * (1 - math.fsum(each.value for each in kept) / len(kept))
    what = f"{len(kept)} task{'s' * (len(kept) != 1)} in {results.folder}"
    return Loss(topic, percent, "measured", what, stderr=None if math.isnan(error) else 100 * error)


def _topics_of(task: str) -> tuple[str, ...]:
    """What an emergent task speaks of; one that is not known here of all of them."""
    return (TASKS[task],) if task in TASKS else EMERGENT_TOPICS


def _partly_by_rule(situation: Situation, topic: str, scheme: Scheme) -> Loss:
    """Where W or KV has no numbers: the rule about both, or numbers of one plus what a rule allows the other."""
    by_rule = _by_rule(situation, topic, scheme)
    if by_rule.kind == "rule" or scheme.kv == 16 or scheme.w == 16:
        return by_rule
    found = [
        published_loss(situation, topic, half) or _by_rule(situation, topic, Scheme.parse(half))
        for half in halves(scheme)
    ]
    if any(loss.percent is None for loss in found):
        return by_rule
    what = "; ".join(f"{half}: {loss.what}" for half, loss in zip(halves(scheme), found, strict=True))
    return Loss(topic, sum(loss.percent or 0.0 for loss in found), "parts", what)


def _less(scheme: Scheme) -> list[str]:
    """The schemes that quantize only some of what this one does."""
    parts = {Scheme(w=scheme.w), Scheme(w=scheme.w, a=scheme.a), Scheme(w=scheme.w, kv=scheme.kv), Scheme(kv=scheme.kv)}
    return sorted(str(part) for part in parts - {Scheme()} if part != scheme)


def _by_rule(situation: Situation, topic: str, scheme: Scheme) -> Loss:
    """The study's threshold where one of its rules recommends these bits, or fewer."""
    rules = tuple(rule for rule in rules_for(situation) if topic in rule.topics)
    if rules and merge(rules).covers(scheme):
        named = ", ".join(rule.id for rule in rules)
        return Loss(topic, TOLERANCE, "rule", f"{named}: below {TOLERANCE:g} % as the study says, without numbers")
    return Loss(topic, None, "none", "nothing was published")
