"""Print the lower bound of every dependency in pyproject.toml as a constraint for pip: torch==2.8, one a line."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def lower_bounds(project: dict[str, Any]) -> dict[str, str]:
    """{name: version} of all dependencies and extras. A library that two extras ask for has the higher of its bounds.

    Raises:
        ValueError: a dependency has no lower bound, so nobody could say with what it was tested.
    """
    found: dict[str, str] = {}
    for requirement in _requirements(project):
        lowest = [each.version for each in requirement.specifier if each.operator in (">=", "==")]
        if not lowest:
            raise ValueError(f"{requirement} has no lower bound. Give one: {requirement.name}>=...")
        found[requirement.name] = max(lowest[0], found.get(requirement.name, "0"), key=Version)
    return dict(sorted(found.items()))


def _requirements(project: dict[str, Any]) -> Iterator[Requirement]:
    for text in itertools.chain(project["dependencies"], *project["optional-dependencies"].values()):
        requirement = Requirement(text)
        if requirement.name != project["name"] and not (requirement.extras and not requirement.specifier):
            yield requirement  # not "qllm-hf[eval]", nor "transformers[serving]", whose bound stands elsewhere


if __name__ == "__main__":
    for name, version in lower_bounds(tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]).items():
        print(f"{name}=={version}")
