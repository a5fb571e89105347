"""The engine that decodes requests together: how it forgets a request, ends, and begins anew."""

from __future__ import annotations

import contextlib
import queue
from typing import Any


def cancel(manager: Any, request_id: str) -> None:
    """Let the engine forget a request: its place, its pages of the cache, and who was told of its tokens.

    transformers frees the first two, and keeps the third, with the prompt in it, since a request that is cancelled
    never finishes. Tokens that are on their way then would stay in a queue which nobody reads. Nothing happens in a
    manager that works on requests one after another: their `generate` ends by itself.
    """
    engine = getattr(manager, "_cb", None)
    if engine is None:
        return
    engine.cancel_request(request_id)
    router = engine.output_router
    with router._lock:
        router.result_handlers.pop(request_id, None)
    with contextlib.suppress(queue.Empty):
        while True:
            router.output_queue.get_nowait()


def let_go_of_the_dead(state: Any) -> bool:
    """True, and if the engine has died of an error, the next request gets a new one.

    In transformers one batch that breaks is the end of the engine, and of everything that is asked later.
    """
    manager = state._cb_manager
    if manager is not None and not manager.is_alive():
        state._cb_manager = None
        manager.stop()
    return True


def close(state: Any) -> None:
    """End the engine's thread, which would keep the process alive."""
    manager, state._cb_manager = state._cb_manager, None
    if manager is not None and manager._cb is not None:
        manager._cb.stop(block=True, timeout=5, hard_stop=True)
