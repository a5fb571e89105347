"""What is known about a task besides its questions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskInfo:
    """One task.

    Attributes:
        ability: one of the five groups.
        metric: the one that counts, by its name in lm_eval.
        chance: what guessing gets; None if the metric is no accuracy.
        longest: how many tokens an item may have, for batches that fit into memory.
    """

    ability: str
    metric: str
    chance: float | None
    longest: int
