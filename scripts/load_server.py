"""Fifty clients at a time on `qllm-hf serve`: impatient, slow, hostile and plain ones, and every answer is looked at.

    python scripts/load_server.py --clients 50 --minutes 10 --seed 0
    python scripts/load_server.py --clients 50 --minutes 10 --seed 0 --continuous-batching

The server is a process of its own that serves the reference model as W4KV4 in float32. Each client does one of the
kinds of `load/kinds.py` after the other. What may not be:

    an answer that is not, byte by byte, what the checkpoint writes alone
    an error that has not the form of OpenAI's, another status than it should have, or no answer within 5 minutes
    /health or /v1/models that take more than 10 s, while dozens of requests wait
    memory that grows: the slope of what is resident, after everything free was given back and after the first fifth of
        the time, is above --most MB/min with its whole 95 % interval
    a client that left and whose place or engine is not free again within 5 s
    anything that is still under way, or open, when all clients are gone
    a server that does not end within 10 s of SIGTERM with streams open, or does not tell their clients

Prints what came of each kind, and ends with 1 if there was a fault. --plant leak, mix or deaf breaks the server on
purpose: the run has to find that.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from load.answers import Answers
from load.kinds import KINDS, PATIENCE, Client, WrongError
from load.process import observed
from load.report import Run, add_options, finish, memory_lines, probe
from load.watching import Sample, ask_window, watch, watch_tidied
from load.wire import Wire, request

from qllm_hf import QllmConfig
from qllm_hf.loading import load_model, load_tokenizer, save_model

FREE_SECONDS = 5.0


def server(
    folder: Path, plant: str, together: bool, log: Path
) -> contextlib.AbstractContextManager[tuple[subprocess.Popen[bytes], int, int]]:
    """A running server, its port, and that of the window into it."""
    words = ["serve", str(folder), "--dtype", "float32", "--max-requests", "48"]
    return observed([*words, *(["--continuous-batching"] if together else [])], plant, "/health", log)


async def visit(run: Run, client: Client, until: float) -> None:
    """One client, until the time is over."""
    kinds, weights = list(KINDS), list(KINDS.values())
    while time.monotonic() < until:
        (kind,) = client.random.choices(kinds, weights)
        try:
            word = await asyncio.wait_for(kind(client), PATIENCE)
        except WrongError as error:
            word = "FAULT"
            run.fault(f"{kind.__name__}: {error}")
        except Exception as error:
            word = "FAULT"
            run.fault(f"{kind.__name__}: {type(error).__name__}: {error}")
        run.counts[kind.__name__, word] += 1
        if word in ("429", "FAULT"):
            await asyncio.sleep(client.random.uniform(0.5, 2))


async def quiet(run: Run, window: int) -> dict[str, dict[str, float]]:
    """When each request that was left was freed; a fault if anything is under way after everybody left."""
    deadline = time.monotonic() + 30
    while True:
        found = await asyncio.to_thread(ask_window, window)
        busy = {name: count for name, count in found["inside"].items() if count}
        if not busy or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.5)
    if busy:
        run.fault(f"under way 30 s after everybody left: {busy}")
    freed: dict[str, dict[str, float]] = found["freed"]
    return freed


async def end(run: Run, process: subprocess.Popen[bytes], port: int, answers: Answers, slack: float) -> float:
    """Seconds from SIGTERM to the end of the process, with streams open whose clients are told."""
    async with contextlib.AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(Wire.to(port)) for _ in range(6)]
        for place, wire in enumerate(wires):
            await wire.send(request("/v1/completions", answers.long() | {"stream": place % 2 == 0}))
        await asyncio.sleep(1)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        said = await asyncio.gather(*(asyncio.wait_for(wire.reader.read(-1), 30 * slack) for wire in wires))
        await asyncio.to_thread(process.wait, 30 * slack)
        seconds = time.monotonic() - began
    for place, each in enumerate(said):
        if b"this server is ending" not in each and b"finish_reason" not in each:
            run.fault(f"client {place} was not told that the server ends: {each[-300:]!r}")
    if seconds > 10 * slack or process.returncode not in (0, 128 + signal.SIGTERM):
        run.fault(f"the server took {seconds:.1f} s to end, with {process.returncode}")
    return seconds


async def campaign(run: Run, given: argparse.Namespace, folder: Path, log: Path) -> list[str]:
    """The lines of the report."""
    answers = await asyncio.to_thread(Answers, str(folder))
    with server(folder, given.plant, given.continuous_batching, log) as (process, port, window):
        watching = (
            watch(process.pid, run.samples),
            watch_tidied(window, run.tidied),
            probe(run, port, ("/health", "/v1/models"), given.slack),
        )
        beside = [asyncio.ensure_future(each) for each in watching]
        began, seconds = time.monotonic(), 60 * given.minutes
        clients = [
            Client(port, answers, random.Random(f"{given.seed} {number}"), run.left) for number in range(given.clients)
        ]
        await asyncio.gather(*(visit(run, client, began + seconds) for client in clients))
        for task in beside:
            task.cancel()
        freed = await quiet(run, window)
        await asyncio.sleep(3)
        await watch_once(run, process.pid)
        took = [max(0.0, max(freed[name].values()) - when) for name, when in run.left.items() if name in freed]
        late = [each for each in took if each > given.slack * FREE_SECONDS]
        if late:
            run.fault(f"{len(late)} clients left and were freed only after up to {max(late):.1f} s")
        missing = len(run.left) - len(took)
        lines = memory_lines(run, given)
        ended = await end(run, process, port, answers, given.slack)
    said = log.read_text(errors="replace")
    if "Once upon a time" in said or "apples" in said:
        run.fault("texts of clients are in the server's log")
    if "Traceback" in said:
        run.fault(f"the server's log has a traceback: {said[said.index('Traceback') :][:1500]}")
    middle = statistics.median(took) if took else float("nan")
    return [
        f"{answers.distinct} different answers; {len(run.left)} left, freed after {middle:.2f} s (median), "
        f"{max(took, default=0):.2f} s (most); {missing} were refused or had left before they were in",
        *lines,
        f"ended {ended:.1f} s after SIGTERM with six answers under way",
    ]


async def watch_once(run: Run, pid: int) -> None:
    late: list[Sample] = []
    task = asyncio.ensure_future(watch(pid, late))
    await asyncio.sleep(0.2)
    task.cancel()
    run.samples.append(late[0]._replace(seconds=run.samples[-1].seconds + 1))


def main() -> None:
    parser = argparse.ArgumentParser(description="Fifty clients at a time on qllm-hf serve.")
    add_options(parser, ("none", "leak", "mix", "deaf"))
    parser.add_argument("--continuous-batching", action="store_true")
    given = parser.parse_args()
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    run = Run()
    with tempfile.TemporaryDirectory() as parent:
        folder, log = Path(parent) / "model-w4kv4", Path(parent) / "log.txt"
        model = load_model("reference", QllmConfig(w=4, kv=4), dtype="float32")
        save_model(model, load_tokenizer("reference"), folder)
        lines = asyncio.run(campaign(run, given, folder, log))
    finish(run, lines, [kind.__name__ for kind in KINDS], given)


if __name__ == "__main__":
    main()
