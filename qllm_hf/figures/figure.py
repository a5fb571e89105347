"""A picture with the table it was drawn from."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..drawing import require_matplotlib, save_picture


@dataclass(frozen=True)
class Figure:
    """One picture.

    Attributes:
        name: of its files, without suffix.
        title: what it shows.
        caption: how to read it, and what the error bars are.
        rows: the numbers, header first, as they are to be read.
        draw: makes the matplotlib figure.
    """

    name: str
    title: str
    caption: str
    rows: tuple[tuple[str, ...], ...]
    draw: Callable[[], Any]


@dataclass(frozen=True)
class Missing:
    """A picture that cannot be drawn from these results, and why."""

    title: str
    reason: str


def save_figures(figures: Sequence[Figure], folder: Path) -> list[Path]:
    """The files written: NAME.png, NAME.svg and NAME.csv of each.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    written = []
    for figure in figures:
        written += save_picture(figure.draw(), folder, figure.name)
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(figure.rows)
        path = folder / f"{figure.name}.csv"
        partial = folder / f".{path.name}.{os.getpid()}"
        partial.write_text(text.getvalue(), encoding="utf-8")
        partial.replace(path)
        written.append(path)
    return written
