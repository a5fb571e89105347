"""A sweep on many machines: jobs go out, scores come in, and this process alone writes the folder of results."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from ..errors import CheckpointError, ModelError, QllmError
from ..evaluation import engine
from ..evaluation.record import Record
from ..evaluation.store import Store, writing
from ..loading import check_float, model_on_meta
from ..results import BASELINE, Size, read_results, read_sizes, write_size
from ..sweep.known import find_known
from ..sweep.run import Progress, Swept, check_folder
from ..sweep.schedule import by_promise, expected_work
from ..sweep.schemes import Candidates
from .board import Board, Job, Wave
from .footprint import Footprint, footprint
from .pool import Event, Lost, Pool, Started
from .worker import Asked, Failed, Made, Order, Scored, Seen, Subject, look

RETRIES: Final = 3
"""How often a job that was lost with its machine is begun again."""
MORE: Final = 1.5
"""Times the memory that a job asks for after it ended for lack of it."""


@dataclass
class Attempts:
    """What became of a job.

    Attributes:
        job: its name.
        tasks: that it was to measure.
        nodes: where it was begun, once for each attempt; "?" where it was lost before it began.
        lost: why attempts were lost.
        seconds: of the last attempt, from when it was given away.
    """

    job: str
    tasks: tuple[str, ...]
    nodes: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Spread:
    """What came of a sweep on many machines: the same as of any, and where each job ran."""

    swept: Swept
    jobs: tuple[Attempts, ...]


@dataclass
class _Running:
    job: Job
    attempts: Attempts
    began: float


def sweep_on(
    pool: Pool,
    subject: Subject,
    tokenizer: Any,
    candidates: Candidates,
    tasks: Sequence[str],
    out: Path,
    asked: Asked | None = None,
    progress: Callable[[Progress], None] = lambda progress: None,
    *,
    retries: int = RETRIES,
    tell: Callable[[str], None] = lambda text: None,
) -> Spread:
    """The results of every candidate on every task, in `out`: the records of `qllm_hf.sweep.run.sweep`, in its order as
    far as many at once allow.

    A job that is lost with its machine is begun again elsewhere, `retries` times at most; what it had measured is
    kept. An error of this package is not repeated: it would be the same one.

    Args:
        tell: is called with what a person should know while it runs, such as a machine that is gone.

    Raises:
        BusyError: another process writes to the folder.
        CheckpointError: the folder holds results of another model, or a machine has other files of it.
        ConfigError, MissingExtraError: as `evaluate`, and before any job is given away: a machine lacks something.
        ModelError: no machine has the memory for the float model, or it could not be measured.
    """
    asked = asked or Asked()
    check_float(subject.where, trust_remote_code=subject.trust_remote_code)
    here = look(subject, asked, tuple(tasks))
    if isinstance(here, Failed):  # again, for the error itself
        engine.check(tasks, limit=asked.limit, data_dir=asked.data_dir, shots=asked.shots)
        raise CheckpointError(f"the model or the rows cannot be read here: {here.why}")
    with writing(out):
        check_folder(out, subject.name, here.revision)
        run = _Run(pool, subject, candidates, tasks, out, asked, progress, retries, tell, here)
        try:
            run.check_machines()
            run.go()
        finally:
            pool.cancel()
    return Spread(Swept(read_results(out), run.failures, run.warned), tuple(run.jobs.values()))


class _Run:
    """One sweep under way: what runs where, what failed, how often."""

    def __init__(
        self,
        pool: Pool,
        subject: Subject,
        candidates: Candidates,
        tasks: Sequence[str],
        out: Path,
        asked: Asked,
        progress: Callable[[Progress], None],
        retries: int,
        tell: Callable[[str], None],
        here: Seen,
    ) -> None:
        self.pool, self.subject, self.candidates, self.out, self.asked = pool, subject, candidates, out, asked
        self.progress, self.retries, self.tell, self.here = progress, retries, tell, here
        self.store = Store(out)
        self.failures: dict[str, str] = {}
        self.warned: dict[str, tuple[str, ...]] = {}
        self.jobs: dict[str, Attempts] = {}
        self.running: dict[Any, _Running] = {}
        shapes = model_on_meta(subject.where, dtype=subject.dtype, trust_remote_code=subject.trust_remote_code)
        self.needs: dict[str, Footprint] = {}
        for label, config in candidates.items():
            try:
                self.needs[label] = footprint(shapes, config, batch_size=asked.batch_size, on_gpu=pool.gpus > 0)
            except QllmError as error:
                if label == BASELINE:
                    raise
                self.failures[label] = f"{type(error).__name__}: {error}"
        work = {task: expected_work(task, asked.data_dir, asked.shots, asked.limit) for task in tasks}
        cheapest = sorted(tasks, key=work.__getitem__)
        measured = {"model": subject.name, "revision": here.revision, "dtype": str(shapes.dtype).split(".")[-1]}
        known = {
            (label, task): record
            for label, config in candidates.items()
            for task in cheapest
            if (record := find_known(self.store.records, {**measured, **here.asks[task], "scheme": label}, config))
        }
        self.board = Board(candidates, cheapest, known, self._by_promise)
        for label in self.failures:
            self.board.fail(label)

    def check_machines(self) -> None:
        """Raises ConfigError or CheckpointError if a machine cannot do its part, and says which and why."""
        if not self.board.left:
            return
        need = self.needs[BASELINE]
        if refusal := self.pool.refusal(need):
            raise ModelError(f"the float model cannot be measured: {refusal}. Add a larger machine.")
        tasks = tuple(dict.fromkeys(task for _, task in self.board.left))
        found = self.pool.look(self.subject, self.asked, tasks, need)
        said = [f"{name}: {why}" for name, seen in found.items() if (why := self._differs(seen))]
        if said:
            raise CheckpointError(
                f"{len(said)} of {len(found)} machines cannot take part. {'; '.join(said)}. A model is given as an id "
                "on the Hub, or as a folder that every machine has under the same path; so is --data-dir."
            )

    def go(self) -> None:
        """Measure all that is missing."""
        for record in self.board.known.values():
            self._told(record, is_new=False)
        while self.board.left and BASELINE not in self.failures:
            self._give_away()
            if not self.running:
                break
            for handle, event in self.pool.events():
                self._note(handle, event)
        if BASELINE in self.failures:
            raise ModelError(f"the float model could not be measured: {self.failures[BASELINE]}")
        for label, task in self.board.left:  # none, unless the board is wrong: a hole is never silent
            self.failures.setdefault(label, f"{task} was not measured")

    def _give_away(self) -> None:
        """Jobs for all free slots, and one more that waits: who is free first takes it."""
        while len(self.running) <= self.pool.slots and (job := self.board.take()) is not None:
            need = self.needs[job.label]
            if refusal := self.pool.refusal(need):
                self._give_up(job, f"no machine can take it: {refusal}")
                continue
            order = Order(
                self.subject,
                self.asked,
                job.label,
                self.candidates[job.label],
                job.tasks,
                probing=job.wave is Wave.PROBE,
                threads=self.pool.cpus,
            )
            attempts = self.jobs.setdefault(job.name, Attempts(job.name, job.tasks))
            attempts.nodes.append("?")
            self.running[self.pool.submit(job.name, order, need)] = _Running(job, attempts, time.monotonic())

    def _note(self, handle: Any, event: Event) -> None:
        running = self.running[handle]
        job, attempts = running.job, running.attempts
        attempts.seconds = time.monotonic() - running.began
        if isinstance(event, Started):
            attempts.nodes[-1] = event.node
        elif isinstance(event, Made):
            self._keep_size(event)
            if event.warned:
                self.warned[job.label] = event.warned
        elif isinstance(event, Scored):
            self._keep(event, attempts.nodes[-1])
        elif isinstance(event, Failed):
            why = f"{event.why} (on {attempts.nodes[-1]})"
            if event.again:
                self._lost(running, why, no_memory=True)
            else:
                self._give_up(job, why)
        else:
            del self.running[handle]
            self.board.release(job)
            if isinstance(event, Lost):
                self._lost(running, event.why, no_memory=event.no_memory)

    def _lost(self, running: _Running, why: str, *, no_memory: bool) -> None:
        """A job is to be begun again, with more memory if it had too little; or it was tried too often."""
        job, attempts = running.job, running.attempts
        attempts.lost.append(why)
        if len(attempts.lost) > self.retries:
            tried = f"{len(attempts.lost)} attempts" if self.retries else "1 attempt, and no retries"
            self._give_up(job, f"lost on {', '.join(attempts.nodes)} after {tried}: {why}")
            return
        if no_memory:
            need = self.needs[job.label]
            self.needs[job.label] = replace(need, work=need.work + round((MORE - 1) * need.total))
        self.tell(f"{job.name} was lost on {attempts.nodes[-1]} and is begun again: {why}")

    def _give_up(self, job: Job, why: str) -> None:
        self.failures.setdefault(job.label, f"{job.name}: {why}")
        self.board.fail(job.label)

    def _keep(self, scored: Scored, node: str) -> None:
        record = Record.from_json(scored.record)
        if (record.revision, record.versions) != (self.here.revision, self.here.versions):
            raise CheckpointError(
                f"{node} measured {record.scheme} {record.task} with other files or libraries than this machine has: "
                f"{self._differs(Seen(record.revision, record.versions, self.here.asks))}. The score was not kept."
            )
        if self.board.keep(record):
            self.store.add(record, scored.samples)
            self._told(record, is_new=True, node=node)

    def _keep_size(self, made: Made) -> None:
        size = Size.from_json(made.size)
        if read_sizes(self.out, self.subject.name, self.here.revision).get(size.scheme) != size:
            write_size(self.out, size)

    def _told(self, record: Record, *, is_new: bool, node: str = "") -> None:
        done = self.board.total - len(self.board.left)
        self.progress(Progress(record, done, self.board.total, is_new, node))

    def _by_promise(self, labels: Sequence[str]) -> Sequence[str]:
        return by_promise(labels, read_results(self.out))

    def _differs(self, seen: Seen | Failed) -> str:
        """What a machine has otherwise than this one, or why it has nothing; "" if it is the same."""
        if isinstance(seen, Failed):
            return seen.why
        said = []
        if seen.revision != self.here.revision:
            said.append(f"its model is {seen.revision or 'of no revision'}, and here it is {self.here.revision}")
        for name in sorted(seen.versions.keys() | self.here.versions.keys()):
            theirs, ours = seen.versions.get(name, "none"), self.here.versions.get(name, "none")
            if theirs != ours:
                said.append(f"{name} {theirs}, and here {ours}")
        other = [task for task, asks in seen.asks.items() if asks != self.here.asks[task]]
        if other:
            said.append(f"other questions for {', '.join(other)}")
        return ", ".join(said)
