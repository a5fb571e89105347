"""A process that loads one model and times it on demand, so that models take turns and each has a peak of its own.

The parent writes a line of JSON per request and reads one per answer, each within a time limit.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MB = 1e6
ERROR = "error"
GRACE = 5  # seconds for a process to end on its own


class CutOff(Exception):
    """An answer took longer than allowed; the process was ended."""


class Failed(Exception):
    """The process could not do what it was asked; the text is its own."""


class Worker:
    """The parent's side of a process."""

    def __init__(self, script: Path, method: str, folder: Path, work: Path) -> None:
        command = [sys.executable, "-W", "ignore", str(script), str(work), "--worker", method, str(folder)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1
        )

    def ask(self, limit: float, **request: Any) -> Any:
        """The answer.

        Raises:
            CutOff: it took longer than `limit` seconds.
            Failed: the process raised something, or ended.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            raise Failed("its process ended") from None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(limit):
                self.end()
                raise CutOff(f"cut off after {limit:.0f} s: {request['do']}")
        line = self.process.stdout.readline()
        if not line:
            raise Failed(f"its process ended with status {self.process.wait()}")
        answer = json.loads(line)
        if ERROR in answer:
            raise Failed(answer[ERROR])
        return answer["result"]

    def end(self) -> None:
        """End the process."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(GRACE)


def serve(load: Any) -> None:
    """The process's side: load, then answer until there are no more requests. Nothing else writes to standard output.

    Each answer to "load" is the detail of what was loaded, to "decode" a list of [seconds, disturbed].
    """
    import torch

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    runner: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            with torch.no_grad():
                if request["do"] == "load":
                    runner = load()
                    result: Any = runner.detail
                else:
                    result = _answer(runner, **request)
        except Exception as error:  # of any library, of any kind: the reason is the result
            text = " ".join(str(error).split())
            print(json.dumps({ERROR: f"{type(error).__name__}: {text}"[:200]}), file=answers, flush=True)
            continue
        print(json.dumps({"result": result}), file=answers, flush=True)


def _answer(runner: Any, do: str, **given: Any) -> Any:
    import torch

    if do == "logits":
        torch.save(runner.logits(given["prompt"], given["forced"]), given["file"])
        return None
    if do == "memory":
        return memory_mb()
    if do == "decode":
        return [[sample.seconds, sample.disturbed] for sample in runner.decode(given["tokens"])]
    return getattr(runner, {"prefill": "prefill", "fill": "fill"}[do])(given["tokens"])


def memory_mb() -> dict[str, float]:
    """Peak resident memory of this process, and its anonymous part now, in MB (1e6 bytes)."""
    found = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {name: int(found[key].split()[0]) * 1024 / MB for name, key in (("peak", "VmHWM"), ("anonymous", "RssAnon"))}


def pause() -> None:
    """Let threads of a process that just answered stop spinning."""
    time.sleep(0.05)
