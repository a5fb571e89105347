"""Which module names a pattern means."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase


def matches(name: str, pattern: str) -> bool:
    """Whether a module name, or a module around it, is meant by a pattern.

    With a wildcard the pattern is compared with the whole name: `*.down_proj`, `model.layers.[01].*`. Without one, its
    dotted parts must stand together anywhere in the name, as whole words: `down_proj`, `layers.1` (which does
    not mean layers.11), `model.layers.1.mlp`.

    >>> matches("model.layers.11.mlp.up_proj", "layers.1"), matches("model.layers.1.mlp.up_proj", "layers.1")
    (False, True)
    """
    if any(character in pattern for character in "*?["):
        return fnmatchcase(name, pattern) or fnmatchcase(name, pattern + ".*")
    return f".{pattern.strip('.')}." in f".{name}."


def first_match(name: str, patterns: Iterable[str]) -> str | None:
    """The first of the patterns that means this name, or None."""
    return next((pattern for pattern in patterns if matches(name, pattern)), None)


def numberless(name: str) -> str:
    """The name with * for each number, as plans of transformers write them.

    >>> numberless("model.layers.11.mlp.up_proj")
    'model.layers.*.mlp.up_proj'
    """
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)
