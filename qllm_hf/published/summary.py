"""What several models lose, in a few numbers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from statistics import fmean, median


@dataclass(frozen=True)
class LossSummary:
    """What several models lose.

    Attributes:
        models: how many.
        mean, median, low, high: of their relative losses in percent; each model counts once.
        within: how many models lose at most `tolerance`.
        tolerance: percent.
    """

    models: int
    mean: float
    median: float
    low: float
    high: float
    within: int
    tolerance: float

    @classmethod
    def of(cls, losses: Collection[float], tolerance: float = 2.0) -> LossSummary:
        """The summary of at least one loss."""
        within = sum(loss <= tolerance for loss in losses)
        return cls(len(losses), fmean(losses), median(losses), min(losses), max(losses), within, tolerance)

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.models} model{'s' * (self.models != 1)}: mean loss {self.mean:.1f} %, median {self.median:.1f}, "
            f"from {self.low:.1f} to {self.high:.1f}; {self.within} within {self.tolerance:g} %"
        )


@dataclass(frozen=True)
class GroupSummary:
    """The summary of one scheme in one benchmark.

    Attributes:
        benchmark, metric: of which values.
        part: the kind of subset, where it is numbered: "length", "position"; else "".
        scheme: such as "KV4".
        summary: what the models lose.
    """

    benchmark: str
    metric: str
    part: str
    scheme: str
    summary: LossSummary
