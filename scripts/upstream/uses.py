"""Every name of another library that stands in our sources, read from their syntax: nothing of ours is imported."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

OURS = {"qllm_hf", "qllm_hf_autoload", "qllm_kernels", "__future__"}


class Use(NamedTuple):
    """A dotted name, such as transformers.cache_utils.DynamicLayer.update, and the first place that uses it.

    Attributes:
        overridden: a method of theirs that a class of ours has in its place.
    """

    name: str
    place: str
    overridden: bool = False


def uses_of(folders: Iterable[Path], root: Path) -> dict[str, Use]:
    """{dotted name: its use}, in alphabetical order; places are relative to `root`."""
    found: dict[str, Use] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            for use in _uses_in(path.read_text(encoding="utf-8"), path.relative_to(root).as_posix()):
                known = found.get(use.name)
                if known is None or (use.overridden and not known.overridden):
                    found[use.name] = use
    return dict(sorted(found.items()))


def _uses_in(source: str, file: str) -> Iterator[Use]:
    tree = ast.parse(source)
    bound = dict(_imports(tree))  # name here -> dotted name there
    inner: set[int] = set()  # parts of a longer chain of attributes
    for node in ast.walk(tree):
        place = f"{file}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (name := bound.get(alias.asname or alias.name)) is not None and not node.level:
                    yield Use(name, place)
        elif isinstance(node, ast.Attribute) and id(node) not in inner:
            inner |= {id(part) for part in ast.walk(node) if isinstance(part, ast.Attribute)}
            if (name := _dotted(node, bound)) is not None:
                yield Use(name, place)
        elif isinstance(node, ast.ClassDef):
            for base in filter(None, (_dotted(base, bound) for base in node.bases)):
                for method in node.body:
                    if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef):
                        yield Use(f"{base}.{method.name}", f"{file}:{method.lineno}", overridden=True)


def _imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if _is_theirs(alias.name):
                    first = alias.name.split(".")[0]
                    yield (alias.asname, alias.name) if alias.asname else (first, first)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module and _is_theirs(node.module):
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _is_theirs(module: str) -> bool:
    first = module.split(".")[0]
    return first not in OURS and first not in sys.stdlib_module_names


def _dotted(node: ast.expr, bound: dict[str, str]) -> str | None:
    """torch.nn.Linear of a chain of attributes that begins with an imported name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in bound:
        return None
    return ".".join([bound[node.id], *reversed(parts)])
