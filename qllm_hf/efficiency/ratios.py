"""Many times from one cell: their median and quartiles, and how many times faster than the float model they are."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from .cells import BASELINE, Cell

STAGES: Final = {"prefill": "prefill", "decode": "decode", "total": "end_to_end"}
"""Names of `Times`, and how the survey calls them."""


@dataclass(frozen=True)
class Spread:
    """A median, with the quartiles around it; None where there is one value only.

    >>> Spread.of([1.0, 2.0, 3.0, 4.0, 5.0])
    Spread(median=3.0, low=2.0, high=4.0)
    """

    median: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of one or more values."""
        if len(values) == 1:
            return cls(values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as the float model; above 1 is faster.

    Attributes:
        spread: of the ratios of pairs, or of the two medians only, which has no quartiles.
        paired: whether the float model ran right before or after each repeat.
    """

    spread: Spread
    paired: bool


def times_of(cell: Cell) -> dict[str, Spread]:
    """{stage: seconds} of a measured cell; empty if it is none."""
    if cell.times is None:
        return {}
    return {stage: Spread.of(getattr(cell.times, name)) for name, stage in STAGES.items()}


def ratios_of(cell: Cell, cells: Sequence[Cell]) -> dict[str, Ratio]:
    """{stage: ratio} of a cell to the float model; empty where one of the two was not measured.

    Args:
        cells: of the same run, in which the float model is looked for where the cell has no pairs.
    """
    if cell.times is None or cell.scheme == BASELINE:
        return {}
    if cell.baseline is not None:
        pairs = {
            stage: [b / a for b, a in zip(getattr(cell.baseline, name), getattr(cell.times, name), strict=True)]
            for name, stage in STAGES.items()
        }
        return {stage: Ratio(Spread.of(values), True) for stage, values in pairs.items()}
    float_cell = next((each for each in cells if each.scheme == BASELINE and each.case == cell.case), None)
    if float_cell is None or float_cell.times is None:
        return {}
    own, other = times_of(cell), times_of(float_cell)
    return {stage: Ratio(Spread(other[stage].median / own[stage].median), False) for stage in own}


def row_of(cell: Cell, cells: Sequence[Cell]) -> dict[str, Any]:
    """All numbers of a cell as JSON has them: seconds, tokens per second, bytes, ratios."""
    seconds = times_of(cell)
    case = cell.case
    row: dict[str, Any] = {
        "scheme": cell.scheme,
        "batch": case.batch,
        "input": case.input,
        "output": case.output,
        "status": cell.status,
        "reason": cell.reason,
        "peak_bytes": cell.peak_bytes,
        "weight_bytes": cell.weight_bytes,
        "kv_bytes": cell.kv_bytes,
        "implementations": list(cell.implementations),
        "seconds": {stage: asdict(spread) for stage, spread in seconds.items()},
        "ratio_to_fp16": {
            stage: {**asdict(ratio.spread), "paired": ratio.paired} for stage, ratio in ratios_of(cell, cells).items()
        },
    }
    if seconds:
        row["prefill_tokens_per_second"] = case.batch * case.input / seconds["prefill"].median
        row["decode_tokens_per_second"] = case.batch / seconds["decode"].median
    return row
