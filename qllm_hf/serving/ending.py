"""uvicorn's server, which ends within seconds whatever its clients do, and tells those who wait for an answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from .connections import Connections
from .gate import UNWINDING, Gate

GRACE: Final = 2.0
"""Seconds in which answers that are almost there can end by themselves."""
LOG = logging.getLogger("uvicorn.error")


def ending_server(config: Any, gate: Gate, close: Callable[[], None]) -> Any:
    """A `uvicorn.Server` that is not running yet.

    Args:
        config: a `uvicorn.Config`.
        close: called when no request is under way any more.
    """
    import uvicorn

    connections = Connections(gate.limits)

    class EndingServer(uvicorn.Server):
        async def on_tick(self, counter: int) -> bool:
            if counter % 10 == 0:  # once per second
                connections.sweep(self.server_state.connections)
            return await super().on_tick(counter)

        async def shutdown(self, sockets: Any = None) -> None:
            if gate.callers:
                LOG.warning(
                    "%d requests are under way. Those that are not done in %g s are told to ask again.",
                    len(gate.callers),
                    GRACE,
                )
            asyncio.get_running_loop().call_later(GRACE, gate.stop_all, "ending")
            await super().shutdown(sockets)
            await asyncio.to_thread(close)

    config.timeout_graceful_shutdown = round(GRACE + UNWINDING)
    return EndingServer(config)
