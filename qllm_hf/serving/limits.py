"""How much a server takes on, from all its clients and from each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MOST_CONNECTIONS: Final = 512
"""Open at a time; beyond, those on which nothing is asked are closed first. Half of what a process may usually open."""


@dataclass(frozen=True)
class Limits:
    """What a server takes on.

    Attributes:
        requests: answered and waiting at the same time; further ones are sent away with 429.
        per_client: of these from one address, or None for no bound. Behind a proxy that does not say for whom it asks,
            all clients have the proxy's.
        body_bytes: of one request; larger ones are refused with 413.
        new_tokens: of one answer at most, or None for as many as the model has positions.
        seconds: from a request to the end of its answer; then it is ended with 504. OpenAI's clients wait as long.
        body_seconds: within which a request has to be there whole; else it is refused with 408.
        stalled_seconds: that a client may leave its answer unread before it counts as gone.
        idle_seconds: that a connection may be open without asking anything.
    """

    requests: int = 64
    per_client: int | None = None
    body_bytes: int = 4_000_000
    new_tokens: int | None = None
    seconds: float = 600.0
    body_seconds: float = 20.0
    stalled_seconds: float = 30.0
    idle_seconds: float = 20.0
