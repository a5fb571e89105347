"""Operations with several implementations: which one runs, and why those before it do not."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from .errors import ConfigError

RequestT = TypeVar("RequestT", contravariant=True)


class Candidate(Protocol[RequestT]):
    """One way to run an operation.

    Attributes:
        name: what an environment variable or `prefer` calls it.
        summary: half a sentence on how it works.
        automatic: whether it runs without being asked for by name.
        refuses: why it cannot take a request, or None.
    """

    @property
    def name(self) -> str: ...
    @property
    def summary(self) -> str: ...
    @property
    def automatic(self) -> bool: ...
    @property
    def refuses(self) -> Callable[[RequestT], str | None]: ...


CandidateT = TypeVar("CandidateT", bound="Candidate[Any]")


@dataclass(frozen=True)
class Resolution(Generic[CandidateT]):
    """The implementation that runs, and (name, reason) of each one that was passed over before it."""

    chosen: CandidateT
    refused: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        passed = "".join(f"; not {name}: {reason}" for name, reason in self.refused)
        return f"{self.chosen.name} ({self.chosen.summary}){passed}"


class Choices(Generic[RequestT, CandidateT]):
    """The choice among the implementations of one operation.

    Args:
        variable: the environment variable that names one to use where it can run.
        table: gives all of them, best first; the last one takes every request.
    """

    def __init__(self, variable: str, table: Callable[[], Sequence[CandidateT]]) -> None:
        self.variable, self.table = variable, table
        self.changes = 0
        """How often `prefer` began or ended: what was resolved before may be out of date."""
        self._preferred: str | None = None

    def _known(self, name: str | None) -> str | None:
        names = [candidate.name for candidate in self.table()]
        if name is not None and name not in names:
            raise ConfigError(f"{self.variable}={name!r} is no implementation: allowed are {', '.join(names)}.")
        return name

    @contextlib.contextmanager
    def prefer(self, name: str | None) -> Iterator[None]:
        """Within the block, run the named implementation wherever it can take the request.

        Raises:
            ConfigError: there is no implementation of that name.
        """
        before, self._preferred = self._preferred, self._known(name)
        self.changes += 1
        try:
            yield
        finally:
            self._preferred = before
            self.changes += 1

    @property
    def asked_for(self) -> str | None:
        """What `prefer` or the environment variable names, which may be no implementation."""
        return self._preferred or os.environ.get(self.variable)

    def preferred(self) -> str | None:
        """The implementation that the user asked for: by `prefer(name)`, or by the environment variable.

        Raises:
            ConfigError: the variable names no implementation.
        """
        return self._preferred or self._known(os.environ.get(self.variable))

    def resolve(self, request: RequestT) -> Resolution[CandidateT]:
        """Which implementation takes a request, and why those before it do not.

        Raises:
            ConfigError: the variable names no implementation.
        """
        wanted, table = self.preferred(), self.table()
        for candidate in table:
            if candidate.name == wanted and candidate.refuses(request) is None:
                return Resolution(candidate, ())
        refused: list[tuple[str, str]] = []
        for candidate in table:
            reason = candidate.refuses(request)
            if reason is None and not candidate.automatic:
                reason = f"runs only on demand ({self.variable}={candidate.name})"
            if reason is None:
                return Resolution(candidate, tuple(refused))
            refused.append((candidate.name, reason))
        raise AssertionError("the last implementation accepts everything")
