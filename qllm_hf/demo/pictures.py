"""Pictures as elements of the page, each with its numbers as a table, for those who cannot see it."""

from __future__ import annotations

import threading

from ..figures.figure import Figure, Missing, inline_svg
from ..page.html import folded, table, text

_DRAWING = threading.Lock()
"""matplotlib keeps settings for the whole process, and visitors come at the same time."""


def picture(figure: Figure | Missing, *, broad: bool = False) -> str:
    """A picture on white, in light and dark alike; or why there is none.

    Args:
        broad: scrolls sideways on a narrow screen rather than shrink until nothing can be read.
    """
    if isinstance(figure, Missing):
        return f'<p class="qllm-hint">{text(figure.title)}: {text(figure.reason)}.</p>'
    with _DRAWING:
        svg = inline_svg(figure.name, figure.draw())
    kind = "qllm-figure qllm-broad" if broad else "qllm-figure"
    return (
        f'<figure class="{kind}" role="group" aria-label="{text(figure.title)}">{svg}'
        f"<figcaption>{text(figure.caption)}</figcaption></figure>{folded('The numbers', table(figure.rows))}"
    )
