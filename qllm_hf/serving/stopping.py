"""Generation that ends within a token when nobody waits for it, and errors that say no more than they should."""

from __future__ import annotations

import logging
from typing import Any

import torch

from .caller import TOLD, Caller
from .faults import BROKEN

LOG = logging.getLogger(__name__)


class Stoppable:
    """A model whose `generate` ends as soon as its caller is stopped.

    The error that leaves is a new one, without the frames that hold the cache: it is free at once, and not whenever
    the error is.
    """

    def __init__(self, model: Any, caller: Caller) -> None:
        self._model, self._caller = model, caller

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def generate(self, **options: Any) -> Any:
        """As the model's own. Raises StoppedError, or RuntimeError for whatever else happens, which is logged."""
        self._caller.check()
        try:
            return self._model.generate(**options, stopping_criteria=[self._go_on])
        except Exception:
            if self._caller.reason is None:
                LOG.exception("an answer broke off")
        self._caller.check()
        raise RuntimeError(BROKEN)

    def _go_on(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """A criterion that ends no sequence: it raises, so that nothing is made of what was written so far."""
        self._caller.check()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class Told:
    """The queue of a stream, whose errors are sentences for clients."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue

    async def get(self) -> Any:
        """The next text, error or end."""
        return _shown(await self._queue.get())

    def get_nowait(self) -> Any:
        """The same, if it is there. Raises asyncio.QueueEmpty."""
        return _shown(self._queue.get_nowait())


def error_in_stream(message: str) -> Any:
    """What ends a stream with an error."""
    from transformers.cli.serving.utils import _StreamError

    return _StreamError(message)


def _shown(item: Any) -> Any:
    from transformers.cli.serving.utils import _StreamError

    if not isinstance(item, _StreamError) or item.msg in SENTENCES:
        return item
    LOG.error("a stream broke off: %s", item.msg)
    return _StreamError(BROKEN)


SENTENCES = frozenset({BROKEN, *(sentence for _, sentence in TOLD.values())})
