"""The line before the one thread that answers."""

import asyncio
import threading
import weakref

import pytest

from qllm_hf.serving.caller import Caller, calling, current
from qllm_hf.serving.line import Line


class Prompt:
    """Something that is held as long as it stands in line."""


def test_whoever_leaves_is_forgotten():
    async def work():
        line, go, ran = Line(), threading.Event(), []
        first = line.async_submit(go.wait)
        while len(line):
            await asyncio.sleep(0.001)
        caller = Caller()

        async def stands(caller):
            calling(caller)
            prompt = Prompt()
            future = line.submit(ran.append, prompt)
            return weakref.ref(prompt), future

        prompt, _ = await asyncio.ensure_future(stands(caller))
        other = line.async_submit(lambda: "other")
        assert len(line) == 2 and prompt() is not None
        caller.stop("left")
        assert len(line) == 1
        del _
        assert prompt() is None, "its prompt is still in memory"
        go.set()
        assert await first and await other == "other"
        assert ran == []

    asyncio.run(work())


def test_the_thread_outlives_what_goes_wrong():
    async def work():
        line = Line()
        names = {await line.async_submit(lambda: threading.current_thread().name) for _ in range(3)}
        with pytest.raises(ZeroDivisionError):
            await line.async_submit(lambda: 1 // 0)
        with pytest.raises(KeyboardInterrupt):
            await asyncio.to_thread(line.submit(_interrupt).result)
        cancelled = line.async_submit(threading.Event().wait, 0.05)
        cancelled.cancel()
        names.add(await line.async_submit(lambda: threading.current_thread().name))
        assert len(names) == 1

    asyncio.run(work())


def _interrupt():
    raise KeyboardInterrupt


def test_the_first_reason_counts():
    async def work():
        caller, told = Caller(), []
        caller.on_stop(told.append)
        caller.stop("late")
        caller.stop("left")
        caller.on_stop(told.append)
        assert told == ["late", "late"] and caller.reason == "late"
        assert current() is not caller

    asyncio.run(work())
