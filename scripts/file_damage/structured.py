"""Damage to what a file says: a value, a key, a number of JSON, of a line of JSON, or of a safetensors header."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .values import NAMES, RAW_VALUES

Edit = Callable[[random.Random, str], str]
"""The text of a JSON object -> another text."""


def _place(rng: random.Random, found: Any) -> tuple[Any, Any]:
    """Something within JSON that holds a value, and its key."""
    place = found
    while True:
        keys = list(range(len(place))) if isinstance(place, list) else sorted(place)
        key = rng.choice(keys)
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.2:
            return place, key
        place = inner


def _with(found: Any, raw: str) -> str:
    return json.dumps(found).replace('"@here@"', raw, 1)


def value(rng: random.Random, text: str) -> str:
    """Something else in the place of a value, or nothing."""
    found = json.loads(text)
    place, key = _place(rng, found)
    if rng.random() < 0.1:
        del place[key]
        return json.dumps(found)
    place[key] = "@here@"
    return _with(found, rng.choice(RAW_VALUES))


def name(rng: random.Random, text: str) -> str:
    """A name that acts, as a value or as a key."""
    found = json.loads(text)
    texts = [key for key, each in found.items() if isinstance(each, str)]
    hostile = rng.choice(NAMES)
    if texts and rng.random() < 0.8:
        found[rng.choice(texts)] = hostile
        return json.dumps(found)
    place, key = _place(rng, found)
    if isinstance(place, dict) and rng.random() < 0.5:
        place[hostile] = place.pop(key)
    else:
        place[key] = hostile
    return json.dumps(found)


def keys(rng: random.Random, text: str) -> str:
    """A key too few, too many, or twice."""
    found = json.loads(text)
    key = rng.choice(sorted(found))
    match rng.randrange(3):
        case 0:
            del found[key]
            return json.dumps(found)
        case 1:
            return json.dumps({**found, "something": rng.choice([None, 1, {"a": []}])})
        case _:
            other = json.dumps({key: found[rng.choice(sorted(found))]})
            return json.dumps(found)[:-1] + ", " + other[1:]


def digit(rng: random.Random, text: str) -> str:
    """Another digit in a number or a word: what is left is JSON that could be right."""
    places = [found.start() for found in re.finditer(r"\d", text)]
    if not places:
        return text[:-1] + " }"
    place = rng.choice(places)
    return text[:place] + rng.choice([d for d in "0123456789" if d != text[place]]) + text[place + 1 :]


def format_number(rng: random.Random, text: str) -> str:
    found = json.loads(text)
    found["format"] = rng.choice([0, -1, 2, 99, 10**400, "1", None, 1.5, [], True])
    return json.dumps(found)


def change_value(rng: random.Random, path: Path) -> None:
    """Change one value of a JSON file, wherever it is, into something that may not stand there."""
    path.write_text(value(rng, path.read_text()))


def in_object(edit: Edit, *, signed: bool = False) -> Callable[[random.Random, Path], None]:
    """The edit of a JSON file, of a line of a file of JSON lines, or of the header of a safetensors file.

    Args:
        signed: on purpose: what checks the line, its checksum, is taken out.
    """

    def damage(rng: random.Random, path: Path) -> None:
        raw = path.read_bytes()
        if path.suffix == ".safetensors":
            end = 8 + int.from_bytes(raw[:8], "little")
            text = edit(rng, raw[8:end].decode()).encode("utf-8", "surrogatepass")
            path.write_bytes(len(text).to_bytes(8, "little") + text + raw[end:])
            return
        lines = raw.decode().rstrip("\n").split("\n") if path.suffix == ".jsonl" else [raw.decode()]
        which = rng.randrange(len(lines))
        text = lines[which]
        if signed:
            found = json.loads(text)
            found.pop("crc32", None)
            text = json.dumps(found)
        lines[which] = edit(rng, text)
        ending = "\n" if path.suffix == ".jsonl" else ""
        path.write_bytes(("\n".join(lines) + ending).encode("utf-8", "surrogatepass"))

    return damage


def lines_moved(rng: random.Random, path: Path) -> None:
    """Whole lines that are gone, there twice, or in another order."""
    lines = path.read_bytes().rstrip(b"\n").split(b"\n")
    which = rng.randrange(len(lines))
    match rng.randrange(3):
        case 0:
            del lines[which]
        case 1:
            lines.insert(rng.randrange(len(lines) + 1), lines[which])
        case _:
            rng.shuffle(lines)
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def line_cut(rng: random.Random, path: Path) -> None:
    """Half a line in the middle of the others, with its end or joined with the next one."""
    lines = path.read_bytes().rstrip(b"\n").split(b"\n")
    which = rng.randrange(len(lines))
    lines[which] = lines[which][: rng.randrange(1, len(lines[which]))]
    if rng.random() < 0.3 and which + 1 < len(lines):
        lines[which] += lines.pop(which + 1)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
