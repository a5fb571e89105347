"""One thread that works on requests one after another, and forgets those for whom nobody waits any more."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from .caller import current


class Line:
    """What transformers' `InferenceThread` does, with a line that can be left.

    Always the same thread, since compiled graphs know theirs. Work that stands in line is taken out when its caller is
    stopped, so that a request which nobody waits for keeps neither its prompt in memory nor others waiting.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._changed = threading.Condition()
        threading.Thread(target=self._run, daemon=True, name="qllm-hf serve: answers").start()

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
        """A future of what the function returns, for a thread to wait for."""
        future: Future[Any] = Future()
        with self._changed:
            self._waiting.append((future, partial(function, *args, **kwargs)))
            self._changed.notify()
        current().on_stop(lambda _: self._leave(future))
        return future

    def async_submit(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> asyncio.Future[Any]:
        """The same, for a coroutine to wait for."""
        return asyncio.wrap_future(self.submit(function, *args, **kwargs))

    def _leave(self, future: Future[Any]) -> None:
        with self._changed:
            for place, (waiting, _) in enumerate(self._waiting):
                if waiting is future:
                    del self._waiting[place]
                    break

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                future, work = self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                _finish(future, work)
            del future, work  # a model may be among it, and the next work a long time off


def _finish(future: Future[Any], work: Callable[[], Any]) -> None:
    try:
        result = work()
    except BaseException as error:  # the thread has to live on for the others
        future.set_exception(error)
    else:
        future.set_result(result)
