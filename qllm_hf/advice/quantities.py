"""Numbers as people write them: 16k tokens, 24GB, 2%."""

from __future__ import annotations

import re
from typing import Final

from ..errors import ConfigError

_DECIMAL: Final = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_BINARY: Final = {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_NUMBER: Final = re.compile(r"\s*([-+]?\d+(?:\.\d+)?)\s*([a-z%]*)\s*", re.IGNORECASE)


def parse_memory(text: str | int) -> int:
    """Bytes: GB are 10^9, as on data sheets of disks and in `reporting.text`; GiB are 2^30, as drivers count.

    Raises:
        ConfigError: no size with a unit, or not more than 0.

    >>> parse_memory("24GB"), parse_memory("24 GiB")
    (24000000000, 25769803776)
    """
    if isinstance(text, int) and not isinstance(text, bool):
        number, unit = float(text), "b"
    else:
        number, unit = _split("memory", str(text), "such as 24GB (24 * 10^9 bytes) or 24GiB (24 * 2^30)")
    units = {"b": 1, **_DECIMAL, **_BINARY}
    if unit not in units:
        hint = "GB is 10^9 bytes, GiB is 2^30: cards sold with 24 GB mostly have 24 GiB"
        raise ConfigError(f"memory {text!r}: write a unit, such as 24GB or 24GiB ({hint}).")
    size = int(number * units[unit])
    if size < 1:
        raise ConfigError(f"memory {text!r}: give more than 0.")
    return size


def parse_tokens(text: str | int) -> int:
    """Tokens; k is 1,024 and M is 1,048,576, as in the names of models: 16k is 16,384.

    Raises:
        ConfigError: no whole number of tokens above 0.
    """
    how = "such as 4096 or 16k (16,384)"
    number, unit = _split("context", str(text), how)
    units = {"": 1, "k": 1024, "m": 1024**2}
    tokens = number * units.get(unit, 0)
    if unit not in units or tokens < 1 or tokens != int(tokens):
        raise ConfigError(f"context {text!r}: give a positive number of tokens, {how}.")
    return int(tokens)


def parse_percent(text: str | float) -> float:
    """Percent: "2%", "2" and 2 are the same.

    Raises:
        ConfigError: no percentage from 0 to 100.
    """
    how = "such as 2%"
    number, unit = _split("tolerance", str(text), how)
    if unit not in ("", "%") or not 0 <= number <= 100:
        raise ConfigError(f"tolerance {text!r}: give a percentage of 0 to 100, {how}.")
    return number


def _split(what: str, text: str, how: str) -> tuple[float, str]:
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ConfigError(f"{what} {text!r}: write a number, {how}.")
    return float(match[1]), match[2].lower()
