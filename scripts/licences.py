"""Write docs/dependencies.md: what an installation brings along, for what, and under which licence.

    python scripts/licences.py            # in an environment with all extras

Read from the metadata of what is installed. Packages that an extra brings indirectly are listed below those that
pyproject.toml names.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

sys.path.insert(0, str(Path(__file__).resolve().parent))
from lower_bounds import PYPROJECT, tomllib

PAGE = PYPROJECT.parent / "docs" / "dependencies.md"
FOR_DEVELOPERS = ("test", "dev")
HEAD = """# Dependencies and their licences

qllm_hf is under Apache-2.0. Here is what `pip install qllm-hf` brings, what each extra adds, and under which
licence, as the packages themselves say. A torch for CUDA also brings NVIDIA's libraries, under NVIDIA's terms;
they are not listed, nor are the extras `test` and `dev`, which are for working on this package. Written by
`python scripts/licences.py`.
"""
# Classifiers say no more than "BSD License"; texts in the field `License` may be whole licences.
_SHORT = 60
_CLASSIFIER = "License :: OSI Approved :: "
_UNSAID = {"torch": "BSD-3-Clause"}
"""Of packages that carry nothing but the text of their licence, among those of what they contain."""


def licence_of(name: str) -> str:
    """What an installed distribution says about its licence, shortest form first; "" if it says nothing."""
    found = metadata.metadata(name)
    text = found.get("License-Expression") or found.get("License") or ""
    if not text or len(text) > _SHORT or text.upper() == "UNKNOWN":
        said = [each.removeprefix(_CLASSIFIER) for each in found.get_all("Classifier") or [] if _CLASSIFIER in each]
        text = ", ".join(said) or _UNSAID.get(name) or _first_line(name)
    return " ".join(text.split())


def _first_line(name: str) -> str:
    """Of the licence that came along, such as "MIT License"; "" if it has no such line."""
    for file in metadata.files(name) or []:
        if re.match(r"licen[sc]e", file.name, re.IGNORECASE):
            first = next(filter(None, map(str.strip, file.read_text().splitlines())), "")
            return first if re.search(r"licen[sc]e", first, re.IGNORECASE) and len(first) <= _SHORT else ""
    return ""


def needed(texts: Iterable[str], extras: Iterable[str] = ()) -> Iterator[Requirement]:
    """The requirements among `texts` that hold on this machine, with these extras of the package that has them."""
    for requirement in map(Requirement, texts):
        environments = [{"extra": extra} for extra in ("", *extras)]
        if requirement.marker is None or any(map(requirement.marker.evaluate, environments)):
            yield requirement


def closure(requirements: Iterable[Requirement]) -> set[str]:
    """Names of everything that these bring along, themselves included."""
    found: set[tuple[str, frozenset[str]]] = set()
    waiting = list(requirements)
    while waiting:
        requirement = waiting.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key not in found:
            found.add(key)
            waiting += needed(metadata.requires(requirement.name) or [], requirement.extras)
    return {name for name, _ in found}


def page() -> str:
    """The whole page."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    own = canonicalize_name(project["name"])
    extras = {name: texts for name, texts in project["optional-dependencies"].items() if name not in FOR_DEVELOPERS}
    wanted = {"": project["dependencies"], **extras}
    direct: dict[str, list[str]] = {}
    brought: dict[str, list[str]] = {}
    for extra, texts in wanted.items():
        named = [each for each in needed(texts) if canonicalize_name(each.name) != own]
        for name in {canonicalize_name(each.name) for each in named}:
            direct.setdefault(name, []).append(extra)
        for name in closure(named):
            brought.setdefault(name, []).append(extra)
    indirect = {name: where for name, where in brought.items() if name not in direct}
    return "\n".join([HEAD, *_table("named in pyproject.toml", direct), "", *_table("brought by those", indirect), ""])


def _table(title: str, packages: dict[str, list[str]]) -> Iterator[str]:
    yield from (f"| {title} | for | licence |", "| --- | --- | --- |")
    for name, extras in sorted(packages.items()):
        where = "always" if "" in extras else ", ".join(f"`[{extra}]`" for extra in extras)
        yield f"| {name} | {where} | {licence_of(name)} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE}: {sum(line.startswith('| ') for line in page().splitlines()) - 4} packages")
