"""Several published values as one value: narrowed, summed up, shown and handed on."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

from ..errors import MissingExtraError
from .anomalies import ANOMALIES, Kind
from .benchmarks import BENCHMARKS, SCALES, Whose
from .score import PublishedScore
from .summary import GroupSummary, LossSummary

if TYPE_CHECKING:
    from datasets import Dataset

SHOWN: Final = 60
"""Rows that `str()` shows at most."""
WIDTH: Final = 100
_COLUMNS: Final = ("benchmark", "subset", "metric", "model", "scheme", "value", "FP16", "loss %", "unit", "flags")
_FIXED: Final = frozenset({"model", "scheme", "value", "FP16", "loss %"})
"""Columns that stay even where all rows agree."""


@dataclass(frozen=True)
class Published:
    """Published values, in the order of the study's files.

    Attributes:
        rows: the values.
    """

    rows: tuple[PublishedScore, ...]

    def __iter__(self) -> Iterator[PublishedScore]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> PublishedScore:
        return self.rows[place]

    def __str__(self) -> str:
        return self.table(SHOWN)

    def where(self, holds: Callable[[PublishedScore], bool]) -> Published:
        """The rows for which `holds` is true."""
        return Published(tuple(row for row in self.rows if holds(row)))

    def without(self, *kinds: Kind) -> Published:
        """The rows that have no flag of these kinds, such as "excluded"."""
        unwanted = set(kinds)
        return self.where(lambda row: not row.kinds & unwanted)

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models, each once."""
        return tuple(dict.fromkeys(row.model for row in self.rows))

    @property
    def schemes(self) -> tuple[str, ...]:
        """Schemes, each once."""
        return tuple(dict.fromkeys(row.scheme for row in self.rows))

    def mean_normalised(self, chance: Whose | float = "study") -> float:
        """Mean over the rows of what is left above chance; rows without a chance level or a lead over it do not count.

        Raises:
            ValueError: no row counts.
        """
        return fmean(value for row in self.rows if (value := row.normalised(chance)) is not None)

    def losses(self, *, pooled: bool = False) -> dict[str, float]:
        """{model: relative loss in percent}; FP16 rows and rows without a loss do not count.

        Args:
            pooled: of the mean score over a model's rows, which suits small parts of one benchmark, such as the two
                rounds of MT-Bench. Else the mean of the losses of its rows, which suits parts that differ in
                difficulty, such as lengths.
        """
        found: dict[str, list[PublishedScore]] = {}
        for row in self.rows:
            if row.scheme != "FP16" and row.relative_loss is not None:
                found.setdefault(row.model, []).append(row)
        return {model: _loss(rows, pooled) for model, rows in found.items()}

    def summary(self, tolerance: float = 2.0, *, pooled: bool = False) -> LossSummary | None:
        """What the models of these rows lose, each counting once; None if there is nothing that can be lost."""
        losses = self.losses(pooled=pooled).values()
        return LossSummary.of(losses, tolerance) if losses else None

    def summaries(self, tolerance: float = 2.0) -> tuple[GroupSummary, ...]:
        """What models lose in each benchmark under each scheme; values that are flagged as excluded do not count."""
        groups: dict[tuple[str, str, str, str], list[PublishedScore]] = {}
        for row in self.without("excluded"):
            part = row.subset.partition("=")[0] if "=" in row.subset else ""
            groups.setdefault((row.benchmark, row.metric, part, row.scheme), []).append(row)
        found = []
        for key, rows in groups.items():
            summary = Published(tuple(rows)).summary(tolerance, pooled=BENCHMARKS[key[0]].pooled)
            if summary is not None:
                found.append(GroupSummary(*key, summary))
        return tuple(found)

    def to_dicts(self) -> list[dict[str, Any]]:
        """One dict per row."""
        return [row.to_dict() for row in self.rows]

    def to_dataset(self) -> Dataset:
        """The rows as a data set of the library `datasets`.

        Raises:
            MissingExtraError: it is not installed.
        """
        try:
            from datasets import Dataset
        except ImportError:
            raise MissingExtraError(
                "to_dataset needs the package datasets. Run: pip install 'qllm-hf[eval]', or use to_dicts()."
            ) from None
        return Dataset.from_list(self.to_dicts())

    def table(self, limit: int | None = None) -> str:
        """The rows as text, at most `limit` of them; columns in which all agree are said once, above."""
        if not self.rows:
            return "no published value"
        shown = self.rows[:limit]
        cells = [dict(zip(_COLUMNS, _cells(row), strict=True)) for row in shown]
        same = [name for name in _COLUMNS if name not in _FIXED and len({row[name] for row in cells}) == 1]
        columns = [name for name in _COLUMNS if name not in same]
        lines = [columns, *([row[name] for name in columns] for row in cells)]
        agreed = ", ".join(cells[0][name] for name in same if name != "flags" and cells[0][name])
        right = {"value", "FP16", "loss %"}
        parts = [agreed] if agreed else []
        parts.append(_aligned(lines, ["r" if name in right else "l" for name in columns]))
        if len(shown) < len(self.rows):
            parts.append(
                f"... and {len(self.rows) - len(shown):,} more rows (table(), to_dicts(), --all and --csv give them)"
            )
        parts += self.remarks()
        return "\n".join(parts)

    def remarks(self) -> list[str]:
        """What the flags of these rows mean, a line each."""
        flags = dict.fromkeys(flag for row in self.rows for flag in row.flags)
        return [
            textwrap.fill(f"{flag} {ANOMALIES[flag].kind}: {ANOMALIES[flag].what}", WIDTH, subsequent_indent="    ")
            for flag in sorted(flags)
        ]


def _loss(rows: Sequence[PublishedScore], pooled: bool) -> float:
    if pooled:
        before, after = (
            fmean(value / SCALES[row.unit][1] for row, value in zip(rows, values, strict=True))
            for values in ([row.fp16 for row in rows], [row.value for row in rows])
        )
        return 100 * (before - after) / before
    return fmean(100 * (row.fp16 - row.value) / row.fp16 for row in rows)


def _cells(row: PublishedScore) -> list[str]:
    loss = row.relative_loss
    return [
        row.benchmark,
        row.subset,
        row.metric,
        row.model,
        row.scheme,
        f"{row.value:.4g}",
        f"{row.fp16:.4g}",
        "-" if loss is None or row.scheme == "FP16" else f"{loss:.1f}",
        row.unit,
        " ".join(row.flags),
    ]


def _aligned(lines: Sequence[Sequence[str]], sides: Sequence[str]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(line, widths, sides, strict=True)
        ).rstrip()
        for line in lines
    )
