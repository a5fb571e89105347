"""Damage to a file whatever it holds: cut, longer, other bytes, or something else under its name."""

from __future__ import annotations

import os
import random
from pathlib import Path

from .values import DEEP, flip


def cut(rng: random.Random, path: Path) -> None:
    raw = path.read_bytes()
    length = rng.choice([0, 1, 7, 8, 9, rng.randrange(len(raw)), len(raw) - 1])
    if path.suffix == ".jsonl" and raw[:length][-1:] in (b"", b"\n"):
        length += 1  # lines that are gone as a whole leave no gap: "lines moved" tries that
    path.write_bytes(raw[:length])


def grow(rng: random.Random, path: Path) -> None:
    path.write_bytes(path.read_bytes() + rng.choice([b"\0", b" x", b"}", bytes(1000)]))


def change_bytes(rng: random.Random, path: Path) -> None:
    """A byte too many, another encoding, twice the content, a key too many or twice, a flipped bit."""
    raw = path.read_bytes()
    place = rng.randrange(len(raw))
    match rng.randrange(5):
        case 0:
            path.write_bytes(raw[:place] + rng.choice([b"\xff", b"\0", b'"', b"{", DEEP.encode()]) + raw[place:])
        case 1:
            other = raw.decode("utf-8", "replace").encode("utf-16")
            path.write_bytes(rng.choice([b"\xef\xbb\xbf" + raw, other, raw * 2]))
        case 2:
            key = raw[raw.find(b'"') + 1 :].partition(b'"')[0]
            path.write_bytes(raw.rstrip()[:-1] + b', "' + key + b'": 1}')
        case 3:
            path.write_bytes(raw.rstrip()[:-1] + b', "x": ' + rng.choice([b"NaN", DEEP.encode(), b"1" * 5000]) + b"}")
        case _:
            flip(path, place, rng.randrange(8))


def flip_bit(rng: random.Random, path: Path) -> None:
    flip(path, rng.randrange(path.stat().st_size), rng.randrange(8))


def no_file(rng: random.Random, path: Path, elsewhere: Path) -> None:
    """A pipe, a folder, a link or nothing in the place of a file, which is kept elsewhere."""
    path.rename(elsewhere)
    match rng.randrange(6):
        case 0:
            os.mkfifo(path)
        case 1:
            path.mkdir()
        case 2:
            path.symlink_to(path)
        case 3:
            path.symlink_to("/dev/zero")
        case 4:
            path.symlink_to(elsewhere)
        case _:
            pass


def much(rng: random.Random, path: Path) -> None:
    """Megabytes: of the file again and again, of brackets, of one word, of short lines."""
    raw = path.read_bytes()
    pieces = [raw, b"[],", b"x", b"{}\n", b'{"a": 1}\n', b"\n", b"- &a [*a]\n"]
    piece = rng.choice(pieces)
    path.write_bytes(raw + piece * (5_000_000 // len(piece)))


def exchange(rng: random.Random, path: Path, others: list[Path]) -> None:
    """Two files under each other's names; one that has no other is written over with something else."""
    others = [other for other in others if other != path and other.read_bytes() != path.read_bytes()]
    if not others:
        path.write_bytes(rng.choice([b"{}", b"[]", b"null", b"\x89PNG\r\n", b"---\na: 1\n---\n", b"PK\x03\x04"]))
        return
    other = rng.choice(others)
    first, second = path.read_bytes(), other.read_bytes()
    path.write_bytes(second)
    other.write_bytes(first)
