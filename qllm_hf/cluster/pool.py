"""Machines that do jobs, as the sweep sees them; `ray_pool.py` has those of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from .footprint import Footprint
from .worker import Asked, Failed, Made, Order, Scored, Seen, Subject


@dataclass(frozen=True)
class Started:
    """A machine has begun with a job."""

    node: str


@dataclass(frozen=True)
class Lost:
    """A job will not go on: its machine or its process is gone.

    Attributes:
        why: what is known of it, one line.
        no_memory: whether the process was ended because memory ran out.
    """

    why: str
    no_memory: bool = False


@dataclass(frozen=True)
class Ended:
    """A job is over: it said all that it had to say."""


Event = Started | Made | Scored | Failed | Lost | Ended


class Pool(Protocol):
    """Machines that take jobs. Each job's events come in order; those of several jobs in any order."""

    cpus: int
    """Cores that a job gets."""
    gpus: float
    """Accelerators that a job gets."""

    def look(self, subject: Subject, asked: Asked, tasks: tuple[str, ...], need: Footprint) -> dict[str, Seen | Failed]:
        """{machine: what it has}, of all machines that could take a job with this need."""

    def refusal(self, need: Footprint) -> str:
        """Why no machine can ever take a job with this need; "" if one can."""

    @property
    def slots(self) -> int:
        """How many jobs can run at once, memory aside."""

    def submit(self, name: str, order: Order, need: Footprint) -> Any:
        """Begin a job; gives what its events are told by."""

    def events(self) -> Iterator[tuple[Any, Event]]:
        """What has happened since the last call, or after a short wait nothing."""

    def cancel(self) -> None:
        """End what is running."""
