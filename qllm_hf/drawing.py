"""What all pictures share: colours that colour-blind people can tell apart, and files that appear whole.

Source of the colours: Okabe and Ito, "Color Universal Design" (2008).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from .errors import MissingExtraError
from .whole import whole_file

COLORS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
MARKERS: Final = "osD^vPX*"
FORMATS: Final = ("png", "svg")
DPI: Final = 130


def require_matplotlib() -> None:
    """Raises MissingExtraError if matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise MissingExtraError("plots need the package matplotlib. Run: pip install 'qllm-hf[plots]'") from None


def look(number: int) -> dict[str, Any]:
    """Colour, marker and dashes of the n-th line of a plot: up to 24 that differ."""
    styles = ("-", "--", ":")
    return {
        "color": COLORS[number % len(COLORS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": styles[number // len(COLORS) % len(styles)],
    }


def save_picture(figure: Any, folder: Path, name: str) -> list[Path]:
    """The files of a matplotlib figure, NAME.png and NAME.svg; each is there whole, or not at all.

    The same figure gives the same bytes: without a date, and with names inside the SVG that come from its own. Text
    in the SVG stays text.
    """
    import matplotlib

    written = []
    for form in FORMATS:
        path = folder / f"{name}.{form}"
        with whole_file(path) as partial, matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
            figure.savefig(partial, format=form, dpi=DPI, metadata={"Date": None} if form == "svg" else None)
        written.append(path)
    return written
