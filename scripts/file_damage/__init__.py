"""Ways to damage a file, by name; `fuzz_files.py` tries them on every kind of file, `fuzz_checkpoints.py` some."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from . import whole
from .structured import digit, format_number, in_object, keys, line_cut, lines_moved, name, value


class Damage(NamedTuple):
    """What is done to a file.

    Attributes:
        act: (randomness, file, a folder where something may be put away).
        suffixes: of files for which it is meant; all if there are none.
        says_so: what the file says afterwards may be meant, as where a checksum was taken out: another result is none
            of the reader's faults.
    """

    act: Callable[[random.Random, Path, Path], None]
    suffixes: tuple[str, ...] = ()
    says_so: bool = False


def _alone(act: Callable[[random.Random, Path], None]) -> Callable[[random.Random, Path, Path], None]:
    return lambda rng, path, away: act(rng, path)


def _exchange(rng: random.Random, path: Path, away: Path) -> None:
    beside = path.parents[1] if path.suffix == ".jsonl" else path.parent
    whole.exchange(rng, path, sorted(each for each in beside.rglob(f"*{path.suffix}") if each.is_file()))


_OBJECTS, _LINES = (".json", ".jsonl", ".safetensors"), (".jsonl",)
_TEXTS = (".json", ".jsonl")
_EDITS = {"value": value, "name": name, "keys": keys, "digit": digit}
DAMAGES = {
    **{word: Damage(_alone(in_object(edit)), _OBJECTS) for word, edit in _EDITS.items()},
    "format": Damage(_alone(in_object(format_number)), _TEXTS),
    **{
        f"{word} on purpose": Damage(_alone(in_object(edit, signed=True)), _TEXTS, True)
        for word, edit in _EDITS.items()
    },
    "format on purpose": Damage(_alone(in_object(format_number, signed=True)), _TEXTS, True),
    "line cut": Damage(_alone(line_cut), _LINES),
    "lines moved": Damage(_alone(lines_moved), _LINES, True),
    "bytes": Damage(_alone(whole.change_bytes)),
    "bit": Damage(_alone(whole.flip_bit)),
    "cut": Damage(_alone(whole.cut)),
    "longer": Damage(_alone(whole.grow)),
    "much": Damage(_alone(whole.much)),
    "no file": Damage(lambda rng, path, away: whole.no_file(rng, path, away / "elsewhere"), says_so=True),
    "exchanged": Damage(_exchange),
}
"""`no file`: where a file may be missing, as a sample of a score may, all goes on without it."""
