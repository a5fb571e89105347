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
import csv
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from load.answers import Answers
from load.kinds import KINDS, PATIENCE, Client, WrongError
from load.watching import Sample, ask_window, slope, watch, watch_tidied
from load.wire import Wire, ask, request

from qllm_hf import QllmConfig
from qllm_hf.loading import load_model, load_tokenizer, save_model

PLANTS = ("none", "leak", "mix", "deaf")
FREE_SECONDS = 5.0
PROBE_SECONDS = 10.0


class Run:
    """What happened."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.faults: list[str] = []
        self.samples: list[Sample] = []
        self.tidied: list[Sample] = []
        self.probes: list[float] = []
        self.left: dict[str, float] = {}

    def fault(self, text: str) -> None:
        self.faults.append(text)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def server(folder: Path, plant: str, together: bool, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], int, int]]:
    """A running server, its port, and that of the window into it."""
    port, window = free_port(), free_port()
    command = [sys.executable, str(Path(__file__).parent / "load" / "observed.py"), str(window), plant]
    command += ["serve", str(folder), "--dtype", "float32", "--port", str(port), "--max-requests", "48"]
    command += ["--continuous-batching"] if together else []
    with log.open("wb") as written:
        process = subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 300
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server did not start:\n{log.read_text()}")
            time.sleep(0.2)
        yield process, port, window
    finally:
        process.kill()
        process.wait()


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


async def probe(run: Run, port: int) -> None:
    """Ask for health and models all the time."""
    while True:
        for path in ("/health", "/v1/models"):
            began = time.monotonic()
            try:
                reply = await asyncio.wait_for(ask(port, path), 2 * PROBE_SECONDS)
                if reply.status != 200:
                    run.fault(f"{path}: {reply}")
            except Exception as error:
                run.fault(f"{path}: {type(error).__name__}: {error}")
            run.probes.append(time.monotonic() - began)
        await asyncio.sleep(1)


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


async def end(run: Run, process: subprocess.Popen[bytes], port: int, answers: Answers) -> float:
    """Seconds from SIGTERM to the end of the process, with streams open whose clients are told."""
    async with contextlib.AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(Wire.to(port)) for _ in range(6)]
        for place, wire in enumerate(wires):
            await wire.send(request("/v1/completions", answers.long() | {"stream": place % 2 == 0}))
        await asyncio.sleep(1)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        said = await asyncio.gather(*(asyncio.wait_for(wire.reader.read(-1), 30) for wire in wires))
        await asyncio.to_thread(process.wait, 30)
        seconds = time.monotonic() - began
    for place, each in enumerate(said):
        if b"this server is ending" not in each and b"finish_reason" not in each:
            run.fault(f"client {place} was not told that the server ends: {each[-300:]!r}")
    if seconds > 10 or process.returncode not in (0, -signal.SIGTERM):
        run.fault(f"the server took {seconds:.1f} s to end, with {process.returncode}")
    return seconds


async def campaign(run: Run, given: argparse.Namespace, folder: Path, log: Path) -> list[str]:
    """The lines of the report."""
    answers = await asyncio.to_thread(Answers, str(folder))
    with server(folder, given.plant, given.continuous_batching, log) as (process, port, window):
        watching = (watch(process.pid, run.samples), watch_tidied(window, run.tidied), probe(run, port))
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
        took = [max(freed[name].values()) - when for name, when in run.left.items() if name in freed]
        late = [each for each in took if each > FREE_SECONDS]
        if late:
            run.fault(f"{len(late)} clients left and were freed only after up to {max(late):.1f} s")
        missing = len(run.left) - len(took)
        grows, raw = slope(run.tidied, seconds / 5), slope(run.samples, seconds / 5)
        if grows.low > given.most:
            run.fault(f"memory grows by {grows.value:.2f} +- {grows.error:.2f} MB/min")
        if max(run.probes, default=0.0) > PROBE_SECONDS:
            run.fault(f"/health or /v1/models took {max(run.probes):.1f} s")
        first, last = run.tidied[len(run.tidied) // 5], run.samples[-1]
        if last.files > run.samples[0].files + 10:
            run.fault(f"{last.files} files are open at the end, {run.samples[0].files} at the start")
        ended = await end(run, process, port, answers)
    said = log.read_text(errors="replace")
    if "Once upon a time" in said or "apples" in said:
        run.fault("texts of clients are in the server's log")
    if "Traceback" in said:
        run.fault(f"the server's log has a traceback: {said[said.index('Traceback') :][:1500]}")
    middle = statistics.median(took) if took else float("nan")
    return [
        f"{answers.distinct} different answers; {len(run.left)} left, freed after {middle:.2f} s (median), "
        f"{max(took, default=0):.2f} s (most); {missing} were refused or had left before they were in",
        f"in use {first.resident / 1e6:.0f} MB after a fifth, {run.tidied[-1].resident / 1e6:.0f} MB at the end: "
        f"{grows.value:+.3f} MB/min, standard error {grows.error:.3f} (resident between: {raw.value:+.3f}, {raw.error:.3f})",
        f"files {run.samples[0].files} at first, {max(each.files for each in run.samples)} at most, {last.files} at "
        f"the end; threads {run.samples[0].threads}, {max(each.threads for each in run.samples)}, {last.threads}",
        f"/health and /v1/models: {len(run.probes)} times, {statistics.median(run.probes):.3f} s (median), "
        f"{max(run.probes):.2f} s (most)",
        f"ended {ended:.1f} s after SIGTERM with six answers under way",
    ]


async def watch_once(run: Run, pid: int) -> None:
    task = asyncio.ensure_future(watch(pid, late := []))
    await asyncio.sleep(0.2)
    task.cancel()
    run.samples.append(late[0]._replace(seconds=run.samples[-1].seconds + 1))


def table(counts: Counter[tuple[str, str]]) -> str:
    """Kinds of clients and what came of them, a line each."""
    words = sorted({word for _, word in counts}, key=lambda word: (word == "FAULT", word.isdigit(), word))
    rows = [(kind.__name__, *(counts[kind.__name__, word] for word in words)) for kind in KINDS]
    rows.append((f"all {counts.total()}", *(sum(row[i + 1] for row in rows) for i in range(len(words)))))
    lines = [f"{'client':18}" + "".join(f"{word:>9}" for word in words)]
    return "\n".join(lines + [f"{row[0]:18}" + "".join(f"{count or '-':>9}" for count in row[1:]) for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description="Fifty clients at a time on qllm-hf serve.")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--continuous-batching", action="store_true")
    parser.add_argument("--most", type=float, default=0.5, help="MB per minute that memory may grow")
    parser.add_argument("--plant", choices=PLANTS, default="none", help="break the server: the run has to find it")
    parser.add_argument("--csv", type=Path, help="write a line per second: memory, files, threads")
    given = parser.parse_args()
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    run = Run()
    with tempfile.TemporaryDirectory() as parent:
        folder, log = Path(parent) / "model-w4kv4", Path(parent) / "log.txt"
        model = load_model("reference", QllmConfig(w=4, kv=4), dtype="float32")
        save_model(model, load_tokenizer("reference"), folder)
        lines = asyncio.run(campaign(run, given, folder, log))
    print(table(run.counts))
    print(*lines, sep="\n")
    if given.csv:
        with given.csv.open("w", newline="") as file:
            csv.writer(file).writerows([Sample._fields, *run.samples])
    for text, count in Counter(run.faults).most_common(20):
        print(f"\nFAULT ({count}): {text[:1500]}")
    print(f"\n{len(run.faults)} faults; repeat with --seed {given.seed}")
    sys.exit(1 if run.faults else 0)


if __name__ == "__main__":
    main()
