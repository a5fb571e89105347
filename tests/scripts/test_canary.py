"""What our sources use of other libraries is found there, and what moves in them is named."""

import importlib
import sys

import pytest

OURS = """
import library
from library import deep as below
from library.deep import Base, gone, grows, moves, stays


class Child(Base):
    def asked(self, x):
        return library.VALUES.get(x), below.stays(x)

    def of_our_own(self):
        pass
"""
BEFORE = """
VALUES = {}
"""
DEEP = """
def stays(x): ...
def grows(x): ...
def moves(x, y): ...
def gone(): ...
class Base:
    def asked(self, x):
        return 1
"""
DEEP_NOW = """
def stays(y_of_another_name_is_seen=None, *, x=0): ...
def grows(x, *, more=None): ...
def moves(y, x): ...
class Base:
    def asked(self, x):
        return 2
"""


@pytest.fixture(scope="module")
def canary():
    return importlib.import_module("canary")


@pytest.fixture
def sources(tmp_path):
    folder = tmp_path / "ours"
    folder.mkdir()
    (folder / "code.py").write_text(OURS)
    return folder


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A function that puts a version of a library in place."""
    monkeypatch.syspath_prepend(tmp_path / "theirs")

    def put(deep: str) -> None:
        for name in [name for name in sys.modules if name.split(".")[0] == "library"]:
            monkeypatch.delitem(sys.modules, name)
        folder = tmp_path / "theirs" / "library"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").write_text(BEFORE)
        (folder / "deep.py").write_text(deep)
        importlib.invalidate_caches()

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return put


def test_what_moved_is_named_with_its_place(canary, sources, library):
    uses = canary.uses_of([sources], sources)
    assert set(uses) == {
        "library.VALUES.get",
        "library.deep",
        "library.deep.Base",
        "library.deep.Base.asked",
        "library.deep.Base.of_our_own",
        "library.deep.gone",
        "library.deep.grows",
        "library.deep.moves",
        "library.deep.stays",
    }
    library(DEEP)
    before = canary.look(uses)
    assert not list(canary.differences(uses, before, canary.look(uses))), "nothing moved"
    library(DEEP_NOW)
    found = {line.split("\n")[0]: breaks for breaks, line in canary.differences(uses, before, canary.look(uses))}
    assert found == {
        "code.py:8: library.deep.Base.asked is another one inside, and ours stands in its place": False,
        "code.py:4: library.deep.gone": True,
        "code.py:4: library.deep.grows": False,
        "code.py:4: library.deep.moves": True,
        "code.py:4: library.deep.stays": True,
    }


@pytest.mark.oldest
def test_what_we_import_of_transformers_is_there(canary):
    uses = {
        name: use
        for name, use in canary.uses_of(canary.SOURCES, canary.REPO).items()
        if name.startswith("transformers")
    }
    assert len(uses) > 50
    gone = {name for name, seen in canary.look(uses).items() if seen.kind == "gone" and not uses[name].overridden}
    assert not gone, "imports that would fail, or stand behind a look at the version"


@pytest.mark.oldest
def test_functions_that_are_known_by_their_arguments_are_there(canary):
    uses = {name: canary.Use(name, place) for name, place in canary.BY_NAME.items()}
    assert all(seen.kind == "function" for seen in canary.look(uses).values())
