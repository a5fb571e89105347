"""What pip installs is what the repository holds, and what pyproject.toml says about it is true."""

import importlib
import json
import os
import sys
from importlib import metadata
from pathlib import Path

import pytest
import transformers
from packaging.requirements import Requirement
from packaging.version import Version

import qllm_hf
import qllm_kernels

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPO = Path(__file__).resolve().parent.parent
PACKAGE = REPO / "qllm_hf"
KERNELS = REPO / "kernels" / "torch-ext" / "qllm_kernels"
# What a build adds to the kernels; the record is always there, the library where a compiler is.
BUILT = {"qllm_kernels/build.json", "qllm_kernels/libqllm_cpu.so"}
REGISTER = PACKAGE / "cli" / "optimum_register"
PYPROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))


def packages_on_disk(package: Path) -> set[str]:
    """Each folder that holds a Python file, as the dotted name it is imported by."""
    folders = {path.parent for path in package.rglob("*.py")}
    return {".".join(folder.relative_to(package.parent).parts) for folder in folders}


@pytest.fixture
def installed(cannot_run) -> set[str]:
    """The files of the installed distribution, relative to site-packages, with forward slashes."""
    try:
        distribution = metadata.distribution("qllm-hf")
    except metadata.PackageNotFoundError:
        cannot_run("needs the installed package: make test")
    if '"editable": true' in (distribution.read_text("direct_url.json") or ""):
        cannot_run("an editable install does not list its files: make test")
    return {file.as_posix() for file in distribution.files}


def test_every_package_is_listed():
    mapped = {"qllm_hf.cli.optimum_register": "optimum.commands.register"}
    found = {mapped.get(name, name) for folder in (PACKAGE, KERNELS) for name in packages_on_disk(folder)}
    assert found == set(PYPROJECT["tool"]["setuptools"]["packages"])


def test_forgotten_package_would_be_found(tmp_path):
    for file in ("pkg/__init__.py", "pkg/sub/deep/module.py", "pkg/data/table.csv"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert packages_on_disk(tmp_path / "pkg") == {"pkg", "pkg.sub.deep"}


def test_every_file_is_installed(installed):
    """Python files and data alike: py.typed, and whatever joins it."""
    on_disk = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    wanted = {
        f"optimum/commands/register/{path.name}"
        if path.parent == REGISTER
        else f"qllm_hf/{path.relative_to(PACKAGE).as_posix()}"
        for path in on_disk
    }
    assert "qllm_hf/py.typed" in wanted
    wanted |= {f"qllm_kernels/{path.relative_to(KERNELS).as_posix()}" for path in KERNELS.rglob("*.py")}
    folders = ("qllm_hf/", "qllm_kernels/", "optimum/")
    ours = {file for file in installed if file.startswith(folders) and "__pycache__" not in file}
    assert "qllm_kernels/build.json" in ours
    assert ours - BUILT == wanted


@pytest.mark.skipif(sys.platform == "win32", reason="there the kernels are not built")
def test_kernels_are_built_where_a_compiler_is(installed):
    """An installation that lacks them says why; with a compiler at hand it has them."""
    record = json.loads((Path(qllm_kernels.__file__).parent / "build.json").read_text(encoding="utf-8"))
    assert record["built"] == ("qllm_kernels/libqllm_cpu.so" in installed) == ("reason" not in record)
    if not record["built"]:
        assert record["reason"]


def test_version_agrees_with_the_code():
    assert qllm_hf.__version__ == PYPROJECT["project"]["version"]


@pytest.mark.oldest
def test_transformers_is_the_version_under_test():
    """Within our bounds; in `make test-oldest` the named one, which is also the lower bound."""
    requirements = map(Requirement, PYPROJECT["project"]["dependencies"])
    (bounds,) = (each.specifier for each in requirements if each.name == "transformers")
    assert transformers.__version__ in bounds
    if named := os.environ.get("QLLM_TEST_TRANSFORMERS"):
        assert transformers.__version__ == named
        (lower,) = (each.version for each in bounds if each.operator == ">=")
        assert Version(lower) == Version(named)


def test_optimum_finds_the_commands():
    names = [path.stem for path in REGISTER.glob("*.py")]
    assert names, f"no module in {REGISTER}"
    assert "__init__" not in names, "an __init__.py would hide the plug-ins of other distributions"


def test_optimum_registration_can_be_imported(installed):
    for path in REGISTER.glob("*.py"):
        module = importlib.import_module(f"optimum.commands.register.{path.stem}")
        assert module.REGISTER_COMMANDS


@pytest.mark.parametrize(("group", "name"), [("console_scripts", "qllm-hf"), ("torch.backends", "qllm_hf")])
def test_entry_points_lead_somewhere(installed, group, name):
    (entry,) = metadata.entry_points(group=group, name=name)
    assert callable(entry.load())
