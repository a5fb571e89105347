"""How fast whole models write on a CPU: ours, the float model, other libraries through transformers, and llama.cpp.

    python benchmarks/decode.py WORK [--models llama-135m-shaped] [--contexts 128,2048,8192] [--methods REGEX]
        [--new-tokens 16] [--rounds 3] [--limit 300] [--again]

WORK keeps the checkpoints (the shapes of benchmarks/speed.py, random weights) and the GGUF files made of them. Batch 1,
greedy, 2 threads. Each method runs in a process of its own and takes turns with one of the float model, so that both
meet the same minutes; only one of them works at a time. Before the clock starts, its logits of decoded tokens are
compared with the float model's; where they differ more than the bits allow, nothing is timed.

- `ms_per_token` is the median over tokens after the context; the cache is filled with random rows through its own
  `update` (llama.cpp's by a prefill), since speed does not depend on values. `ratio` is the float model's over it.
- `prefill_s` is one forward of the context; where the float model or the method would need more than the limit,
  going by the shorter context, it is left out.
- `peak_rss_mb` is of the whole process, loading and mapped files included; `anonymous_mb` is what it holds after that.
- what takes longer than the limit is cut off, and `remark` says so.

Rows that are there already, of the same versions, are kept.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "2"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from machine import RESULTS, key_of, machine, read_rows, write_rows
from peers import models
from peers.interleaved import Sample, Samples
from peers.method import version_of
from peers.models import BASELINE, ModelMethod
from peers.worker import CutOff, Failed, Worker, pause, serve
from speed import SHAPES, make_model

NAME = "decode"
THREADS = 2
KEY = ("model", "method", "context")
PROMPT, FORCED = 32, 8
LOADING = 900.0  # seconds
MEASURED = (
    "ms_per_token", "q1_ms", "q3_ms", "samples", "dropped", "bf16_ms_per_token", "ratio", "prefill_s", "bf16_prefill_s",
    "prefill_ratio", "peak_rss_mb", "anonymous_mb",
)  # fmt: skip


class Model:
    """A checkpoint with the float model's process, which stays, its logits and its times of prefill."""

    def __init__(self, name: str, work: Path, limit: float) -> None:
        self.name, self.work, self.limit = name, work, limit
        self.folder = work / name
        make_model(self.folder, SHAPES[name])
        ids = torch.randint(SHAPES[name]["vocab_size"], (PROMPT + FORCED,), generator=torch.Generator().manual_seed(0))
        self.prompt, self.forced = ids[:PROMPT].tolist(), ids[PROMPT:].tolist()
        self.prefill_seconds: dict[int, float] = {}
        self.worker = self.start(BASELINE)
        self.worker.ask(LOADING, do="load")
        self.expected = self.logits(self.worker)

    def start(self, method: str) -> Worker:
        return Worker(Path(__file__), method, self.folder, self.work)

    def logits(self, worker: Worker) -> torch.Tensor:
        """Of FORCED tokens, each decoded after the ones before: float32 [FORCED, V]."""
        file = self.work / "logits.pt"
        worker.ask(self.limit, do="logits", prompt=self.prompt, forced=self.forced, file=str(file))
        found: torch.Tensor = torch.load(file).double()
        file.unlink()
        return found

    def error(self, worker: Worker) -> float:
        """Relative error of a method's logits."""
        return ((self.logits(worker) - self.expected).norm() / self.expected.norm()).item()


def rows_of(model: Model, method: ModelMethod, contexts: list[int], new: int, rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each context."""
    worker = model.worker if method.name == BASELINE else model.start(method.name)
    common = {"error": "", "detail": ""}
    remark = ""
    try:
        common["detail"] = worker.ask(LOADING, do="load") if worker is not model.worker else ""
        error = model.error(worker)
        common["error"] = f"{error:.4f}"
        if not error < method.limit:
            remark = f"wrong: relative error of logits {error:.3f}, allowed is {method.limit}"
    except (CutOff, Failed) as stopped:
        remark = str(stopped)
    known: dict[int, float] = {}
    for context in contexts:
        found = dict.fromkeys(MEASURED, "")
        if not remark:
            try:
                found |= decoded(model, worker, context, new, rounds)
                found |= prefilled(model, worker, context, known)
            except (CutOff, Failed) as stopped:
                remark = str(stopped)
            else:
                memory = worker.ask(model.limit, do="memory")
                found |= {"peak_rss_mb": f"{memory['peak']:.0f}", "anonymous_mb": f"{memory['anonymous']:.0f}"}
        row = {"model": model.name, "method": method.name, "library": method.library}
        row |= {"version": version_of(method.package), "context": context, "new_tokens": new}
        yield {**row, **found, **common, "remark": remark, **machine()}
    if worker is not model.worker:
        worker.end()


def decoded(model: Model, worker: Worker, context: int, new: int, rounds: int) -> dict[str, Any]:
    """The columns about decoding, from rounds in which both processes decode `new` tokens, the first not counted."""
    pair = [worker] if worker is model.worker else [worker, model.worker]
    samples = [Samples() for _ in pair]
    for one in pair:
        one.ask(model.limit, do="fill", tokens=context)
    for _ in range(rounds):
        for one, kept in zip(pair, samples, strict=True):
            pause()
            for seconds, disturbed in one.ask(model.limit, do="decode", tokens=new)[1:]:
                kept.add(Sample(seconds, disturbed))
    times, base = samples[0].times(), samples[-1].times()
    return {
        "ms_per_token": f"{times.median * 1e3:.3f}",
        "q1_ms": f"{times.first * 1e3:.3f}",
        "q3_ms": f"{times.third * 1e3:.3f}",
        "samples": times.samples,
        "dropped": "few undisturbed" if times.disturbed else times.dropped,
        "bf16_ms_per_token": f"{base.median * 1e3:.3f}",
        "ratio": f"{base.median / times.median:.4f}",
    }


def prefilled(model: Model, worker: Worker, context: int, known: dict[int, float]) -> dict[str, Any]:
    """The columns about prefill; `known` has the seconds of shorter contexts, and gets those of this one."""
    found: dict[str, Any] = {}
    for one, seconds in ((model.worker, model.prefill_seconds), (worker, known)):
        expected = max((context / shorter * seconds[shorter] for shorter in seconds), default=0.0)
        if context not in seconds and expected < model.limit:
            pause()
            seconds[context] = one.ask(model.limit, do="prefill", tokens=context)
    if context in known:
        found["prefill_s"] = f"{known[context]:.3f}"
    if context in model.prefill_seconds:
        found["bf16_prefill_s"] = f"{model.prefill_seconds[context]:.3f}"
    if len(found) == 2:
        found["prefill_ratio"] = f"{model.prefill_seconds[context] / known[context]:.4f}"
    return found


def is_current(row: dict[str, Any] | None, method: ModelMethod) -> bool:
    """Whether a row was measured, or cut off, with what is installed now."""
    versions = {"version": version_of(method.package), "torch": torch.__version__}
    if row is None or any(row[key] != value for key, value in versions.items()):
        return False
    return bool(row["ms_per_token"]) or str(row["remark"]).startswith("cut off")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--models", default=",".join(SHAPES))
    parser.add_argument("--contexts", default="128,2048,8192")
    parser.add_argument("--methods", default="", help="regular expression; a row per method whose name it finds")
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=300, help="seconds that one measurement may take")
    parser.add_argument("--again", action="store_true", help="measure anew what is there already")
    parser.add_argument("--worker", nargs=2, metavar=("METHOD", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    table = models.methods()
    work = given.work.resolve()
    if given.worker:
        name, folder = given.worker
        chosen = next(method for method in table if method.name == name)
        serve(lambda: chosen.load(Path(folder), work))
        return
    rows = read_rows(NAME, KEY)
    contexts = sorted(map(int, given.contexts.split(",")))
    for name in given.models.split(","):
        model: Model | None = None
        for method in table:
            missing = [
                c for c in contexts if given.again or not is_current(rows.get((name, method.name, str(c))), method)
            ]
            if not missing or not re.search(given.methods, method.name):
                continue
            model = model or Model(name, work, given.limit)
            for row in rows_of(model, method, missing, given.new_tokens, given.rounds):
                rows[key_of(row, KEY)] = row
                shown = ("ms_per_token", "ratio", "prefill_s", "prefill_ratio", "error", "peak_rss_mb", "remark")
                print(*key_of(row, KEY), *(row[column] for column in shown), sep="  ", flush=True)
                write_rows(NAME, in_order(rows, [method.name for method in table]))
        if model is not None:
            model.worker.end()
    print(RESULTS / f"{NAME}.csv")


def in_order(rows: dict[tuple[str, ...], dict[str, Any]], names: list[str]) -> list[dict[str, Any]]:
    """Rows by model, context and method; those of methods that are gone come last."""

    def place(key: tuple[str, ...]) -> tuple[int, int, int]:
        model, method, context = key
        return list(SHAPES).index(model), int(context), names.index(method) if method in names else len(names)

    return [rows[key] for key in sorted(rows, key=place)]


if __name__ == "__main__":
    main()
