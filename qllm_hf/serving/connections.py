"""Connections on which nothing is asked, and those that nobody reads from any more: closed after a while.

uvicorn waits without end for the first line of a request, and for a client to fetch the rest of an answer.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

from .limits import MOST_CONNECTIONS, Limits


class Connections:
    """Since when each open connection of a server has had no request under way."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._idle_since: WeakKeyDictionary[Any, float] = WeakKeyDictionary()

    def sweep(self, protocols: Iterable[Any]) -> None:
        """Close what has been idle too long, and of too many connections those first that are idle longest.

        Args:
            protocols: `server_state.connections` of uvicorn.
        """
        now, everything = time.monotonic(), list(protocols)
        for protocol in everything:
            if _is_busy(protocol):
                self._idle_since.pop(protocol, None)
            else:
                self._idle_since.setdefault(protocol, now)
        too_many = len(everything) - MOST_CONNECTIONS
        for place, (protocol, since) in enumerate(sorted(self._idle_since.items(), key=lambda entry: entry[1])):
            if place < too_many or now - since > self._limits.idle_seconds:
                del self._idle_since[protocol]
                protocol.transport.abort()


def _is_busy(protocol: Any) -> bool:
    """Whether a request is under way: all of its head is there, and not yet all of the answer."""
    cycle = getattr(protocol, "cycle", None)
    return cycle is not None and not cycle.response_complete and not protocol.transport.is_closing()
