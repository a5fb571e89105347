"""What would change the choice: other memory, contexts, batches, tolerances, abilities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from ..published.benchmarks import ABILITIES
from ..reporting.text import bytes_text
from ..results import Results
from .candidates import Candidate, Sizes, candidates
from .choose import Choice, choose
from .merge import adjust, merge
from .rules import rules_for
from .situation import Situation

_SHORTEST, _LONGEST = 512, 1 << 17
_BATCHES = 1024


@dataclass(frozen=True)
class Change:
    """One way to another choice.

    Attributes:
        if_: what would have to be different.
        scheme: what would be chosen then; "" if nothing would fit.
        loss: its expected loss in percent; None if nothing would fit.
        total_bytes: that it would take.
    """

    if_: str
    scheme: str
    loss: float | None
    total_bytes: int | None


def decide(
    situation: Situation, costs: Mapping[str, Sizes], results: Results | None = None
) -> tuple[tuple[Candidate, ...], Choice]:
    """The candidates in a situation, and the choice among them."""
    advised = adjust(merge(rules_for(situation)), situation)
    found = candidates(situation, costs, advised, results)
    return found, choose(found, situation.tolerance, situation.memory_bytes)


def changes(situation: Situation, costs: Mapping[str, Sizes], results: Results | None = None) -> tuple[Change, ...]:
    """The nearest difference in each respect that leads to another scheme; respects in which none does are missing."""
    found, choice = decide(situation, costs, results)
    now = choice.chosen.scheme if choice.chosen else ""

    def first(steps: Iterable[tuple[str, Situation]]) -> list[Change]:
        for text, other in steps:
            change = _change(text, decide(other, costs, results)[1])
            if change.scheme != now:
                return [change]
        return []

    ways = [
        *_memory(situation, found, choice),
        *first(_steps(situation, "context", _halved(situation.context, _SHORTEST), "a context of {:,} tokens")),
        *first(_steps(situation, "context", _doubled(situation.context, _LONGEST), "a context of {:,} tokens")),
        *first(_steps(situation, "batch", _halved(situation.batch, 1), "a batch of {}")),
        *first(_steps(situation, "batch", _doubled(situation.batch, _BATCHES), "a batch of {}")),
        *first(_steps(situation, "tolerance", _tolerances(situation.tolerance, 0.5, 3), "a tolerance of {:g} %")),
        *first(_steps(situation, "tolerance", _tolerances(situation.tolerance, 2, 4), "a tolerance of {:g} %")),
    ]
    for text, abilities in _other_abilities(situation):
        ways += first([(text, replace(situation, abilities=abilities))])
    return tuple(ways)


def _memory(situation: Situation, found: tuple[Candidate, ...], choice: Choice) -> list[Change]:
    """With more memory, and with too little for the choice."""
    if situation.memory_bytes is None:
        return []
    now = choice.chosen
    ways = []
    for size in sorted(each.total_bytes for each in found if each.total_bytes > situation.memory_bytes):
        other = choose(found, situation.tolerance, size)
        if other.chosen is not None and other.chosen != now:
            ways.append(_change(f"memory of {bytes_text(size)} or more", other))
            break
    if now is not None:
        ways.append(
            _change(
                f"memory below {bytes_text(now.total_bytes)}", choose(found, situation.tolerance, now.total_bytes - 1)
            )
        )
    return ways


def _change(text: str, choice: Choice) -> Change:
    chosen = choice.chosen
    if chosen is None:
        return Change(text, "", None, None)
    return Change(text, chosen.scheme, chosen.loss.percent, chosen.total_bytes)


def _steps(situation: Situation, field: str, values: Iterable[float], text: str) -> Iterable[tuple[str, Situation]]:
    return ((text.format(value), replace(situation, **{field: value})) for value in values)  # type: ignore[arg-type]


def _halved(value: int, least: int) -> list[int]:
    found = []
    while (value := value // 2) >= least:
        found.append(value)
    return found


def _doubled(value: int, most: int) -> list[int]:
    found = []
    while (value := value * 2) <= most:
        found.append(value)
    return found


def _tolerances(value: float, factor: float, times: int) -> list[float]:
    return [value * factor ** (step + 1) for step in range(times)] if value else []


def _other_abilities(situation: Situation) -> list[tuple[str, tuple[str, ...]]]:
    """Each ability more, and each one less."""
    given = situation.abilities
    more = [(f"{name} as well", (*given, name)) for name in ABILITIES if name not in given and "all" not in given]
    less = [(f"no {name}", tuple(each for each in given if each != name)) for name in given if len(given) > 1]
    return more + less
