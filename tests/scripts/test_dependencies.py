"""What an installation brings along is known: from which version on, and under which licence."""

import importlib
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bounds():
    return importlib.import_module("lower_bounds")


@pytest.fixture(scope="module")
def project(bounds):
    return bounds.tomllib.loads(bounds.PYPROJECT.read_text(encoding="utf-8"))["project"]


def test_every_dependency_has_a_lower_bound(bounds, project):
    found = bounds.lower_bounds(project)
    assert len(found) > 20 and found["torch"] == "2.8" and found["transformers"] == "5.17"
    for text in project["dependencies"]:
        requirement = Requirement(text)
        assert found[requirement.name] in requirement.specifier


def test_a_dependency_without_one_is_named(bounds):
    project = {"name": "ours", "dependencies": ["ours[more]", "other[part]", "other>=1"]}
    extras = {"more": ["other>=1.10"]}
    assert bounds.lower_bounds({**project, "optional-dependencies": extras}) == {"other": "1.10"}, "10 is more than 9"
    with pytest.raises(ValueError, match=r"free<2 has no lower bound.*free>="):
        bounds.lower_bounds({**project, "optional-dependencies": {"more": ["free<2"]}})


def rows(page: str) -> dict[str, tuple[str, str]]:
    """{package: (for what, licence)} of both tables."""
    cells = [re.split(r"\s*\|\s*", line.strip("| ")) for line in page.splitlines() if line.startswith("| ")]
    return {row[0]: (row[1], row[2] if len(row) > 2 else "") for row in cells}


def test_licences_of_all_are_listed(project):
    """Also that none is of a kind that would bind who uses this package."""
    listed = rows((REPO / "docs" / "dependencies.md").read_text(encoding="utf-8"))
    extras = {name: texts for name, texts in project["optional-dependencies"].items() if name not in ("test", "dev")}
    for extra, texts in {"always": project["dependencies"], **extras}.items():
        for name in {Requirement(text).name for text in texts} - {project["name"]}:
            where, licence = listed[name]
            assert licence, name
            assert where == "always" or f"[{extra}]" in where, f"{name} is not listed for {extra}"
    assert not [name for name, (_, licence) in listed.items() if re.search(r"\bA?GPL|Proprietary|^$", licence)]


def test_the_page_is_read_from_what_is_installed(project, monkeypatch, tmp_path):
    licences = importlib.import_module("licences")
    assert licences.licence_of("typer") in ("MIT", "MIT License")  # older releases name it in a classifier
    assert licences.licence_of("torch").startswith("BSD")
    names = licences.closure(licences.needed(["transformers>=5", "nothing-of-this; extra == 'no'"]))
    assert {"transformers", "tokenizers", "numpy"} <= names and "nothing-of-this" not in names
