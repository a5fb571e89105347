"""What a sweep on many machines measures next: every pair of scheme and task once, what says most first.

The order is that of `qllm_hf.sweep.run.sweep`, as far as many at once allow: the float model on the cheapest task of
each ability that says something, all schemes on these, the float model's other tasks, and with their costs known the
rest. Here is no machine and no clock: the same answers give the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from ..evaluation.record import ABILITIES, Record
from ..evaluation.registry import find_task
from ..results import BASELINE
from ..sweep.schedule import by_cost, is_informative

Pair = tuple[str, str]
"""(scheme, task)."""


class Wave(IntEnum):
    """Which part of a sweep a job belongs to; lower numbers go first."""

    PROBE = 0
    FIRST = 1
    BASELINE = 2
    REST = 3


@dataclass(frozen=True)
class Job:
    """Tasks of one ability under one scheme, measured one after the other with one loaded model.

    Attributes:
        label: the scheme, such as "W4KV8".
        ability: that the tasks belong to.
        tasks: in the order in which they are asked.
        wave: when. A probe ends with its first task that can show a loss; the others come later.
    """

    label: str
    ability: str
    tasks: tuple[str, ...]
    wave: Wave

    @property
    def name(self) -> str:
        """As a person reads it: "W4KV8 · dialogue"; the tasks that come later have a + behind it."""
        return f"{self.label} · {self.ability}" + ("+" if self.wave >= Wave.BASELINE else "")


class Board:
    """All pairs of scheme and task: which are known, which are being measured, which are left.

    Args:
        labels: schemes in their order; the float model is among them.
        tasks: the cheapest first.
        known: scores that are there already.
        by_promise: puts schemes in the order in which they are worth measuring.
    """

    def __init__(
        self,
        labels: Iterable[str],
        tasks: Sequence[str],
        known: Mapping[Pair, Record],
        by_promise: Callable[[Sequence[str]], Sequence[str]] = lambda labels: labels,
    ) -> None:
        self.schemes = [label for label in labels if label != BASELINE]
        self.by_promise = by_promise
        self.known = dict(known)
        self.failed: set[str] = set()
        self._taken: set[Pair] = set()
        abilities = {task: find_task(task).ability for task in tasks}
        self._tasks = {name: found for name in ABILITIES if (found := [t for t in tasks if abilities[t] == name])}

    @property
    def total(self) -> int:
        """How many pairs there are."""
        return (1 + len(self.schemes)) * sum(map(len, self._tasks.values()))

    @property
    def left(self) -> list[Pair]:
        """Pairs without a score whose scheme has not failed."""
        return [
            (label, task)
            for label in (BASELINE, *self.schemes)
            for tasks in self._tasks.values()
            for task in tasks
            if (label, task) not in self.known and label not in self.failed
        ]

    def take(self) -> Job | None:
        """The most urgent job that can be done now; its pairs are not given to anyone else until `release`."""
        for job in self._ready():
            self._taken |= {(job.label, task) for task in job.tasks}
            return job
        return None

    def keep(self, record: Record) -> bool:
        """Note a score; False if there is one already: then the new one is not wanted."""
        pair = (record.scheme, record.task)
        if pair in self.known:
            return False
        self.known[pair] = record
        return True

    def release(self, job: Job) -> None:
        """A job is over, or lost: what it did not measure may be taken again."""
        self._taken -= {(job.label, task) for task in job.tasks}

    def fail(self, label: str) -> None:
        """Measure no more of a scheme."""
        self.failed.add(label)

    def _ready(self) -> Iterable[Job]:
        probed = {ability: probe for ability in self._tasks if (probe := self._probe(ability)) is not None}
        for ability, tasks in self._tasks.items():
            if ability not in probed:
                yield from self._job(BASELINE, ability, tasks, Wave.PROBE)
        schemes = [label for label in self.schemes if label not in self.failed]
        for label in schemes:
            for ability, probe in probed.items():
                yield from self._job(label, ability, [probe], Wave.FIRST)
        for ability in probed:
            yield from self._job(BASELINE, ability, self._tasks[ability], Wave.BASELINE)
        baseline = {task: record for (label, task), record in self.known.items() if label == BASELINE}
        measured = [ability for ability in probed if all(task in baseline for task in self._tasks[ability])]
        measured.sort(key=lambda ability: sum(baseline[task].seconds for task in self._tasks[ability]))
        if measured:
            for label in self.by_promise(schemes):
                for ability in measured:
                    yield from self._job(label, ability, by_cost(self._tasks[ability], baseline), Wave.REST)

    def _probe(self, ability: str) -> str | None:
        """The task that all schemes are asked first; None while it is not known which."""
        for task in self._tasks[ability]:
            record = self.known.get((BASELINE, task))
            if record is None:
                return None
            if is_informative(record):
                return task
        return self._tasks[ability][-1]

    def _job(self, label: str, ability: str, tasks: Sequence[str], wave: Wave) -> Iterable[Job]:
        """At most one job: of the tasks that nobody has, and nothing while a probe is under way."""
        if wave is Wave.PROBE and any((label, task) in self._taken for task in tasks):
            return
        open_ = [task for task in tasks if (label, task) not in self.known and (label, task) not in self._taken]
        if open_:
            yield Job(label, ability, tuple(open_), wave)
