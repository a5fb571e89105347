"""Texts and names that may stand where another one is expected."""

from __future__ import annotations

from pathlib import Path

DEEP = "[" * 100_000 + "]" * 100_000
RAW_VALUES = (
    "null", "true", "false", "0", "1", "-1", "2", "3", "7", "16", "2147483648", "9223372036854775807", "1e308", "1e999",
    "-0.5", "NaN", "Infinity", '""', '"x"', '"../../etc/passwd"', '"a\\u0000b"', '"\\ud800"', "[]", "{}", "[[]]",
    "[1, 2]", '{"a": 1}', "1" + "0" * 400, "1" + "0" * 5000, '"' + "x" * 100_000 + '"', DEEP, '["float32"]',
    "1000000000",
)  # fmt: skip
"""JSON texts that may stand where another one is expected."""
NAMES = (
    "\x1b]0;owned\x07\x1b[31mred",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "../../outside",
    "/tmp/outside",
    "..",
    "a\0b",
    "\u202egnp.exe",
    "| a | <b>b</b> `c` [d](javascript:alert(1))",
    "$\\frac{1}{0}$",
    "x" * 10_000,
    "\ud800",
    "\n```\n<script>alert(1)</script>",
    "{0.__class__} %s {x}",
    "\r\x1b[2K",
)
"""Names that act where they are shown, or lead elsewhere where they become a path."""


def flip(path: Path, place: int, bit: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1 << bit
    path.write_bytes(raw)
