"""The score of one benchmark: its items, marked by its rule, as a mean with an error, and what the study adds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ...errors import ConfigError
from ..statistics import mean
from .rules import RULES, Mark

ORIGINAL: Final = "original"
ADVERSARIAL: Final = "adversarial"


@dataclass(frozen=True)
class Score:
    """One benchmark.

    Attributes:
        value: the mean over the items that count.
        stderr: its standard error; nan for a single item.
        items: how many count.
        answered: the part of the items with an answer; the rest was refused, empty or cannot be read, and is wrong.
        values: the value of each item that counts, for paired comparisons.
        details: further numbers of this benchmark, by name.
    """

    value: float
    stderr: float
    items: int
    answered: float
    values: tuple[float, ...]
    details: dict[str, float] = field(default_factory=dict)


def score(rule: str, predictions: Sequence[str], references: Sequence[Mapping[str, Any]]) -> Score:
    """The score of predictions by a rule of `RULES`.

    A reference is {"answers": the right ones, "group": the part of the benchmark an item belongs to, or ""}.

    Raises:
        ConfigError: no items, another number of references, or none that counts.
    """
    if len(predictions) != len(references) or not predictions:
        raise ConfigError(
            f"{len(predictions)} predictions and {len(references)} references: give one for each, and some."
        )
    marks = [RULES[rule](text, reference["answers"]) for text, reference in zip(predictions, references, strict=True)]
    groups = [str(reference.get("group") or "") for reference in references]
    return _REPORTS.get(rule, _plain)(marks, groups)


def _plain(marks: Sequence[Mark], groups: Sequence[str]) -> Score:
    """The mean; with groups also the mean of their means, and each of them."""
    kept = [(mark.value, group) for mark, group in zip(marks, groups, strict=True) if mark.value is not None]
    if not kept:
        raise ConfigError(f"none of the {len(marks)} predictions can be scored.")
    values = tuple(value for value, _ in kept)
    middle = mean(values)
    details = {}
    if names := sorted({group for _, group in kept if group}):
        of_group = {name: mean([value for value, group in kept if group == name]).value for name in names}
        details = {"mean_of_groups": sum(of_group.values()) / len(of_group), **of_group}
    return Score(middle.value, middle.stderr, len(values), _answered(marks), values, details)


def _robustness(marks: Sequence[Mark], groups: Sequence[str]) -> Score:
    """The accuracy on adversarial items; with their originals also that before, and the part of it that was lost.

    acc_drop = 1 - after / before: negative if the attack helped, left out where nothing was right before.
    """
    after = [mark for mark, group in zip(marks, groups, strict=True) if group != ORIGINAL]
    before = [mark for mark, group in zip(marks, groups, strict=True) if group == ORIGINAL]
    whole = _plain(after, [""] * len(after))
    details = {"acc_after": whole.value}
    if before:
        details["acc_before"] = _plain(before, [""] * len(before)).value
        if details["acc_before"] > 0:
            details["acc_drop"] = 1 - whole.value / details["acc_before"]
    return Score(whole.value, whole.stderr, whole.items, _answered(marks), whole.values, details)


def _answered(marks: Sequence[Mark]) -> float:
    return sum(mark.answered for mark in marks) / len(marks)


_REPORTS: Final[dict[str, Callable[[Sequence[Mark], Sequence[str]], Score]]] = {"option": _robustness}
