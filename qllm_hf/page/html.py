"""Pieces of HTML. Every text that comes from data goes through `text`."""

from __future__ import annotations

import html
from collections.abc import Sequence

from ..shown import printable


def text(value: object) -> str:
    """The value as text that no markup can come from, and that can be stored: control characters are written out."""
    return html.escape(printable(str(value)), quote=True)


def table(rows: Sequence[Sequence[str]], *, caption: str = "") -> str:
    """A table, its first row the header; the first column is the name of a line, numbers stand to the right."""
    head, *body = rows
    said = f"<caption>{text(caption)}</caption>" if caption else ""
    header = "".join(f'<th scope="col">{text(cell)}</th>' for cell in head)
    lines = "".join(f"<tr>{''.join(_cell(place, cell) for place, cell in enumerate(row))}</tr>\n" for row in body)
    return f'<div class="wide"><table>{said}<thead><tr>{header}</tr></thead>\n<tbody>{lines}</tbody></table></div>'


def _cell(place: int, cell: str) -> str:
    if place == 0:
        return f'<th scope="row">{text(cell)}</th>'
    kind = ' class="number"' if cell[:1].isdigit() or cell[:1] in "+-" else ""
    return f"<td{kind}>{text(cell)}</td>"


def section(title: str, *parts: str) -> str:
    """A part of the page with a heading that can be linked to."""
    anchor = "".join(letter if letter.isalnum() else "-" for letter in title.lower()).strip("-")
    return f'<section id="{anchor}">\n<h2>{text(title)}</h2>\n{"".join(parts)}\n</section>\n'


def paragraph(*parts: str) -> str:
    """Text that is HTML already."""
    return f"<p>{''.join(parts)}</p>\n"


def folded(summary: str, content: str) -> str:
    """Content that is shown on demand."""
    return f"<details><summary>{text(summary)}</summary>\n{content}</details>\n"
