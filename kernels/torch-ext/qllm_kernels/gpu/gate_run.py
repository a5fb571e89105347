"""Every gate on every target that it is meant for, in several processes, and what came out as a table."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import multiprocessing
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from . import INTERPRETED
from .compiled import Compiled, compile_gate
from .excess import EXCESS
from .gate import TARGETS, Gate, excesses, faults, gates

COLUMNS = (
    "gate", "target", "per_element", "budget", "registers", "spills", "shared", "widest_load", "tensor_core", "within",
    "remark", "triton",
)  # fmt: skip


class Result(NamedTuple):
    """One gate and target: what was compiled, None if nothing was, and what is wrong with it."""

    gate: Gate
    target: str
    compiled: Compiled | None
    faults: list[str]


def run(chosen: Sequence[Gate], targets: Sequence[str], workers: int = 1) -> Iterator[Result]:
    """Results in the order of targets and gates. Gates have to be those of `gates()` where there are more workers."""
    wanted = [(gate, target) for target in targets for gate in chosen if gate.compiles_for(target)]
    if workers < 2:
        for gate, target in wanted:
            yield Result(gate, target, *_outcome(gate, target))
        return
    # new processes, since what forks has the threads of torch and not their state
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        pending = [(gate, target, pool.submit(_outcome_by_name, gate.name, target)) for gate, target in wanted]
        for gate, target, future in pending:
            yield Result(gate, target, *_result(future))


def _outcome(gate: Gate, target: str) -> tuple[Compiled | None, list[str]]:
    try:
        compiled = compile_gate(gate, target)
    except Exception as error:  # of any kind: the next kernel may be fine
        return None, [f"does not compile: {_innermost(error)}"]
    return compiled, faults(gate, compiled)


def _outcome_by_name(name: str, target: str) -> tuple[Compiled | None, list[str]]:
    (gate,) = [gate for gate in gates() if gate.name == name]
    return _outcome(gate, target)


def _result(future: Future[tuple[Compiled | None, list[str]]]) -> tuple[Compiled | None, list[str]]:
    try:
        return future.result()
    except Exception as error:  # the process ended
        return None, [f"does not compile: {_innermost(error)}"]


def _innermost(error: BaseException) -> str:
    """The last line of what the first error of a chain says: Triton wraps an error once for each call."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip() if lines else 'no message'}"[:200]


def row_of(result: Result) -> dict[str, object]:
    """The line of the table: `within` says whether it takes no more than it should, `remark` what is wrong or known."""
    import triton

    gate, target, compiled, wrong = result
    row: dict[str, object] = dict.fromkeys(COLUMNS, "") | {"gate": gate.name, "target": target}
    row["triton"], row["budget"] = triton.__version__, gate.budget_on(target) or ""
    row["remark"], row["within"] = "; ".join(wrong), "no"
    if compiled is None:
        return row
    for column in ("registers", "spills", "shared", "widest_load", "tensor_core"):
        row[column] = getattr(compiled, column)
    if compiled.per_element is not None:
        row["per_element"] = f"{compiled.per_element:.2f}"
    row["within"] = "no" if excesses(gate, compiled) else "yes"
    if not wrong and (gate.name, target) in EXCESS:
        row["remark"] = f"known: {EXCESS[gate.name, target].because}"
    return row


def write_csv(path: Path, results: Iterable[Result]) -> None:
    """The table, a line for each result."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(row_of, results))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: 0 if every kernel is as its gate wants it."""
    parser = argparse.ArgumentParser(prog="python -m qllm_kernels.gpu.gate", description="Compile kernels and count.")
    parser.add_argument("--targets", default=",".join(TARGETS), help="such as cuda:90,hip:gfx942")
    parser.add_argument("--kernels", default="", help="regular expression; gates whose name it finds")
    parser.add_argument("--workers", type=int, default=1, help="processes that compile")
    parser.add_argument("--csv", type=Path, help="file to write the table to")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line instead of the table")
    given = parser.parse_args(arguments)
    if INTERPRETED:
        print("nothing can be compiled with TRITON_INTERPRET=1", file=sys.stderr)
        return 1
    results = []
    for result in run(gates(given.kernels), given.targets.split(","), given.workers):
        results.append(result)
        print(_json(result) if given.json else _line(result), flush=True)
    if given.csv:
        write_csv(given.csv, results)
    failed = [result for result in results if result.faults]
    for result in failed:
        print(f"{result.target} {result.gate.name}: {'; '.join(result.faults)}", file=sys.stderr)
    print(f"{len(results)} compiled, {len(failed)} not as they should be", file=sys.stderr)
    return 1 if failed or not results else 0


def _json(result: Result) -> str:
    counts = {} if result.compiled is None else dataclasses.asdict(result.compiled)
    return json.dumps({"gate": result.gate.name, "target": result.target, **counts, "faults": result.faults})


def _line(result: Result) -> str:
    row = row_of(result)
    allowed = f"of {row['budget']}" if row["budget"] != "" else ""
    counts = f"{row['per_element'] or '-':>6} {allowed:8} {row['registers']:>4} registers {row['shared']:>6} B shared"
    return f"{result.target:8} {result.gate.name:44} {counts} {row['tensor_core']:6} {row['remark'] or 'ok'}"
