"""The engine that decodes requests together: how it forgets a request, ends, and begins anew."""

from __future__ import annotations

from typing import Any


def cancel(manager: Any, request_id: str) -> None:
    """Let the engine forget a request: its place, its pages of the cache, and who was told of its tokens.

    transformers frees the first two, and keeps the third, with the prompt in it, since a request that is cancelled
    never finishes. Nothing happens in a manager that works on requests one after another: their `generate` ends by
    itself.
    """
    engine = getattr(manager, "_cb", None)
    if engine is None:
        return
    engine.cancel_request(request_id)
    router = engine.output_router
    with router._lock:
        router.result_handlers.pop(request_id, None)


class Nowhere:
    """A queue for tokens of requests that were cancelled while they were written: in a server nobody would read it."""

    def put(self, output: Any) -> None:
        """Keep nothing."""


def drop_outputs_of_nobody(manager: Any) -> None:
    """Let the engine of a manager, if it has one, keep no tokens that nobody waits for."""
    engine = getattr(manager, "_cb", None)
    if engine is not None:
        engine.output_router.output_queue = Nowhere()


def let_go_of_the_dead(state: Any) -> bool:
    """True, and if the engine has died of an error, the next request gets a new one.

    In transformers one batch that breaks is the end of the engine, and of everything that is asked later. One that is
    about to end counts as dead: it would take requests and never answer.
    """
    manager = state._cb_manager
    engine = getattr(manager, "_cb", None)
    if engine is not None and engine.background_thread_status.can_accept_new_requests() is not None:
        state._cb_manager = None
        manager.stop()
    return True


def close(state: Any) -> None:
    """End the engine's thread, which would keep the process alive."""
    manager, state._cb_manager = state._cb_manager, None
    if manager is not None and manager._cb is not None:
        manager._cb.stop(block=True, timeout=5, hard_stop=True)
