"""Two models side by side: whether outliers become more or fewer, and whether that is what the study found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from .gathering import KINDS, Kind, Row

Direction = Literal["rises", "falls", "stays"]
FINDING = "larger models have fewer outliers in W and KV, more in A (finding F3 of the study)"
EXPECTED: dict[Kind, Direction] = {"W": "falls", "A": "rises", "K": "falls", "V": "falls"}
FIGURES = {
    ("kurtosis", "median"): "Kurtosis of the median layer",
    ("kurtosis", "largest"): "Kurtosis of the layer with most of it",
    ("absmax", "median"): "AbsMax of the median layer",
}
_SAME = 0.01


@dataclass(frozen=True)
class Change:
    """One figure of one kind of tensor in the smaller and the larger model.

    Attributes:
        figure: "kurtosis" (Pearson's) or "absmax".
        of: "median", the median layer, or "largest", the one with most of it. Outliers may be in few layers.
        as_found: whether it goes the way of the study's finding.
    """

    kind: Kind
    figure: str
    of: str
    smaller: float
    larger: float
    direction: Direction
    as_found: bool


def weights_of(rows: Sequence[Row]) -> int:
    """The number of linear weights, which tells the smaller model from the larger one."""
    return sum(row.summary.count for row in rows if row.kind == "W")


def compare(smaller: Sequence[Row], larger: Sequence[Row]) -> list[Change]:
    """The changes from the smaller to the larger model, of each kind that was seen in both."""
    changes = []
    for kind in KINDS:
        for figure, of in FIGURES:
            before, after = (_figure_of(rows, kind, figure, of) for rows in (smaller, larger))
            if before is None or after is None:
                continue
            direction = _direction(before, after)
            changes.append(Change(kind, figure, of, before, after, direction, direction == EXPECTED[kind]))
    return changes


def conclusion(changes: Sequence[Change], differences: Sequence[str] = ()) -> str:
    """What the changes say about the finding, and what they do not.

    Args:
        differences: in what else the two models differ.
    """
    parts = [f"The study: {FINDING}."]
    for (figure, of), words in FIGURES.items():
        of_figure = [change for change in changes if (change.figure, change.of) == (figure, of)]
        agree = [change.kind for change in of_figure if change.as_found]
        against = [change.kind for change in of_figure if not change.as_found]
        said = [f"goes this way in {', '.join(agree)}"] if agree else []
        said += [f"does not in {', '.join(against)}"] if against else []
        if said:
            parts.append(f"{words} {' and '.join(said)}.")
    unseen = [kind for kind in KINDS if all(change.kind != kind for change in changes)]
    if unseen:
        parts.append(f"Of {', '.join(unseen)} nothing was compared.")
    caveat = "Two models show one step and no trend"
    if differences:
        caveat += f", and these two differ in more than their size: {', '.join(differences)}"
    return " ".join([*parts, f"{caveat}."])


def _figure_of(rows: Sequence[Row], kind: Kind, figure: str, of: str) -> float | None:
    values = [getattr(row.summary, figure) for row in rows if row.kind == kind]
    known = [float(value) for value in values if value is not None]
    if not known:
        return None
    return median(known) if of == "median" else max(known)


def _direction(before: float, after: float) -> Direction:
    if abs(after - before) <= _SAME * abs(before):
        return "stays"
    return "rises" if after > before else "falls"
