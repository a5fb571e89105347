"""A request under way: who waits for its answer, and why it may end before it is whole."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Final, Literal, TypeVar

Reason = Literal["left", "late", "ending"]
Result = TypeVar("Result")

TOLD: Final[dict[str, tuple[int, str]]] = {
    "left": (499, "the client left before its answer was there."),  # by nginx's number; nobody reads it
    "late": (504, "the answer was not there in the time that this server gives one. Ask for fewer tokens."),
    "ending": (503, "this server is ending, and the answer was not there yet. Ask again."),
}
"""Status and sentence for every reason to stop."""


class StoppedError(Exception):
    """An answer that ended before it was whole; the message is a sentence of `TOLD`."""

    def __init__(self, reason: Reason) -> None:
        self.status, sentence = TOLD[reason]
        super().__init__(sentence)


class Caller:
    """Whoever sent one request. Made and stopped on the event loop; `reason` can be read from any thread.

    Attributes:
        reason: why the answer ends, or None as long as it goes on.
        began: whether the engine has been asked. What goes wrong before is about the request.
    """

    def __init__(self) -> None:
        self.reason: Reason | None = None
        self.began = False
        self._stopped = asyncio.Event()
        self._last_acts: list[Callable[[Reason], object]] = []

    def stop(self, reason: Reason) -> None:
        """End the answer. The first reason counts."""
        if self.reason is None:
            self.reason = reason
            self._stopped.set()
            for act in self._last_acts:
                act(reason)

    def on_stop(self, act: Callable[[Reason], object]) -> None:
        """Call `act` when the answer is ended, at once if it has been."""
        if self.reason is None:
            self._last_acts.append(act)
        else:
            act(self.reason)

    def check(self) -> None:
        """Raises StoppedError where nobody waits any more."""
        if self.reason is not None:
            raise StoppedError(self.reason)

    async def until_stopped(self) -> None:
        """Comes back when the answer is ended."""
        await self._stopped.wait()

    async def wait(self, work: Awaitable[Result]) -> Result:
        """What `work` comes to; it is cancelled if the answer is ended first.

        Raises:
            StoppedError: it was.
        """
        task, stopped = asyncio.ensure_future(work), asyncio.ensure_future(self.until_stopped())
        try:
            await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self.check()
            return task.result()
        finally:
            task.cancel()
            stopped.cancel()


_current: ContextVar[Caller | None] = ContextVar("caller", default=None)


def calling(caller: Caller) -> None:
    """Let everything that this task does be for a caller."""
    _current.set(caller)


def current() -> Caller:
    """Whom the code that runs is working for; somebody who waits for ever, where nobody was named."""
    return _current.get() or Caller()
