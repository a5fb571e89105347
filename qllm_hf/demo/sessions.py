"""What is kept of each visitor: whether their answer is to stop. Texts stay in the visitor's own page."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

MOST: Final = 1_000
"""Visitors that are remembered; those that asked longest ago are forgotten first."""


class Sessions:
    """The visitors of a page, by a name that is theirs alone."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._running: OrderedDict[str, _Run] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._running)

    @contextmanager
    def answering(self, visitor: str) -> Iterator[_Run]:
        """While an answer to a visitor is written. One that was under way stops, since its reader is gone."""
        run = _Run()
        with self._lock:
            if (before := self._running.pop(visitor, None)) is not None:
                before.stop()
            self._running[visitor] = run
            while len(self._running) > self._most:
                self._running.popitem(last=False)[1].stop()
        try:
            yield run
        finally:
            with self._lock:
                if self._running.get(visitor) is run:
                    del self._running[visitor]

    def stop(self, visitor: str) -> bool:
        """End the answer to a visitor, and to nobody else; whether there was one."""
        with self._lock:
            run = self._running.get(visitor)
        if run is not None:
            run.stop()
        return run is not None


class _Run:
    """One answer under way."""

    def __init__(self) -> None:
        self._stop = threading.Event()

    def stop(self) -> None:
        self._stop.set()

    def is_stopped(self) -> bool:
        return self._stop.is_set()
