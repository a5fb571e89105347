"""`qllm-hf serve` or `demo` with a window: what is under way inside, and when what clients had left was freed.

    python scripts/load/observed.py WINDOW_PORT PLANT serve MODEL ...

The command is the one that users run. It is watched from outside of its code, and PLANT (`none`, or one of `PLANTS`)
breaks it on purpose.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import psutil
from transformers.cli.serving import utils
from transformers.generation.continuous_batching.scheduler import Scheduler

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from load.wire import LEAVING
from qllm_hf.cli.main import main
from qllm_hf.demo import compare, writing
from qllm_hf.serving import batched, caller, fitting, gate, server, stopping

FREED: dict[str, dict[str, float]] = {}
"""{name of a client that means to leave: {"place" | "engine": time.monotonic() when it was free again}}"""
SEEN: dict[str, Any] = {}
_names: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
_leaked: list[bytearray] = []


def look() -> dict[str, Any]:
    """What is under way now, in a server; a page shows its memory alone."""
    if "gate" not in SEEN:
        return {"inside": {}, "freed": FREED}
    state, found = SEEN["state"], SEEN["gate"]
    manager = state._cb_manager
    engine = getattr(manager, "_cb", None)
    inside = {
        "callers": len(found.callers),
        "inside": found.inside,
        "in line": sum(len(each._thread) for each in state._generate_managers.values()),
        "running": SEEN.get("running", 0),
    }
    if engine is not None and engine.batch_processor is not None:
        scheduler = engine.batch_processor.scheduler
        inside |= {
            "active": len(scheduler.active_requests) + len(scheduler.waiting_requests),
            "handlers": len(engine.output_router.result_handlers),
        }
    return {"inside": inside, "freed": FREED}


def tidy() -> int:
    """Bytes that are resident once everything free is given back: what is left can only be in use, or between it."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def open_window(port: int) -> None:
    """Let `look` be asked at a port of its own."""

    class Window(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(tidy() if self.path == "/resident" else look()).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    threading.Thread(target=ThreadingHTTPServer(("127.0.0.1", port), Window).serve_forever, daemon=True).start()


def watch_inside() -> None:
    """Note when places and engines are free again, whatever the server knows of clients that left."""

    def note(name: str, what: str) -> None:
        if name.startswith(LEAVING):
            FREED.setdefault(name, {})[what] = time.monotonic()

    answer, generate = gate.Gate._answer, stopping.Stoppable.generate
    cancel, clear = batched.cancel, Scheduler.clear_cancelled_requests
    made = server.ending_server
    by_key: dict[str, Any] = {}

    async def answering(self: Any, scope: Any, body: Any, send: Any, who: Any) -> None:
        _names[who] = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        try:
            await answer(self, scope, body, send, who)
        finally:
            note(_names[who], "place")

    def generating(self: Any, **options: Any) -> Any:
        SEEN["running"] = SEEN.get("running", 0) + 1
        try:
            return generate(self, **options)
        finally:
            SEEN["running"] -= 1
            note(_names.get(self._caller, ""), "engine")

    def cancelling(manager: Any, key: str) -> None:
        by_key[key] = _names.get(caller.current(), "")
        cancel(manager, key)

    def clearing(self: Any) -> Any:
        wanted = list(self._requests_to_cancel)
        found = clear(self)
        for key in wanted:
            note(by_key.pop(key, ""), "engine")
        return found

    def making(config: Any, found: Any, close: Any) -> Any:
        SEEN["gate"], SEEN["state"] = found, close.args[0]
        return made(config, found, close)

    gate.Gate._answer, stopping.Stoppable.generate = answering, generating
    fitting.cancel, Scheduler.clear_cancelled_requests = cancelling, clearing
    server.ending_server = making


def plant_leak() -> None:
    """Every request leaves 100 KB behind; on the page, every token 20 KB."""
    check = gate.check_request

    def checking(*given: Any) -> None:
        _leaked.append(bytearray(b"x" * 100_000))
        check(*given)

    gate.check_request = checking
    step = compare._Answer.advance
    compare._Answer.advance = lambda self: (_leaked.append(bytearray(b"x" * 20_000)), step(self))[1]


def plant_mix() -> None:
    """Now and then a client gets the answer of another one before; on the page, another token."""
    before: list[str] = []

    def mixed(given: Any) -> Any:
        async def whole(self: Any, *args: Any, **kwargs: Any) -> Any:
            text, length, ids = await given(self, *args, **kwargs)
            before.append(text)
            return (before[-2] if len(before) % 20 == 0 else text), length, ids

        return whole

    for manager in (utils.GenerateManager, utils.CBGenerateManager):
        manager.generate_non_streaming = mixed(manager.generate_non_streaming)
    choices = writing._choose
    count = itertools.count(1)
    writing._choose = lambda *given: choices(*given) if next(count) % 500 else 7


def plant_deaf() -> None:
    """Nobody hears that a client left."""
    stop = caller.Caller.stop
    caller.Caller.stop = lambda self, reason: None if reason == "left" else stop(self, reason)


PLANTS = {"leak": plant_leak, "mix": plant_mix, "deaf": plant_deaf}


if __name__ == "__main__":
    window, plant, *command = sys.argv[1:]
    watch_inside()
    if plant != "none":
        PLANTS[plant]()
    open_window(int(window))
    sys.argv = ["qllm-hf", *command]
    main()
