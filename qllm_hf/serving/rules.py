"""What a value in a request may be, as a check and in words."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

MOST_STOPS: Final = 16
LONGEST_STOP: Final = 256


@dataclass(frozen=True)
class Rule:
    """`holds` is asked of what was given, and `allowed` says what else to give."""

    holds: Callable[[Any], bool]
    allowed: str


def number(low: float, high: float) -> Rule:
    """Numbers between two bounds; NaN, infinity and booleans are none."""
    return Rule(lambda value: _is_number(value, low, high), f"a number from {low:g} to {high:g}")


def whole(low: int, high: float = math.inf) -> Rule:
    """Whole numbers between two bounds."""
    allowed = f"a whole number from {low}" + (f" to {high:.0f}" if high < math.inf else "")
    return Rule(lambda value: isinstance(value, int) and _is_number(value, low, high), allowed)


def _is_number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _is_stop(value: Any) -> bool:
    stops = [value] if isinstance(value, str) else value
    return (
        isinstance(stops, list)
        and len(stops) <= MOST_STOPS
        and all(isinstance(stop, str) and 0 < len(stop) <= LONGEST_STOP for stop in stops)
    )


# Nearer to 0 than this, logits are divided into infinity, and nothing can be drawn.
TEMPERATURE: Final = Rule(lambda value: value == 0 or _is_number(value, 0.01, 100), "0, or a number from 0.01 to 100")
STOP: Final = Rule(_is_stop, f"a text, or up to {MOST_STOPS} of them, of 1 to {LONGEST_STOP} characters")
YES_OR_NO: Final = Rule(lambda value: isinstance(value, bool), "true or false")


def shown(value: Any) -> str:
    """A value in an error, which is not to grow with it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
