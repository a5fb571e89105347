"""A benchmark as text: seconds and bytes, how many times as fast as the float model, and what was published."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Final

from ..published.speedups import Speedup
from ..reporting.text import WIDTH, bytes_text, table
from .cells import Cell
from .nearest import is_published_scheme, nearest
from .ratios import Ratio, Spread, ratios_of, times_of

OOM: Final = {"oom": "OOM", "oom_predicted": "OOM (predicted)"}
_STAGES: Final = ("prefill", "decode", "end_to_end")
_REMARKS: Final = (
    "Medians. Prefill: until the first new token; ms/token: each token after it; all: the whole of generate. tok/s: "
    "of all sequences together. Peak: weights, and the most that torch's allocator gave out beside them during a run."
)
_OOM_REMARK: Final = (
    "OOM: memory ran out. OOM (predicted): it would have, so that the run was not tried; it is tried again next time."
)
_PAIRED: Final = "Medians of pairs of runs, the float model right before or after"
_QUARTILES: Final = "; in brackets the quartiles"
_UNPAIRED: Final = (
    "*: not in pairs, since both did not fit in memory: one median divided by another, which the rest of the machine's "
    "work moves."
)


def page(cells: Sequence[Cell], params: int) -> str:
    """All tables, each under its heading.

    Args:
        params: number of parameters of the model, for the published cell nearest to it.
    """
    parts = [_absolute(cells), _relative(cells), _published(cells, params)]
    return "\n\n".join(part for part in parts if part)


def _absolute(cells: Sequence[Cell]) -> str:
    header = ["", "batch", "input", "prefill s", "tok/s", "ms/token", "tok/s", "all s", "peak", "weights", "KV"]
    lines = [header]
    for cell in cells:
        lines.append([*_name(cell), *_measured(cell)])
    remarks = [_REMARKS] + ([_OOM_REMARK] if any(cell.status in OOM for cell in cells) else [])
    return f"Seconds and bytes\n{table(lines, 'l' + 'r' * 10, indent=0)}\n{_wrapped(' '.join(remarks))}"


def _name(cell: Cell) -> list[str]:
    return [cell.scheme, str(cell.case.batch), str(cell.case.input)]


def _measured(cell: Cell) -> list[str]:
    seconds = times_of(cell)
    if not seconds:
        return ["-"] * 5 + [OOM[cell.status], "-", "-"]
    prefill, decode, total = (seconds[stage].median for stage in _STAGES)
    sizes = (cell.peak_bytes, cell.weight_bytes, cell.kv_bytes)
    return [
        f"{prefill:.3g}",
        _rate(cell.case.batch * cell.case.input / prefill),
        f"{1000 * decode:.3g}",
        _rate(cell.case.batch / decode),
        f"{total:.3g}",
        *("-" if size is None else _size(size) for size in sizes),
    ]


def _size(count: int) -> str:
    """Three digits and a unit: 1.23 GB, 12.3 GB, 123 GB."""
    number, unit = bytes_text(count).split()
    return f"{float(number):.3g} {unit}" if float(number) < 999.5 else f"{float(number):.0f} {unit}"


def _rate(tokens: float) -> str:
    """Tokens per second: 12.3, 1234 or 45k."""
    if tokens >= 10_000:
        return f"{tokens / 1000:.0f}k"
    return f"{tokens:.0f}" if tokens >= 1000 else f"{tokens:.1f}"


def _relative(cells: Sequence[Cell]) -> str:
    found = [(cell, ratios_of(cell, cells)) for cell in cells]
    if not any(ratios for _, ratios in found):
        return ""
    lines = [["", "batch", "input", "prefill", "decode", "end to end"]]
    for cell, ratios in found:
        if ratios:
            lines.append([*_name(cell), *(_ratio(ratios[stage]) for stage in _STAGES)])
    shown = [ratio for _, ratios in found for ratio in ratios.values()]
    remarks = []
    if any(ratio.paired for ratio in shown):
        remarks.append(_PAIRED + (_QUARTILES if any(ratio.spread.low is not None for ratio in shown) else "") + ".")
    if not all(ratio.paired for ratio in shown):
        remarks.append(_UNPAIRED)
    return f"Times as fast as FP16\n{table(lines, 'lrrrrr', indent=0)}\n{_wrapped(' '.join(remarks))}"


def _ratio(ratio: Ratio) -> str:
    return _spread(ratio.spread) + ("" if ratio.paired else "*")


def _spread(spread: Spread) -> str:
    """1.20 [1.15-1.24], or only the median."""
    if spread.low is None or spread.high is None:
        return f"{spread.median:.2f}"
    return f"{spread.median:.2f} [{spread.low:.2f}-{spread.high:.2f}]"


def _published(cells: Sequence[Cell], params: int) -> str:
    """The ratios of 4-bit weights here, each above the published cells that are nearest."""
    lines = [["", "batch", "input", "prefill", "decode", "end to end"]]
    for cell in cells:
        if not is_published_scheme(cell.scheme) or not (ratios := ratios_of(cell, cells)):
            continue
        lines.append([f"{cell.scheme} here", *_name(cell)[1:], *(f"{ratios[s].spread.median:.2f}" for s in _STAGES)])
        for framework, stages in nearest(cell.case, params).items():
            one = stages["decode"]
            name = f"  {framework}, {one.model}, {one.gpu}"
            values = (_value(stages[stage]) for stage in _STAGES)
            lines.append([name, str(one.batch), str(one.input_tokens), *values])
    if len(lines) == 1:
        return ""
    remark = (
        "Published: table 4 of arXiv 2404.14294, AWQ weights of 4 bits against FP16, the cell nearest in parameters, "
        "batch and input. Other kernels on another machine: what the format can give, not what is expected here."
    )
    return f"Next to what was published for W4\n{table(lines, 'lrrrrr', indent=0)}\n{_wrapped(remark)}"


def _value(cell: Speedup) -> str:
    return "FP16 OOM" if cell.speedup is None else f"{cell.speedup:.2f}"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent="  ", subsequent_indent="  ")
