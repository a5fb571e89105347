"""Fifty visitors at a time on the page of `qllm-hf demo`: they compare schemes, close their tabs, and send nonsense.

    python scripts/load_demo.py --clients 50 --minutes 10 --seed 0

The page is a process of its own, with room for a few of the models at a time, so that they come and go. Visitors ask
over plain HTTP, as gradio's clients do. What may not be:

    an answer of either side that is not what the same scheme writes alone
    a queue that is full told otherwise than with 503; nonsense answered with 5xx, or with texts of the host
    the page, or what it says of itself, taking more than 10 s
    memory that grows (as `load_server.py`), or files that stay open
    visitors that left and still hold the model: afterwards a comparison is answered within 10 s
    a page that does not end within 10 s of SIGINT with visitors there

--plant leak or mix breaks the page on purpose: the run has to find that.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from load.process import observed
from load.report import PROBE_SECONDS, Run, add_options, finish, memory_lines, probe
from load.watching import watch, watch_tidied
from load.wire import Reply, Wire, ask, request

from qllm_hf.demo.compare import compare
from qllm_hf.demo.conversation import CHAT, question_of
from qllm_hf.demo.host import make_host
from qllm_hf.demo.limits import Limits

SCHEMES = ("FP16", "W8", "W4", "W4KV4", "W2KV2", "KV2")
MESSAGES = ("I am Mia. I have a red kite.", "Question: 2+2=?", "Tell me a story about a dog.", "Say hello to Max.")
TOKENS = 24
MEMORY = "30MB"
CALL = "/gradio_api/call"
REMEMBERED = 2100
"""Sessions; gradio keeps the queues of the last 2,000 (Queue.pending_messages_per_session)."""


class WrongError(Exception):
    """What must not be."""


def alone() -> dict[tuple[str, str], str]:
    """{(scheme, message): what it writes}"""
    host = make_host(limits=Limits(hub=False))
    found = {}
    for scheme in SCHEMES:
        for message in MESSAGES:
            question = question_of(host, message, ("reference", scheme, scheme, CHAT), [])
            *_, step = compare(question, host.holder, Limits(new_tokens=TOKENS))
            found[scheme, message] = step.left.text
    return found


def page(plant: str, log: Path) -> contextlib.AbstractContextManager[tuple[subprocess.Popen[bytes], int, int]]:
    """A running page, its port, and that of the window into it."""
    return observed(["demo", "--no-hub", "--no-push", "--memory", MEMORY], plant, "/gradio_api/info", log)


async def call(port: int, name: str, data: list[Any], seconds: float | None = None) -> Reply:
    """What an endpoint of the page says in the end. After `seconds`, the visitor closes the tab: `Reply` 0."""
    session = uuid.uuid4().hex
    async with Wire.to(port) as heart:  # what gradio's clients hold open as long as the tab is
        await heart.send(request(f"/gradio_api/heartbeat/{session}"))
        await heart.head()
        body = {"data": data, "session_hash": session}
        joined = await ask(port, f"{CALL}/{name}", body)
        if joined.status != 200:
            return joined
        async with Wire.to(port) as wire:
            await wire.send(request(f"{CALL}/{name}/{joined.json()['event_id']}"))
            try:
                return await asyncio.wait_for(wire.reply(), seconds)
            except (asyncio.TimeoutError, TimeoutError):
                wire.writer.transport.abort()
                heart.writer.transport.abort()
                return Reply(0, {}, b"")


def said(reply: Reply) -> tuple[str, Any]:
    """The last event of a reply, and what it holds."""
    *_, event = [part for part in reply.body.decode().split("\n\n") if part.strip()]
    name, data = event.split("\n", 1)
    return name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


async def compares(port: int, random: random.Random, right: dict[tuple[str, str], str]) -> str:
    """Asks two schemes."""
    message, schemes = random.choice(MESSAGES), random.sample(SCHEMES, 2)
    reply = await call(port, "compare", [message, *schemes, "reference", True, TOKENS, 0, 0])
    if reply.status == 503:
        return "503"
    name, data = said(reply) if reply.status == 200 else (str(reply.status), reply.body)
    if name != "complete":
        raise WrongError(f"{name}: {data}")
    for side, scheme in zip(("left", "right"), schemes, strict=True):
        if (data[0][side]["scheme"], data[0][side]["text"]) != (scheme, right[scheme, message]):
            raise WrongError(f"{message} {scheme}: {data[0][side]['text']!r}, alone {right[scheme, message]!r}")
    return "right"


async def leaves(port: int, random: random.Random, right: dict[tuple[str, str], str]) -> str:
    """Closes the tab while the answer is written, or before its turn has come."""
    data = [random.choice(MESSAGES), *random.sample(SCHEMES, 2), "reference", False, 256, 0, 0]
    reply = await call(port, "compare", data, random.uniform(0.1, 3))
    return "503" if reply.status == 503 else "left" if reply.status == 0 else "right"


async def looks_up(port: int, random: random.Random, right: dict[tuple[str, str], str]) -> str:
    """Asks what needs no model."""
    reply = await call(port, "scheme", ["w3kv2"])
    if reply.status == 503:
        return "503"
    name, data = said(reply)
    if name != "complete" or data[0]["scheme"] != "W3KV2":
        raise WrongError(f"{name}: {data}")
    return "right"


LARGE = (
    b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n' + b"x" * 5_000_000 + b"\r\n--x--\r\n"
)
NONSENSE: dict[str, tuple[tuple[int, ...], bytes]] = {
    "5 MB": ((413,), request(f"{CALL}/scheme", {"data": ["x" * 5_000_000]})),
    "a file": ((413,), request("/gradio_api/upload", LARGE, content_type="multipart/form-data; boundary=x")),
    "no JSON": ((400, 422), request(f"{CALL}/scheme", b"{")),
    "invalid UTF-8": ((400, 422), request(f"{CALL}/scheme", b'{"data": ["\xff"]}')),
    "no data": ((400, 422), request(f"{CALL}/scheme", {})),
    "a file of the host": ((403, 404), request("/gradio_api/file=/etc/passwd")),
    "another address": ((404,), request("/../../etc/passwd")),
}


async def nonsense(port: int, random: random.Random, right: dict[tuple[str, str], str]) -> str:
    """Asks for what cannot be."""
    name = random.choice([*NONSENSE, "no scheme", "no model", "a long message"])
    if name in NONSENSE:
        wanted, raw = NONSENSE[name]
        async with Wire.to(port) as wire:
            try:
                await wire.send(raw)
                reply = await wire.reply()
            except (ConnectionError, asyncio.IncompleteReadError):
                return "closed"
        if reply.status not in wanted:
            raise WrongError(f"{name}: {reply.status} {reply.body[:300]!r}")
        return str(reply.status)
    data = ["hi", "W99" if name == "no scheme" else "W4", "FP16", "/etc" if name == "no model" else "reference"]
    data[0] = "x" * 100_000 if name == "a long message" else "hi"
    reply = await call(port, "compare", [*data, True, 8, 0, 0])
    if reply.status == 503:
        return "503"
    event, told = said(reply)
    if event != "error" or "Something went wrong" in str(told):
        raise WrongError(f"{name}: {event} {told}")
    return "told"


KINDS = {compares: 50, leaves: 25, looks_up: 15, nonsense: 20}
"""{what a visitor does: how often, in parts of the sum}"""


async def visit(run: Run, port: int, chance: random.Random, right: dict[tuple[str, str], str], until: float) -> None:
    while time.monotonic() < until:
        (kind,) = chance.choices(list(KINDS), list(KINDS.values()))
        try:
            word = await asyncio.wait_for(kind(port, chance, right), 300)
        except Exception as error:
            word = "FAULT"
            run.fault(f"{kind.__name__}: {type(error).__name__}: {error}")
        run.counts[kind.__name__, word] += 1
        if word in ("503", "FAULT"):
            await asyncio.sleep(chance.uniform(0.5, 2))


async def fill(port: int) -> None:
    """As many visitors as gradio remembers anything of, so that what grows after them grows for ever."""
    room = asyncio.Semaphore(8)

    async def one() -> None:
        async with room:
            while (await call(port, "scheme", ["w4"])).status == 503:
                await asyncio.sleep(0.5)

    await asyncio.gather(*(one() for _ in range(REMEMBERED)))


async def campaign(run: Run, given: argparse.Namespace, log: Path) -> list[str]:
    """The lines of the report."""
    right = await asyncio.to_thread(alone)
    with page(given.plant, log) as (process, port, window):
        await fill(port)
        watching = (
            watch(process.pid, run.samples),
            watch_tidied(window, run.tidied),
            probe(run, port, ("/", "/gradio_api/info"), given.slack),
        )
        beside = [asyncio.ensure_future(each) for each in watching]
        seconds = 60 * given.minutes
        until = time.monotonic() + seconds
        chances = [random.Random(f"{given.seed} {number}") for number in range(given.clients)]
        await asyncio.gather(*(visit(run, port, chance, right, until) for chance in chances))
        began = time.monotonic()
        if await compares(port, random.Random(0), right) != "right":
            run.fault("the queue is full after everybody left")
        free = time.monotonic() - began
        if free > given.slack * PROBE_SECONDS:
            run.fault(f"after everybody left, an answer took {free:.1f} s")
        await asyncio.sleep(10)
        for task in beside:
            task.cancel()
        lines = memory_lines(run, given)
        left = asyncio.gather(*(leaves(port, chance, right) for chance in chances[:5]), return_exceptions=True)
        await asyncio.sleep(0.5)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(process.wait, 30)
        ended = time.monotonic() - began
        left.cancel()
        if ended > 10 * given.slack:
            run.fault(f"the page took {ended:.1f} s to end")
    text = log.read_text(errors="replace")
    if "Traceback" in text:
        run.fault(f"the page's log has a traceback: {text[text.index('Traceback') :][:1500]}")
    return [
        f"{len(set(right.values()))} different answers; an answer took {free:.1f} s after everybody left",
        *lines,
        f"ended {ended:.1f} s after SIGINT",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Fifty visitors at a time on the page of qllm-hf demo.")
    add_options(parser, ("none", "leak", "mix"))
    given = parser.parse_args()
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    run = Run()
    with tempfile.TemporaryDirectory() as parent:
        lines = asyncio.run(campaign(run, given, Path(parent) / "log.txt"))
    finish(run, lines, [kind.__name__ for kind in KINDS], given)


if __name__ == "__main__":
    main()
