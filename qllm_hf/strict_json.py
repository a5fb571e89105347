"""JSON from files that nobody vouches for: it is read as JSON says, in bounded memory, or refused.

Python's reader takes more: the last of two equal keys, NaN, bytes in UTF-16, and as many levels as its stack holds.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any, Final

LARGEST_JSON = 50_000_000
"""Bytes. Real headers and indices have a few megabytes; as Python objects they take up to 12 times that."""
MOST_BRACKETS = 1_000_000
"""Objects and lists. A tensor has three in a header; a few bytes of text make an object that takes long to clean up."""

CHECKSUM: Final = "crc32"
"""The key of a checksum of all others: 8 hex digits of the CRC-32 of `json.dumps(others, sort_keys=True)`."""


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
        value = _DECODERS[nan].decode(raw.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, not an object")
    return value


def with_checksum(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values and a checksum of what a reader of their JSON will find. It finds accidents only."""
    others = {key: value for key, value in values.items() if key != CHECKSUM}
    return {**others, CHECKSUM: _checksum(json.loads(json.dumps(others)))}


def without_checksum(values: dict[str, Any]) -> dict[str, Any]:
    """The same values without a checksum, if there is one.

    Raises:
        ValueError: it is that of other values.
    """
    if CHECKSUM in values and values[CHECKSUM] != _checksum({key: values[key] for key in values if key != CHECKSUM}):
        raise ValueError("its checksum is of something else")
    return {key: value for key, value in values.items() if key != CHECKSUM}


def _checksum(values: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(values, sort_keys=True).encode('ascii')):08x}"


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


_DECODERS: Final = {
    nan: json.JSONDecoder(object_pairs_hook=_without_twins, parse_constant=float if nan else _constant)
    for nan in (False, True)
}
