"""Values and names from files, as they may be shown: of bounded length, and nothing that acts on a terminal."""

from __future__ import annotations

import re
from typing import Any, Final

_ACTS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but the tab and the line feed, what turns the direction of writing, halves of characters."""


def printable(text: str) -> str:
    r"""The text, with whatever would act on a terminal written out: colours, titles, a line that hides another one.

    >>> printable("\x1b[31mred")
    '\\x1b[31mred'
    """
    return _ACTS.sub(lambda found: ascii(found[0])[1:-1], text)


def short(value: Any) -> str:
    """A value from a file, as a part of a line."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of {value.bit_length()} bits"
    return short_text(repr(value))


def short_text(text: str) -> str:
    """A text, cut where it is longer than a line should be."""
    return text if len(text) <= 200 else f"{text[:197]}..."


def is_cut(text: str) -> bool:
    """Whether a text holds half a character (a lone surrogate), as JSON may and UTF-8 may not."""
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)
