"""A score with where it comes from, and what several of them say together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

ABILITIES: Final = ("nlp", "emergent", "trust", "dialogue", "long")


@dataclass(frozen=True)
class Record:
    """One score of one model under one scheme.

    Attributes:
        scheme: such as "W4KV8".
        ability: one of `ABILITIES`.
        task: id of the task.
        metric: what `value` is, such as "acc", a part of 1, or "nats_per_word".
        value: the mean over the items.
        stderr: its standard error.
        items: how many items it is the mean of.
        chance: the value that guessing gets; None if the metric has none.
    """

    scheme: str
    ability: str
    task: str
    metric: str
    value: float
    stderr: float
    items: int
    chance: float | None

    @property
    def is_accuracy(self) -> bool:
        """Whether the value is a part of answers that were right: these can be averaged, losses cannot."""
        return self.chance is not None


@dataclass(frozen=True)
class AbilityScore:
    """The mean accuracy of the tasks of one ability, each task counting the same, and its standard error."""

    value: float
    stderr: float
    chance: float
    tasks: int


def ability_scores(records: Iterable[Record]) -> dict[str, AbilityScore]:
    """{ability: score} of the records of one scheme, in the order of `ABILITIES`; without accuracies there is none.

    The items of different tasks are different questions, so their errors are independent and their variances add up.
    """
    found: dict[str, list[Record]] = {}
    for record in records:
        if record.is_accuracy:
            found.setdefault(record.ability, []).append(record)
    return {
        ability: AbilityScore(
            value=sum(record.value for record in group) / len(group),
            stderr=math.sqrt(sum(record.stderr**2 for record in group)) / len(group),
            chance=sum(record.chance or 0.0 for record in group) / len(group),
            tasks=len(group),
        )
        for ability in ABILITIES
        if (group := found.get(ability))
    }
