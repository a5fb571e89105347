"""The number in a judgement."""

from __future__ import annotations

import re
from typing import Final

UNPARSED: Final = -1.0
"""Of a judgement without a rating: it is left out of all means, and counted."""

LOWEST: Final = 1.0
HIGHEST: Final = 10.0
_FORMS: Final = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))


def parse_rating(text: str) -> float:
    """The rating that a judgement gives, from 1 to 10, or -1 if it gives none.

    The first number in double brackets counts; only if there is none, the first in single brackets. Later numbers
    are not looked at, nor is one outside the scale replaced by the next: whoever writes [[11]] did not follow the
    instruction, and guessing what was meant would be a second judge. The rule is that of the study (section 2.4),
    which knows no limits; they change nothing for a judge that keeps to the scale.

    >>> parse_rating("Clear and correct. Rating: [[7.5]]"), parse_rating("[8]"), parse_rating("I rate it 7")
    (7.5, 8.0, -1.0)
    """
    for form in _FORMS:
        if found := form.search(text):
            rating = float(found[1])
            return rating if LOWEST <= rating <= HIGHEST else UNPARSED
    return UNPARSED
