"""Times of several functions that take turns, so that what the machine does meanwhile meets all of them alike.

Weights are rotated: between two uses of the same copy more bytes are read than the last-level cache holds, as in a
model, where all other layers come between. A sample in which a thread of ours had to wait for a processor is dropped.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

BURST_SECONDS = 1e-3
"""A sample has as many calls as fill this time, so that the clock and the switch between functions do not count."""
MAX_CALLS = 16
WARM_BELOW_SECONDS = 5e-3
"""Functions faster than this run once before the clock starts: their code and their threads have gone cold."""
SLOW = 4
"""A function that takes longer than this many times the first one does not take part in every round."""
TOLERATED_WAIT = 0.02
TOLERATED_WAIT_NS = 20_000
FEWEST = 3
"""Undisturbed samples that make a median."""
PATIENCE = 3
"""At most this many times the rounds asked for, on a machine where others disturb."""
TASKS = Path("/proc/self/task")


@dataclass(frozen=True)
class Call:
    """A function to time, on one of the copies of its weight.

    Attributes:
        run: called with the number of a copy.
        seconds: about how long it takes.
        nbytes: of one copy.
    """

    name: str
    run: Callable[[int], object]
    seconds: float
    nbytes: int

    @property
    def calls(self) -> int:
        """How many are timed together."""
        return min(MAX_CALLS, max(1, round(BURST_SECONDS / self.seconds)))

    @property
    def warm(self) -> int:
        """How many run before."""
        return int(self.seconds < WARM_BELOW_SECONDS)

    def copies(self, round_bytes: int, cache_bytes: int) -> int:
        """How many copies of its weight keep it out of the cache, where a round of all reads `round_bytes`."""
        used = self.calls + self.warm
        return max(used, -(-used * cache_bytes // round_bytes))


@dataclass(frozen=True)
class Times:
    """Quartiles of the time of a call in seconds, of how many samples, and how many were dropped.

    `disturbed` says that there were so few clean samples that the others count too.
    """

    first: float
    median: float
    third: float
    samples: int
    dropped: int
    disturbed: bool


@dataclass(frozen=True)
class Sample:
    """Seconds that something took, and whether another process took our processors meanwhile."""

    seconds: float
    disturbed: bool


@dataclass
class Samples:
    """Of one thing, the undisturbed apart."""

    clean: list[float] = field(default_factory=list)
    disturbed: list[float] = field(default_factory=list)

    def add(self, sample: Sample, calls: int = 1) -> None:
        """One more, of that many calls."""
        (self.disturbed if sample.disturbed else self.clean).append(sample.seconds / calls)

    def times(self) -> Times:
        """Their quartiles."""
        enough = len(self.clean) >= FEWEST
        kept = self.clean if enough else self.clean + self.disturbed
        first, median, third = statistics.quantiles(kept, n=4, method="inclusive") if len(kept) > 1 else kept * 3
        return Times(first, median, third, len(kept), len(self.disturbed) if enough else 0, not enough)


def round_bytes(calls: Iterable[Call]) -> int:
    """Bytes of weights that one round of all of them reads."""
    return sum((call.calls + call.warm) * call.nbytes for call in calls)


def interleave(calls: Sequence[Call], copies: dict[str, int], rounds: int, seed: int = 0) -> dict[str, Times]:
    """Times by name. A round runs every function once, always in the same mixed order.

    Rounds go on until each function has as many undisturbed samples as were asked for, a slow one fewer of them.
    """
    order = random.Random(seed).sample(list(calls), len(calls))
    samples = {call.name: Samples() for call in calls}
    longest = max(1, rounds // FEWEST)
    stride = {call.name: min(longest, max(1, round(call.seconds / (SLOW * calls[0].seconds)))) for call in calls}
    at = dict.fromkeys(samples, 0)
    for number in range(PATIENCE * rounds):
        if number >= rounds and all(len(samples[name].clean) * stride[name] >= rounds for name in samples):
            break
        for call in order:
            if number % stride[call.name]:
                continue
            size = copies[call.name]
            places = [(at[call.name] + step) % size for step in range(call.warm + call.calls)]
            at[call.name] = (places[-1] + 1) % size
            for place in places[: call.warm]:
                call.run(place)
            burst = partial(_burst, call.run, places[call.warm :])
            samples[call.name].add(timed(burst), call.calls)
    return {name: found.times() for name, found in samples.items()}


def _burst(run: Callable[[int], object], places: list[int]) -> None:
    for place in places:
        run(place)


def timed(step: Callable[[], object]) -> Sample:
    """Run it, and say how long it took."""
    before, start = waited_ns(), time.perf_counter_ns()
    step()
    elapsed = time.perf_counter_ns() - start
    waited = waited_ns() - before
    return Sample(elapsed / 1e9, waited > max(TOLERATED_WAIT * elapsed, TOLERATED_WAIT_NS))


def waited_ns() -> int:
    """How long all threads of this process together stood ready to run and did not, in nanoseconds; 0 if not known.

    Source: Linux, Documentation/scheduler/sched-stats.rst, the second number of /proc/<pid>/schedstat.
    """
    total = 0
    if not TASKS.is_dir():
        return 0
    for task in TASKS.iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[1])
        except (OSError, IndexError):  # a thread that ended meanwhile
            continue
    return total
