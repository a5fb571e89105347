"""An export in words, and the table of readers."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from .readers import DEQUANTIZE, READERS, TABLE, TRANSFORMERS, VLLM, Cell
from .reading import Reading
from .run import COMPRESSED_TENSORS, Exported

_OUTCOMES = {
    "same": "weights and inputs mean what they mean here",
    "own grid": "weights do; inputs are rounded to the reader's own grid",
    "weights": "weights do; inputs are not quantized",
    "no": "an error, or other numbers",
}


def load_commands(done: Exported) -> dict[str, str]:
    """Reader -> what to type to load the exported checkpoint with it, for those that can."""
    folder = str(done.folder)
    serve = f"vllm serve {shlex.quote(folder)}"
    if done.kv_cache_dtype is not None:
        serve += f" --kv-cache-dtype {done.kv_cache_dtype}"
    plain = f"AutoModelForCausalLM.from_pretrained({folder!r})"
    if done.format != COMPRESSED_TENSORS:
        return {TRANSFORMERS: plain, VLLM: serve}
    dequantized = plain[:-1] + ", quantization_config=CompressedTensorsConfig(dequantize=True))"
    commands = {TRANSFORMERS: plain, DEQUANTIZE: dequantized, VLLM: serve}
    return {reader: line for reader, line in commands.items() if done.readings[reader].outcome != "no"}


def exported_dict(done: Exported) -> dict[str, Any]:
    """An export as JSON holds it."""
    return {
        "output": str(done.folder),
        "format": done.format,
        "groups": {str(group): count for group, count in done.groups.items()},
        "readers": {name: reading.to_dict() for name, reading in done.readings.items()},
        "load": load_commands(done),
        "lost": list(done.lost),
        "kv_cache_dtype": done.kv_cache_dtype,
        "bytes_before": done.bytes_before,
        "bytes_after": done.bytes_after,
    }


def exported_text(done: Exported) -> str:
    """An export in lines: what was written, who reads it and how, what it does not say."""
    return "\n".join(_lines(done))


def _lines(done: Exported) -> Iterator[str]:
    after, before = done.bytes_after / 1e6, done.bytes_before / 1e6
    yield f"{done.format} in {done.folder}: {after:.2f} MB of weights, {before:.2f} MB before"
    yield from (f"  {count} matrices: {group}" for group, count in done.groups.items())
    if done.readings:
        yield "\nRead by"
        yield from _aligned([[name, *_words(reading)] for name, reading in done.readings.items()])
    yield "\nLoad"
    yield from (f"  {line}" for line in load_commands(done).values())
    if done.lost:
        yield "\nNot in the files"
        yield from (f"  {sentence}" for sentence in done.lost)


def readers_dict() -> dict[str, Any]:
    """The table of readers as JSON holds it."""
    return {
        "readers": dict(READERS),
        "outcomes": dict(_OUTCOMES),
        "table": {row: {name: cell._asdict() for name, cell in cells.items()} for row, cells in TABLE.items()},
    }


def readers_text() -> str:
    """The table of readers in lines."""
    lines = ["Readers", *_aligned([[name, what] for name, what in READERS.items()])]
    lines += ["", "Outcomes", *_aligned([[name, what] for name, what in _OUTCOMES.items()]), ""]
    notes: dict[str, int] = {}
    rows = [["", *READERS]]
    for row, cells in TABLE.items():
        rows.append([row, *(_mark(cells[name], notes) for name in READERS)])
    lines += _aligned(rows)
    lines += ["", *(f"  [{number}] {note}" for note, number in notes.items())]
    return "\n".join(lines)


def _mark(cell: Cell, notes: dict[str, int]) -> str:
    number = f" [{notes.setdefault(cell.note, len(notes) + 1)}]" if cell.note else ""
    return f"{cell.outcome} ({cell.known}){number}"


def _words(reading: Reading) -> tuple[str, str, str]:
    return reading.outcome, f"({reading.known})", "; ".join(reading.notes)


def _aligned(rows: list[list[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
