"""A picture with the table it was drawn from."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..drawing import require_matplotlib, save_picture
from ..whole import write_whole

_NAMED: Final = re.compile(r'(\bid="|url\(#|href="#)')
"""What comes before a name inside an SVG, where it is given and where it is used."""


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


def inline_svg(name: str, picture: Any) -> str:
    """A matplotlib figure as an element of a page: without the head of an XML file, with names no other picture has.

    Args:
        name: of the picture, once on the page.
    """
    import matplotlib

    content = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        picture.savefig(content, format="svg", metadata={"Date": None})
    svg = content.getvalue()
    svg = svg[svg.index("<svg") :]
    # matplotlib names parts of all pictures alike
    return _NAMED.sub(lambda found: f"{found[1]}{name}-", svg)


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
        write_whole(path, text.getvalue().encode("utf-8"))
        written.append(path)
    return written
