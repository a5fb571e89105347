"""JSON from files that nobody vouches for: it is read as JSON says, in bounded memory, or refused.

Python's reader takes more: the last of two equal keys, NaN, bytes in UTF-16, and as many levels as its stack holds.
"""

from __future__ import annotations

import json
from typing import Any

LARGEST_JSON = 50_000_000
"""Bytes. Real headers and indices have a few megabytes; as Python objects they take up to 12 times that."""
MOST_BRACKETS = 1_000_000
"""Objects and lists. A tensor has three in a header; a few bytes of text make an object that takes long to clean up."""


def parse_object(raw: bytes, *, nan: bool = False) -> dict[str, Any]:
    """The JSON object that UTF-8 text holds.

    `Infinity` is taken, since configs of state-space models hold it; NaN only with `nan`, as a score may be none.

    Raises:
        ValueError: it is none, says a key twice, holds NaN, or is too long or nested too deeply.
    """
    if len(raw) > LARGEST_JSON:
        raise ValueError(f"{len(raw)} bytes, where {LARGEST_JSON} are allowed")
    if raw.count(b"[") + raw.count(b"{") > MOST_BRACKETS:
        raise ValueError(f"more than {MOST_BRACKETS} objects and lists")
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_twins, parse_constant=float if nan else _constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, not an object")
    return value


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twin = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twin[:80]!r} is there twice")
    return found


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("NaN is no number")
    return float(name)
