"""Results: records, samples, sizes and commands of a sweep, answers under way, and cells of a benchmark of speed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from qllm_hf.efficiency.cells import Case, Cell, Cells, Times
from qllm_hf.errors import QllmError
from qllm_hf.evaluation.answers import Journal
from qllm_hf.evaluation.engine import evaluate
from qllm_hf.evaluation.lines import CELLS
from qllm_hf.loading import load_model, load_tokenizer
from qllm_hf.results import read_results
from qllm_hf.sweep.table import summary

from .reading import ACTS_ON_PAGES, Subject, answered, command, look_at

TASKS = "mini_rules,mini_arithmetic"
_LOADED: list[Any] = []


def make_sweep(folder: Path) -> None:
    """A sweep of the reference model: two schemes, two tasks, a few items."""
    command("sweep", "reference", "--schemes", "FP16,W4KV4", "--tasks", TASKS, "--limit", 12, "-o", folder, "--quiet")


def _files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.jsonl"))


def read(folder: Path, out: Path) -> Any:
    """All numbers of a sweep, the grid of the demo, and the items behind a cell."""
    from qllm_hf.demo.grid import grid_html, measured_grid
    from qllm_hf.demo.host import make_host
    from qllm_hf.demo.items import items_html, tasks_html

    results = next(iter(make_host(results=[folder]).results.values()))
    pages = []
    try:
        pages.append(grid_html(measured_grid(results)))
    except QllmError as error:
        pages.append(str(error))
    for record in results.records:
        pages.append(tasks_html(results, record.scheme, record.ability))
        pages.append(items_html(results, record.scheme, record.task))
    look_at("".join(pages), (*ACTS_ON_PAGES, "<b>", "\x1b"))
    sizes = {scheme: repr(size) for scheme, size in results.sizes.items()}
    return [json.dumps(record.to_json()) for record in results.records], sizes, results.commands, pages


def read_report(folder: Path, out: Path) -> Any:
    """`qllm-hf report`: the table and the page."""
    said = command("report", folder, "-o", out / "report.html", "--quiet")
    page = (out / "report.html").read_text()
    look_at(page, (*ACTS_ON_PAGES, "<b>", "\x1b"))
    return said, summary(read_results(folder))


def read_advice(folder: Path, out: Path) -> Any:
    """`qllm-hf recommend --measured`."""
    return answered(command("recommend", "reference", "--measured", folder, "--context", "512", "--json"))


def read_merged(folder: Path, out: Path) -> Any:
    """`qllm-hf merge`, with itself as it was: what the two say must agree."""
    said = command("merge", folder, "-o", out / "merged", "--json")
    return said.replace(str(out), ""), sorted(
        (path.relative_to(out).as_posix(), path.read_bytes()) for path in (out / "merged").rglob("*.jsonl")
    )


def evaluate_again(folder: Path, out: Path) -> Any:
    """The same measurement once more: what is damaged is measured again."""
    if not _LOADED:
        _LOADED.extend([load_model("reference"), load_tokenizer("reference")])
    found = evaluate(*_LOADED, "FP16", TASKS.split(","), limit=12, out=folder)
    return [(record.task, record.value, record.stderr, record.items, record.details) for record in found]


def make_answers(folder: Path) -> None:
    """An evaluation that was stopped when everything was answered, and no score written."""
    drop, Journal.drop = Journal.drop, lambda self, **_: None  # type: ignore[method-assign]
    try:
        evaluate_again(folder, folder)
    finally:
        Journal.drop = drop  # type: ignore[method-assign]
    (folder / "records.jsonl").unlink()
    shutil.rmtree(folder / "samples")


MADE = {"model": "made", "hardware": {"device": "cpu"}}


def make_cells(folder: Path) -> None:
    cells = Cells(folder, MADE)
    for number, scheme in enumerate(("W4", "W4KV8", "KV4")):
        times = Times((0.5, 0.25), (0.125 + number, 0.0625), (1.0, 0.5))
        cells.add(Cell(scheme, Case(1, 64, 16), "ok", "", times, times, 10**6, 10**5, 10**4, ("plain",), MADE, "today"))
        cells.add(Cell(scheme, Case(64, 64, 16), "oom", "memory was too small", made=MADE))


def read_cells(folder: Path, out: Path) -> Any:
    cells = Cells(folder, MADE)
    return [repr(cells.find(scheme, Case(batch, 64, 16))) for scheme in ("W4", "W4KV8", "KV4") for batch in (1, 64)]


SUBJECTS = {
    "results": Subject(make_sweep, _files, read),
    "report": Subject(make_sweep, _files, read_report, is_quick=False),
    "recommend": Subject(make_sweep, _files, read_advice, is_quick=False),
    "merge": Subject(make_sweep, _files, read_merged, is_quick=False),
    "evaluate": Subject(make_sweep, lambda folder: [folder / "records.jsonl"], evaluate_again, is_quick=False),
    "answers": Subject(make_answers, lambda folder: _files(folder / "answers"), evaluate_again, is_quick=False),
    "bench": Subject(make_cells, lambda folder: [folder / CELLS], read_cells),
}
